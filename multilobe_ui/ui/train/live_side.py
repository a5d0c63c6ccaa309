"""Runs of training: the one on display with its curve and buttons, and the list of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import JobError
from ..kit import guard
from ..kit.changes import Changes
from ..kit.curves import PALETTE, RUN, compare_curves, loss_curves
from ..kit.guard import friendly
from ..kit.lobes import colours_of
from ..kit.pulse import QUICK, when_opened
from ..kit.static import script, scroll_to
from ..kit.table import bare, heading, pickable, shown, table
from .form import rate_hint
from .run_card import COLUMNS, EMPTY_CARD, NOTHING_YET, job_card, run_row, status_html, status_line
from .runs import STOP, buttons, curve_key, lobe_jobs, numbered, on_display, run_key

if TYPE_CHECKING:
    from ...app.desk import Desk
    from ...app.studio import Studio
    from ...app.views import JobView

MOST_RUNS = 50
MOST_COMPARED = 8
WIDTH = 15
"""Outputs of a look."""

Outputs = tuple[Any, ...]


class LiveSide:
    """The right side of the Train tab, and the list below. `shown` is the id of a run that was
    picked, `ticked` are those to be compared, `seen` is what the page shows already."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.acts: dict[str, Callable[[Desk, str], Any]] = {
            "stop": lambda desk, job: desk.stop(job),
            "resume": lambda desk, job: desk.resume(job),
            "cancel": lambda desk, job: desk.cancel(job),
            "forget": lambda desk, job: desk.forget(job),
            "earlier": lambda desk, job: desk.move(job, -1),
            "later": lambda desk, job: desk.move(job, 1),
        }

    def build(self) -> None:
        """Call it inside gr.Blocks, in the column where the run on display belongs."""
        self.token = guard.visitor()
        self.shown = gr.State("")
        self.ticked = gr.State([])
        self.seen = gr.State({})
        bare(heading("Live training", "It goes on if you close this page; come back any time."))
        self.card = bare(EMPTY_CARD, elem_id="train-card")
        self.plot = gr.Plot(
            show_label=False, label="Loss curves", container=False, visible=False, elem_id="train-plot",
            buttons=[],
        )  # fmt: skip
        self.status = bare(status_html(NOTHING_YET), elem_id="train-status")
        with gr.Row(elem_classes="train-actions"):
            small: dict[str, Any] = {"size": "sm", "visible": False, "min_width": 110}
            self.buttons = {
                "stop": gr.Button(STOP, variant="stop", elem_id="train-stop", **small),
                "resume": gr.Button("Resume", variant="primary", elem_id="train-resume", **small),
                "chat": gr.Button("Try it in Chat", variant="primary", elem_id="train-chat", **small),
                "earlier": gr.Button("Move up", elem_id="train-earlier", **small),
                "later": gr.Button("Move down", elem_id="train-later", **small),
                "cancel": gr.Button("Cancel", variant="stop", elem_id="train-cancel", **small),
                "forget": gr.Button("Remove from the list", elem_id="train-forget", **small),
            }

    def build_list(self) -> None:
        """Below both sides."""
        self.runs_heading = bare(visible=False, elem_id="train-runs-heading")
        self.runs = pickable(visible=False, elem_id="train-runs")
        self.compared = gr.Plot(
            show_label=False, label="Compared loss curves", container=False, visible=False,
            elem_id="train-compare", buttons=[],
        )  # fmt: skip

    def wire(self, learning_rate: Any) -> None:
        """`learning_rate` is the box of the form; below it the automatic rate is said."""
        private: dict[str, Any] = {
            "api_visibility": "private",
            "concurrency_limit": None,
            "show_progress": "hidden",
        }
        self.outputs = [
            self.status, self.card, self.plot, *self.buttons.values(), self.runs_heading, self.runs,
            self.compared, learning_rate, self.seen,
        ]  # fmt: skip
        self.looking: dict[str, Any] = {
            "fn": self.look, "inputs": [self.shown, self.ticked, self.seen, self.token],
            "outputs": self.outputs, **QUICK,
        }  # fmt: skip
        for verb in self.acts:
            done = self.buttons[verb].click(self.doing(verb), [self.seen, self.token], None, **private)
            done.success(**self.looking)
        self.buttons["chat"].click(None, js=script("go_to_chat"), api_visibility="private")
        self.runs.pick(self.pick, None, self.shown, **QUICK).then(**self.looking, js=scroll_to("#train-card"))
        self.runs.check(self.tick_run, self.ticked, self.ticked, **private).then(**self.looking)
        when_opened(self.look_anew, [self.shown, self.ticked, self.token], self.outputs)

    # ---- handlers: acting ------------------------------------------------------------------------

    def doing(self, verb: str) -> Callable[..., None]:
        """The handler of a button: do it to the run on display."""

        @friendly
        def act(request: gr.Request, seen: Any, token: Any) -> None:
            if not seen.get("job"):
                raise JobError("No run is on display. Choose one in the list of runs.")
            self.acts[verb](guard.acting_desk(self.studio, request, token), str(seen["job"]))

        return act

    @friendly(quiet=True)
    def pick(self, event: gr.EventData) -> str:
        """A row of the list was clicked: put that run on display."""
        return str(guard.event_value(event, "id"))

    @friendly
    def tick_run(self, ticked: Any, event: gr.EventData) -> list[str]:
        """A run was ticked or unticked for the comparison."""
        job, on = guard.event_value(event, "id"), guard.event_value(event, "on", bool)
        chosen = [id for id in ticked if id != job] + [job] * on
        if len(chosen) > MOST_COMPARED:
            words = f"{MOST_COMPARED} curves are the most; the first one chosen has been dropped."
            gr.Warning(words, duration=5)
        return chosen[-MOST_COMPARED:]

    # ---- handlers: looking -----------------------------------------------------------------------

    @friendly(quiet=True)
    def look_anew(self, request: gr.Request, shown: Any, ticked: Any, token: Any) -> Outputs:
        """For a page that has just been opened."""
        return self._view(request, shown, ticked, {}, token)

    @friendly(quiet=True)
    def look(self, request: gr.Request, shown: Any, ticked: Any, seen: Any, token: Any) -> Outputs:
        """What has changed since `seen`; reads only."""
        return self._view(request, shown, ticked, seen, token)

    def _view(
        self, request: gr.Request, shown: str, ticked: list[str], seen: dict[str, Any], token: Any
    ) -> Outputs:
        jobs = lobe_jobs(guard.desk(self.studio, request, token).jobs())
        job, rate = on_display(jobs, shown), self.studio.suggested_learning_rate()
        compared = [other for id in ticked for other in jobs if other.id == id]
        picked = ""
        if job is not None:
            picked = job.id
        keys = {
            "job": picked,
            "live": repr(job),
            "plot": [curve_key(job) for job in jobs if job.id == picked],
            "runs": (repr([run_key(other) for other in jobs]), picked, ticked),
            "compare": [curve_key(other) for other in compared],
            "rate": rate,
        }
        changes = Changes(keys, seen)
        if not changes:
            return (gr.skip(),) * WIDTH
        return (
            *changes.draw("live", self._live, job, width=2),
            *changes.draw("plot", self._plot, job),
            *changes.draw("live runs", buttons, job, jobs, width=7),
            *changes.draw("runs", self._runs, jobs, picked, ticked, width=2),
            *changes.draw("compare", self._compare, compared),
            *changes.draw("rate", _hinted, rate),
            keys,
        )

    def _live(self, job: JobView | None) -> Outputs:
        if job is None:
            return status_html(NOTHING_YET), EMPTY_CARD
        return status_html(status_line(job)), job_card(job)

    def _plot(self, job: JobView | None) -> Outputs:
        if job is None or not (records := self.studio.metrics(job.id)):
            return (gr.update(visible=False),)
        colour = colours_of(self.studio).get(job.name, RUN)
        return (
            gr.update(value=loss_curves(records, job.base_validation_loss, job.steps, colour), visible=True),
        )

    def _runs(self, jobs: Sequence[JobView], picked: str, ticked: Sequence[str]) -> Outputs:
        if not jobs:
            return gr.update(visible=False), gr.update(visible=False)
        colours = colours_of(self.studio)
        rows = [run_row(job, colours.get(job.name, "")) for job in jobs[:MOST_RUNS]]
        words = "Click one to see it above; tick several to compare their curves."
        if len(jobs) > MOST_RUNS:
            words += f" The newest {MOST_RUNS} of {len(jobs)}."
        listed = table(COLUMNS, rows, picked=picked, checked=ticked, tick="Compare")
        return shown(heading("All runs", words)), shown(listed)

    def _compare(self, jobs: Sequence[JobView]) -> Outputs:
        if not jobs:
            return (gr.update(visible=False),)
        known = colours_of(self.studio)
        runs: dict[str, Any] = {}
        colours: dict[str, str] = {}
        for number, job in enumerate(jobs):
            label = numbered(job.name, runs)
            runs[label] = self.studio.metrics(job.id)
            colours[label] = known.get(job.name, PALETTE[number])
            if list(colours.values()).count(colours[label]) > 1:  # as of another run of the same lobe
                colours[label] = PALETTE[number]
        return (gr.update(value=compare_curves(runs, colours), visible=True),)


def _hinted(rate: float | None) -> Outputs:
    return (gr.update(info=rate_hint(rate)),)
