"""Which runs there are, which is on display, what can be done with it, and when it must be drawn
again. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from .run_card import ACTIVE, ENDED, RESUMABLE, has_lobe, percent_done

if TYPE_CHECKING:
    from ...app.views import JobView

STOP = "Stop and keep the lobe"


def lobe_jobs(jobs: Sequence[JobView]) -> list[JobView]:
    """Jobs that train a lobe; fits of routers are shown on a tab of their own."""
    return [job for job in jobs if job.kind == "lobe"]


def on_display(jobs: Sequence[JobView], shown: str) -> JobView | None:
    """The run that was picked; else the one at work, one's own first; else the newest."""
    picked = [job for job in jobs if job.id == shown]
    working = sorted((job for job in jobs if job.state in ACTIVE), key=lambda job: not job.mine)
    return next(iter([*picked, *working, *jobs]), None)


def buttons(job: JobView | None, jobs: Sequence[JobView]) -> tuple[Any, ...]:
    """stop, resume, chat, earlier, later, cancel, forget: those that would work, for those who may."""
    if job is None:
        return (gr.update(visible=False),) * 7
    stop, place = gr.update(visible=False), job.place or 0
    if job.mine and job.state in ACTIVE:
        stop = gr.update(visible=True, interactive=True, value=STOP)
    if job.mine and job.state == "stopping":
        stop = gr.update(visible=True, interactive=False, value="Stopping…")
    queued = job.mine and job.state == "queued"
    last = max(other.place or 0 for other in jobs)
    visible = (
        job.mine and job.state in RESUMABLE,
        has_lobe(job),
        queued and place > 1,
        queued and place < last,
        queued,
        job.mine and job.state in ENDED,
    )
    return (stop, *(gr.update(visible=one) for one in visible))


def curve_key(job: JobView) -> list[Any]:
    """Changes when the curve is worth drawing again: every two seconds of training, at a
    measurement, at the end."""
    return [job.id, job.state, int(job.seconds // 2), job.best_validation_loss, job.step > 0]


def run_key(job: JobView) -> list[Any]:
    """Changes when the run's row of the table does."""
    return [job.id, job.name, job.state, job.place, job.best_validation_loss, job.mine, percent_done(job)]


def numbered(name: str, taken: Collection[str]) -> str:
    """The name for a curve: "name (run 2)" if "name" is taken."""
    names = [name, *(f"{name} (run {i})" for i in range(2, len(taken) + 2))]
    return next(candidate for candidate in names if candidate not in taken)
