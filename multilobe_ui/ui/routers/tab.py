"""The Routers tab: how every router stands, fit what needs fitting and watch it, and ask all of
them about one prompt.

As on the Train tab, a fit is a job of the studio's. Page load, signal and every click end in the
same read-only `look`. Which router is picked is lost with the page, and cheap to choose again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import JobError
from ...routers.kept import without_lobes
from ..kit import guard, text
from ..kit.changes import Changes
from ..kit.guard import friendly
from ..kit.html import escape
from ..kit.plots import fit_curves
from ..kit.pulse import QUICK, Pulse, when_opened
from ..kit.static import script, scroll_to
from ..kit.table import bare, heading, shown
from .ask import AskSide
from .chain import ChainForm, stage_updates, stages_of
from .fits import buttons, fit_all, needing, newest, on_display, router_jobs
from .form import RouterSettings
from .router_card import ACTIVE, fit_card, report_card, router_detail, router_list
from .tiers import TiersForm, path_of
from .words import WordsForm

if TYPE_CHECKING:
    from ...app.desk import Desk
    from ...app.studio import Studio
    from ...app.views import JobView, RouterView

Outputs = tuple[Any, ...]

KEYWORD, COMPLEXITY, CHAIN = "keyword", "complexity", "chain"


class RoutersTab:
    """Lays out and wires the tab. Handlers take and return plain values and make one call on the studio."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.settings, self.ask = RouterSettings(), AskSide(studio)
        self.tiers, self.words, self.chain = TiersForm(studio), WordsForm(studio), ChainForm(studio)

    def build(self) -> None:
        """Call it inside gr.Blocks, in the tab or column where it belongs."""
        self.token = guard.visitor()
        self.picked = gr.State("")
        self.seen = gr.State({})
        with gr.Row(elem_classes="train-row"):
            with gr.Column(scale=4, min_width=300):
                bare(heading("Routers", "Each turns a message into weights over lobes, in its own way."))
                self.list = bare(js_on_load=script("table"), elem_id="router-list")
                self.fit_all = gr.Button("Fit all that need it", visible=False, elem_id="router-fit-all")
            with gr.Column(scale=8, min_width=320):
                self._detail_side()
        self.ask.build()
        self._wire()

    # ---- layout ----------------------------------------------------------------------------------

    def _detail_side(self) -> None:
        self.detail = bare(elem_id="router-detail")
        routers = without_lobes()
        self.forms: dict[str, Any] = {}
        for router in routers:
            with gr.Column(visible=False, min_width=0, elem_id=f"router-form-{router.name}") as form:
                if router.name == COMPLEXITY:
                    self.tiers.build(router.name, self.settings)
                self.settings.build(router.name)
                if router.name == KEYWORD:
                    self.words.build()
                if router.name == CHAIN:
                    self.chain.build(routers)
            self.forms[router.name] = form
        with gr.Row(elem_classes="train-actions"):
            self.fit = gr.Button("Fit", variant="primary", visible=False, elem_id="router-fit")
            self.stop = gr.Button("Stop and keep the best", variant="stop", visible=False, elem_id="router-stop")
            self.cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="router-cancel")
        self.progress = bare(visible=False, elem_id="router-progress")
        self.plot = gr.Plot(
            show_label=False,
            label="Curves of the fit",
            container=False,
            visible=False,
            elem_id="router-plot",
            buttons=[],
        )
        self.report = bare(visible=False, elem_id="router-report")

    def _wire(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
        fitting = [self.fit, self.stop, self.cancel]
        view = [
            self.list, self.fit_all, self.detail, *self.forms.values(), *fitting, self.progress, self.plot,
            self.report, self.words.lobe, *self.chain.outputs, self.seen,
        ]  # fmt: skip
        self.width = len(view)
        self.looking: dict[str, Any] = {
            "fn": self.look, "inputs": [self.picked, self.seen, self.token], "outputs": view, **QUICK
        }  # fmt: skip
        self.list.pick(self.pick, None, self.picked, **QUICK).then(**self.looking, js=scroll_to("#router-detail"))
        asked = [self.picked, self.seen, self.tiers.file, self.token, *self.settings.components]
        self.fit.click(self.begin, asked, [self.picked, self.seen], **private).success(**self.looking)
        self.fit_all.click(self.begin_all, self.token, self.seen, **private).success(**self.looking)
        for button, end in ((self.stop, self.do_stop), (self.cancel, self.do_cancel)):
            button.click(end, [self.seen, self.token], None, **private).success(**self.looking)
        when_opened(self.look_anew, [self.picked, self.token], view)

    def watch(self, pulse: Pulse) -> None:
        """Look whenever something has changed that the tab shows."""
        pulse.when(self.shows)(**self.looking)

    def shows(self) -> object:
        status = self.studio.status()
        return status.version, status.state, router_jobs(self.studio.desk().jobs())

    # ---- handlers: looking -----------------------------------------------------------------------

    @friendly(quiet=True)
    def look_anew(self, request: gr.Request, picked: Any, token: Any) -> Outputs:
        """For a page that has just been opened."""
        return self._view(request, picked, {}, token)

    @friendly(quiet=True)
    def look(self, request: gr.Request, picked: Any, seen: Any, token: Any) -> Outputs:
        """What has changed since `seen`; reads only."""
        return self._view(request, picked, seen, token)

    def _view(self, request: gr.Request, picked: str, seen: Mapping[str, Any], token: Any) -> Outputs:
        desk = guard.desk(self.studio, request, token)
        status, jobs = self.studio.status(), router_jobs(desk.jobs())
        probe = (status.version, status.state, picked, desk.visitor.id, [(j.id, j.state, j.phase, j.step, j.place) for j in jobs])
        if probe == seen.get("probe"):
            return (gr.skip(),) * self.width
        views, by_name = desk.routers(), newest(jobs)
        view = on_display(views, by_name, picked)
        if view is None:
            return (gr.skip(),) * self.width
        job = by_name.get(view.name)
        lobes, chain = self._usable(desk), stages_of(views)
        keys: dict[str, Any] = {
            "probe": probe,
            "router": view.name,
            "job": "",
            "list": (repr(views), view.name, repr([by_name.get(v.name) for v in views])),
            "detail": (repr(view), [(j.id, j.state) for j in jobs if j is job]),
            "progress": repr(job),
            "plot": (view.name, [(j.id, j.state, j.step) for j in jobs if j is job]),
            "lobes": lobes,
            "chain": repr(chain),
        }
        if job is not None:
            keys["job"] = job.id
        changes = Changes(keys, seen)
        return (
            *changes.draw("list", self._listed, views, by_name, view.name, width=2),
            *changes.draw("detail", lambda: (router_detail(view, job),)),
            *changes.draw("router", self._form_of, view.name, width=len(self.forms)),
            *changes.draw("detail progress", buttons, view, job, width=3),
            *changes.draw("progress router", lambda: (shown(fit_card(job, view.title)),)),
            *changes.draw("plot", self._plot, job),
            *changes.draw("detail", lambda: (shown(report_card(view.report)),)),
            *changes.draw("lobes", lambda: (gr.update(choices=lobes, value=next(iter(lobes), None)),)),
            *changes.draw("chain", stage_updates, chain, width=len(self.chain.outputs)),
            keys,
        )

    def _usable(self, desk: Desk) -> list[str]:
        """Names of the lobes that have words; none while the base loads."""
        if self.studio.status().state != "ready":
            return []
        return [lobe.name for lobe in desk.lobes() if lobe.usable]

    @staticmethod
    def _listed(views: Sequence[RouterView], jobs: Mapping[str, JobView], picked: str) -> Outputs:
        return router_list(views, jobs, picked), fit_all(views, jobs)

    def _form_of(self, router: str) -> Outputs:
        return tuple(gr.update(visible=name == router) for name in self.forms)

    def _plot(self, job: JobView | None) -> Outputs:
        if job is None or not (records := self.studio.metrics(job.id)):
            return (gr.update(visible=False),)
        steps = None
        if job.state in ACTIVE:
            steps = job.steps
        return (gr.update(value=fit_curves(records, steps), visible=True),)

    @friendly(quiet=True)
    def pick(self, event: gr.EventData) -> str:
        """A router of the list was clicked."""
        return str(guard.event_value(event, "id"))

    # ---- handlers: fits --------------------------------------------------------------------------

    @friendly
    def begin(
        self, request: gr.Request, picked: Any, seen: Any, file: Any, token: Any, *values: Any
    ) -> tuple[str, Any]:
        """Queue the fit of the router on display, and keep it on display."""
        desk = guard.acting_desk(self.studio, request, token)
        titles = {view.name: view.title for view in desk.routers()}
        name, path = guard.a_choice(picked or seen.get("router"), "The router", list(titles)), None
        if name == COMPLEXITY:
            path = path_of(file)
        job = desk.fit_router(name, self.settings.given(name, values), path)
        words = f"{escape(titles[name])} is being fitted."
        if job.place:
            words += f" It waits for its turn: place {job.place} in the queue."
        gr.Info(words, title="Routers", duration=6)
        return name, {}

    @friendly
    def begin_all(self, request: gr.Request, token: Any) -> dict[str, Any]:
        """Queue the fits of all routers that need one, with the settings as they come."""
        desk = guard.acting_desk(self.studio, request, token)
        waiting = needing(desk.routers(), newest(router_jobs(desk.jobs())))
        for view in waiting:
            desk.fit_router(view.name)
        gr.Info(f"{text.count(len(waiting), 'router')} will be fitted, one after another.", title="Routers", duration=6)
        return {}

    @friendly
    def do_stop(self, request: gr.Request, seen: Any, token: Any) -> None:
        guard.acting_desk(self.studio, request, token).stop(self._on_display(seen))

    @friendly
    def do_cancel(self, request: gr.Request, seen: Any, token: Any) -> None:
        guard.acting_desk(self.studio, request, token).cancel(self._on_display(seen))

    def _on_display(self, seen: Any) -> str:
        """The id of the fit on display."""
        if not isinstance(seen, Mapping) or not seen.get("job"):
            raise JobError("No fit is on display. Choose a router in the list.")
        return str(seen["job"])
