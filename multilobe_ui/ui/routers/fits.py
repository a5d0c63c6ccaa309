"""Which router is on display, which need a fit, and what can be done about it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from .router_card import WORKING, state_of

if TYPE_CHECKING:
    from ...app.views import JobView, RouterView

Outputs = tuple[Any, ...]


def router_jobs(jobs: Sequence[JobView]) -> list[JobView]:
    return [job for job in jobs if job.kind == "router"]


def newest(jobs: Sequence[JobView]) -> dict[str, JobView]:
    """The newest job of each router; `jobs` come newest first."""
    return {job.name: job for job in reversed(jobs)}


def on_display(views: Sequence[RouterView], jobs: Mapping[str, JobView], picked: str) -> RouterView | None:
    """The router that was picked; else the one being fitted, else one that is stale, else the first
    that a person fits."""
    chosen = [view for view in views if view.name == picked]
    working = [view for view in views if view.name in jobs and jobs[view.name].state in WORKING]
    asks = [view for view in views if view.asks_for_fit]
    stale = [view for view in asks if view.stale]
    return next(iter([*chosen, *working, *stale, *asks, *views]), None)


def needing(views: Sequence[RouterView], jobs: Mapping[str, JobView]) -> list[RouterView]:
    """Routers that a person should fit: never fitted or stale, and not at it already."""
    return [view for view in views if view.asks_for_fit and state_of(view, jobs.get(view.name)) in ("needs", "stale")]


def fit_all(views: Sequence[RouterView], jobs: Mapping[str, JobView]) -> Any:
    """The button for all of them at once, where that is more than one."""
    number = len(needing(views, jobs))
    return gr.update(visible=number > 1, value=f"Fit all {number} that need it")


def buttons(view: RouterView, job: JobView | None) -> Outputs:
    """fit, stop, cancel: those that would work, for those who may."""
    state, label = state_of(view, job), "Fit now"
    if view.fitted:
        label = "Fit again"
    fit = gr.update(visible=view.asks_for_fit and state not in ("fitting", "waiting"), value=label)
    stop = cancel = gr.update(visible=False)
    if job is not None and job.mine and state == "fitting":
        word = "Stop and keep the best"
        if job.state == "stopping":
            word = "Stopping…"
        stop = gr.update(visible=True, interactive=job.state != "stopping", value=word)
    if job is not None and job.mine and state == "waiting":
        cancel = gr.update(visible=True)
    return fit, stop, cancel
