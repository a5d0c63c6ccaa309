"""One kind of experiment on the page: run it, watch it, stop it, look at its earlier runs, take the
result away.

A section of the Lab tab draws its own controls, and hands its values to `wire`. As on the Train tab
the job is the studio's: load, tick and every click end in the same read-only `view`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...app.desk import Desk
from ...app.lab import EXPERIMENTS
from ...errors import JobError
from ...evaluation.frames import FRAMES
from ..kit import guard, text
from ..kit.frames import frame_csv
from ..kit.guard import friendly
from ..kit.html import Markup, html
from ..kit.lobes import colours_of
from ..kit.static import script
from ..kit.table import bare, shown
from .drawing import Drawing
from .parts import Colours, Result

if TYPE_CHECKING:
    from ...app.studio import Studio
    from ...app.views import JobView

Outputs = tuple[Any, ...]
Asked = tuple[Mapping[str, Any], Sequence[tuple[str, Path]]] | tuple[Mapping[str, Any], Sequence[tuple[str, Path]], str]
"""Settings of an experiment, its files as (what the person calls it, where it is), and perhaps the
run whose rows to take."""

ACTIVE = ("running", "stopping")
WORKING = (*ACTIVE, "queued")
MOST_RUNS = 20


class ExperimentPanel:
    """Lays out run, stop, progress, result, downloads. Call `build`, then `wire`, inside gr.Blocks.

    Args:
        name: of `lab.EXPERIMENTS`. drawing: makes the result. run: what the button says.

    Attributes:
        result: the gr.HTML of the result; whatever has `data-row="…"` in it fires its `pick` event
            with {"id": "…"}.
        seen: gr.State of what is on display; `seen["job"]` is the run's id, "" without one.
    """

    def __init__(self, studio: Studio, name: str, drawing: Drawing, *, run: str) -> None:
        self.studio, self.name, self.drawing = studio, name, drawing
        self.run_label = run

    def build(self) -> None:
        self.token = guard.visitor()
        self.seen = gr.State({})
        place = f"lab-{self.name}"
        with gr.Row(elem_classes="train-actions lab-actions"):
            self.run = gr.Button(self.run_label, variant="primary", elem_id=f"{place}-run")
            self.stop = gr.Button("Stop", variant="stop", visible=False, elem_id=f"{place}-stop")
            self.cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id=f"{place}-cancel")
            self.runs = gr.Dropdown(
                [], label="Earlier runs", show_label=False, container=False, interactive=True, visible=False,
                min_width=180, elem_id=f"{place}-runs",
            )  # fmt: skip
            small: dict[str, Any] = {"size": "sm", "visible": False}
            self.page = gr.DownloadButton("Download report", elem_id=f"{place}-page", **small)
            self.data = gr.DownloadButton("Download data", elem_id=f"{place}-data", **small)
            self.table = gr.DownloadButton("Download table", elem_id=f"{place}-table", **small)
        self.progress = bare(visible=False, elem_id=f"{place}-progress")
        self.result = bare(visible=False, js_on_load=script("table"), elem_id=f"{place}-result")
        self.figure = chart(f"{place}-figure")
        self.below = bare(visible=False, elem_id=f"{place}-below")

    @property
    def outputs(self) -> list[Any]:
        """What `view` fills."""
        downloads = [self.table, self.page, self.data]
        drawn = [self.figure, self.below, *downloads, self.progress, self.result]
        return [self.run, self.stop, self.cancel, self.runs, *drawn, self.seen]

    def wire(self, asked: Callable[..., Asked], inputs: Sequence[Any]) -> None:
        """Connect the buttons. `asked` turns the values of `inputs` into settings and files, or
        raises ConfigError."""
        quick: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
        private: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
        look: dict[str, Any] = {
            "fn": self.look, "inputs": [self.runs, self.seen, self.token], "outputs": self.outputs, **quick,
        }  # fmt: skip

        @friendly
        def begin(request: gr.Request, token: Any, *values: Any) -> tuple[Any, Any]:
            desk = guard.acting_desk(self.studio, request, token)
            settings, files, *rows_of = asked(*values)
            job = desk.lab.start(self.name, settings, files, rows_of="".join(rows_of))
            if job.place and job.place > 1:
                gr.Info(f"It waits for its turn: place {job.place} in the queue.", title="Lab", duration=6)
            return gr.update(value=None), {}

        self.run.click(begin, [self.token, *inputs], [self.runs, self.seen], **private).success(**look)
        for button, act in ((self.stop, Desk.stop), (self.cancel, Desk.cancel)):
            button.click(self._ender(act), [self.seen, self.token], None, **private).success(**look)
        self.runs.input(**look)

    def _ender(self, act: Callable[[Desk, str], Any]) -> Any:
        @friendly
        def end(request: gr.Request, seen: Any, token: Any) -> None:
            job = seen.get("job") if isinstance(seen, Mapping) else None
            if not job:
                raise JobError("No run is on display.")
            act(guard.acting_desk(self.studio, request, token), job)

        return end

    @friendly(quiet=True)
    def look(self, request: gr.Request, picked: Any, seen: Any, token: Any) -> Outputs:
        return self.view(guard.desk(self.studio, request, token), picked, seen)

    def view(self, desk: Desk, picked: Any, seen: Any) -> Outputs:
        """What has changed since `seen`; reads only."""
        seen = seen if isinstance(seen, Mapping) else {}
        jobs = desk.lab.runs(self.name)[:MOST_RUNS]
        # the newest, unless another was picked
        job = next((job for job in jobs if job.id == picked), next(iter(jobs), None))
        colours = colours_of(self.studio)
        keys: dict[str, Any] = {
            "job": "",
            "runs": [(one.id, one.state, one.finished) for one in jobs],
            "bar": repr(job),
            "result": None,
            "colours": colours,
        }
        if job is not None:
            keys |= {"job": job.id, "result": (job.id, job.state in WORKING)}
        changed = {key for key in keys if keys[key] != seen.get(key, ...)}
        if not changed:
            return (gr.skip(),) * len(self.outputs)
        progress = runs = result = figure = below = gr.skip()
        downloads: Outputs = (gr.skip(),) * 3
        if "bar" in changed:
            progress = shown(self._bar(job, colours))
        if changed & {"runs", "job"}:
            runs = self._choices(jobs, job)
        if changed & {"result", "colours"}:
            result, figure, below = self._drawn(job, colours)
        if "result" in changed:
            downloads = self._downloads(job, colours)
        if job and job.state in ACTIVE and "bar" in changed:
            figure = shown_figure(self.drawing.live_figure(self.studio.metrics(job.id)))
        return (*self._buttons(job), runs, figure, below, *downloads, progress, result, keys)

    def _drawn(self, job: JobView | None, colours: Colours) -> Outputs:
        """result, figure, below."""
        found = self._result(job)
        if not found:
            return shown(""), shown_figure(None), shown("")
        drawing = self.drawing
        return (
            shown(drawing.card(found, colours)), shown_figure(drawing.figure(found, colours)),
            shown(drawing.below(found, colours)),
        )  # fmt: skip

    def _result(self, job: JobView | None) -> Result | None:
        if job is None:
            return None
        return self.studio.lab.result(job.id)

    def _buttons(self, job: JobView | None) -> Outputs:
        """run, stop, cancel: those that would work, for those who may."""
        if job is None:
            return gr.update(visible=True), gr.update(visible=False), gr.update(visible=False)
        label = "Stop"
        if job.state == "stopping":
            label = "Stopping…"
        return (
            gr.update(visible=job.state not in WORKING),
            gr.update(visible=job.mine and job.state in ACTIVE, interactive=job.state != "stopping", value=label),
            gr.update(visible=job.mine and job.state == "queued"),
        )

    @staticmethod
    def _choices(jobs: Sequence[JobView], job: JobView | None) -> Any:
        """The dropdown of earlier runs, once there are two."""
        shown_run = None
        if job is not None:
            shown_run = job.id
        choices = [(_when(one), one.id) for one in jobs]
        return gr.update(choices=choices, value=shown_run, visible=len(choices) > 1)

    def _bar(self, job: JobView | None, colours: Colours) -> Markup:
        """Progress of a run at work; why the last one failed. Empty otherwise."""
        if job is None or job.state not in (*WORKING, "failed", "interrupted"):
            return Markup()
        if job.state == "queued":
            return html('<p class="train-status">Waiting, place {} in the queue.</p>', job.place)
        if job.state not in ACTIVE:
            return html(
                '<p class="train-warn">{}</p>',
                job.error or "The app was closed during this run. Run it again."
            )
        percent = round(100 * job.step / max(1, job.steps or 0))
        who, step = Markup(), ""
        if not job.mine:
            who = Markup(' <span class="ml-faint">started by another visitor</span>')
        if job.steps:
            step = f", {job.step:,} of {job.steps:,}"
        return html(
            '<div class="train-bar {}" role="progressbar" aria-label="{}" aria-valuemin="0" '
            'aria-valuemax="100" aria-valuenow="{}"><div style="width:{}%"></div></div><p '
            'class="train-status">{}{}.{}</p>{}', job.state, self.run_label, percent, percent,
            job.phase or "Starting", step, who, self.drawing.live(self.studio.metrics(job.id), colours),
        )  # fmt: skip

    def _downloads(self, job: JobView | None, colours: Colours) -> Outputs:
        """The table as CSV, the result as a page that needs nothing else, its numbers as JSON."""
        found = self._result(job)
        if job is None or not found:
            return (gr.update(visible=False),) * 3
        title = f"MultiLobe Lab: {EXPERIMENTS[self.name].title}"
        files = {
            "html": self.drawing.page(title, job.created, found, colours),
            "json": json.dumps(found, ensure_ascii=False, indent=1),
        }
        if self.name in FRAMES:
            files["csv"] = frame_csv(FRAMES[self.name](found))
        name = f"multilobe-{self.name}-{job.created[:10]}"
        return tuple(_offered(f"{name}.{kind}", files.get(kind)) for kind in ("csv", "html", "json"))


def _when(job: JobView) -> str:
    """When a run was begun, and how it is if it has not finished."""
    if job.state == "finished":
        return text.when(job.created)
    return f"{text.when(job.created)}, {job.state}"


def _offered(name: str, content: str | None) -> Any:
    """A download of this content; hidden where there is none."""
    if content is None:
        return gr.update(visible=False)
    with tempfile.TemporaryDirectory(prefix="multilobe-report-") as scratch:
        path = Path(scratch) / name
        path.write_text(content, "utf-8", errors="replace", newline="")
        return gr.update(value=guard.downloadable(path), visible=True)


def chart(place: str) -> gr.Plot:
    """An empty figure; `place` is its id on the page."""
    return gr.Plot(
        show_label=False,
        label="Figure",
        container=False,
        visible=False,
        buttons=[],
        elem_id=place,
        elem_classes="lab-figure",
    )


def shown_figure(figure: Any) -> Any:
    """An update that shows this figure, or takes its place away."""
    return gr.update(value=figure, visible=figure is not None)
