"""One kind of experiment on the page: run it, watch it, stop it, look at its earlier runs, take the result away.

A section of the Lab tab draws its own controls, and hands its values to `wire`. As on the Train tab the job is the studio's:
load, tick and every click end in the same read-only `view`.
"""

from __future__ import annotations

import html
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...app.lab import EXPERIMENTS
from ...errors import JobError
from ..kit import guard, text
from ..kit.guard import friendly
from ..kit.static import script, stylesheets
from ..kit.table import bare, shown

if TYPE_CHECKING:
    from ...app.studio import JobView, Studio

Outputs = tuple[Any, ...]
Colours = Mapping[str, str]
Draw = Callable[[Mapping[str, Any], Colours], str]
"""(result, colour of every lobe) → HTML. Pure."""
Asked = tuple[Mapping[str, Any], Sequence[tuple[str, Path]]] | tuple[Mapping[str, Any], Sequence[tuple[str, Path]], str]
"""Settings of an experiment, its files as (what the person calls it, where it is), and perhaps the run whose rows to take."""

ACTIVE = ("running", "stopping")
WORKING = (*ACTIVE, "queued")
MOST_RUNS = 20


class ExperimentPanel:
    """Lays out run, stop, progress, result, downloads. Call `build`, then `wire`, inside gr.Blocks.

    Args:
        name: of `lab.EXPERIMENTS`. draw: makes the result. run: what the button says.
        live: draws something from the records of a run at work (a list of `Progress.to_json`); None shows only the bar.

    Attributes:
        result: the gr.HTML of the result; whatever has `data-row="…"` in it fires its `pick` event with {"id": "…"}.
        seen: gr.State of what is on display; `seen["job"]` is the run's id, "" without one.
    """

    def __init__(
        self,
        studio: Studio,
        name: str,
        draw: Draw,
        *,
        run: str = "Run",
        live: Callable[[Sequence[Mapping[str, Any]], Colours], str] | None = None,
    ) -> None:
        self.studio, self.name, self.draw, self.live = studio, name, draw, live
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
                [], label="Earlier runs", show_label=False, container=False, interactive=True, visible=False, min_width=180,
                elem_id=f"{place}-runs",
            )  # fmt: skip
            small: dict[str, Any] = {"size": "sm", "visible": False}
            self.page = gr.DownloadButton("Download report", elem_id=f"{place}-page", **small)
            self.data = gr.DownloadButton("Download data", elem_id=f"{place}-data", **small)
        self.progress = bare(visible=False, elem_id=f"{place}-progress")
        self.result = bare(visible=False, js_on_load=script("table"), elem_id=f"{place}-result")

    @property
    def outputs(self) -> list[Any]:
        """What `view` fills."""
        return [self.run, self.stop, self.cancel, self.runs, self.page, self.data, self.progress, self.result, self.seen]

    def wire(self, asked: Callable[..., Asked], inputs: Sequence[Any]) -> None:
        """Connect the buttons. `asked` turns the values of `inputs` into settings and files, or raises ConfigError."""
        quick: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
        private: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
        look: dict[str, Any] = {
            "fn": self.look, "inputs": [self.runs, self.seen, self.token], "outputs": self.outputs, **quick,
        }  # fmt: skip

        @friendly
        def begin(request: gr.Request, token: Any, *values: Any) -> tuple[Any, Any]:
            owner = guard.acting_owner(self.studio, request, token)
            settings, files, *rows_of = asked(*values)
            job = self.studio.lab.start(self.name, settings, files, owner, rows_of="".join(rows_of))
            if job.place and job.place > 1:
                gr.Info(f"It waits for its turn: place {job.place} in the queue.", title="Lab", duration=6)
            return gr.update(value=None), {}

        self.run.click(begin, [self.token, *inputs], [self.runs, self.seen], **private).success(**look)
        for button, act in ((self.stop, self.studio.stop), (self.cancel, self.studio.cancel)):
            button.click(self._ender(act), [self.seen, self.token], None, **private).success(**look)
        self.runs.input(**look)

    def _ender(self, act: Callable[[str, str], Any]) -> Any:
        @friendly
        def end(request: gr.Request, seen: Any, token: Any) -> None:
            job = seen.get("job") if isinstance(seen, Mapping) else None
            if not job:
                raise JobError("No run is on display.")
            act(job, guard.acting_owner(self.studio, request, token))

        return end

    @friendly(quiet=True)
    def look(self, request: gr.Request, picked: Any, seen: Any, token: Any) -> Outputs:
        return self.view(guard.owner_of(request, token), picked, seen)

    def view(self, owner: str, picked: Any, seen: Any) -> Outputs:
        """What has changed since `seen`; reads only."""
        seen = seen if isinstance(seen, Mapping) else {}
        jobs = self.studio.lab.runs(self.name, owner)[:MOST_RUNS]
        job = next((job for job in jobs if job.id == picked), jobs[0] if jobs else None)
        if job is not None and picked != job.id and jobs[0].state in WORKING:
            job = jobs[0]
        colours = {lobe.name: lobe.colour for lobe in self.studio.lobes()}
        keys = {
            "job": job.id if job else "",
            "runs": [(one.id, one.state, one.finished) for one in jobs],
            "bar": repr(job),
            "result": (job.id, job.state in WORKING) if job else None,
            "colours": colours,
        }
        changed = {key for key in keys if keys[key] != seen.get(key, ...)}
        if not changed:
            return (gr.skip(),) * len(self.outputs)
        progress = shown(self._bar(job, colours)) if "bar" in changed else gr.skip()
        runs = self._choices(jobs, job) if changed & {"runs", "job"} else gr.skip()
        result = downloads = gr.skip()
        pages: Outputs = (downloads, downloads)
        if changed & {"result", "colours"}:
            found = self.studio.lab.result(job.id) if job else None
            result = shown(self.draw(found, colours) if found else "")
            if "result" in changed:
                pages = self._downloads(job, found, colours)
        return (*self._buttons(job), runs, *pages, progress, result, keys)

    def _buttons(self, job: JobView | None) -> Outputs:
        """run, stop, cancel: those that would work, for those who may."""
        state = job.state if job else ""
        mine = job is not None and job.mine
        stopping = state == "stopping"
        return (
            gr.update(visible=state not in WORKING),
            gr.update(visible=mine and state in ACTIVE, interactive=not stopping, value="Stopping…" if stopping else "Stop"),
            gr.update(visible=mine and state == "queued"),
        )

    @staticmethod
    def _choices(jobs: Sequence[JobView], job: JobView | None) -> Any:
        """The dropdown of earlier runs, once there are two."""
        told = [(f"{text.when(one.created)}{'' if one.state == 'finished' else ', ' + one.state}", one.id) for one in jobs]
        return gr.update(choices=told, value=job.id if job else None, visible=len(told) > 1)

    def _bar(self, job: JobView | None, colours: Colours) -> str:
        """Progress of a run at work; why the last one failed. "" otherwise."""
        if job is None:
            return ""
        if job.state == "queued":
            return f'<p class="train-status">Waiting, place {job.place} in the queue.</p>'
        if job.state not in WORKING:
            failed = job.state in ("failed", "interrupted")
            said = job.error or "The app was closed during this run. Run it again."
            return f'<p class="train-warn">{text.escape(said)}</p>' if failed else ""
        percent = round(100 * job.step / job.steps) if job.steps else 0
        who = "" if job.mine else ' <span class="ml-faint">started by another visitor</span>'
        step = f", {job.step:,} of {job.steps:,}" if job.steps else ""
        live = self.live(self.studio.metrics(job.id), colours) if self.live else ""
        return (
            f'<div class="train-bar {text.escape(job.state)}" role="progressbar" aria-label="{text.escape(self.run_label)}" '
            f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent}"><div style="width:{percent}%"></div></div>'
            f'<p class="train-status">{text.escape(job.phase or "Starting")}{step}.{who}</p>{live}'
        )

    def _downloads(self, job: JobView | None, found: Mapping[str, Any] | None, colours: Colours) -> Outputs:
        """(the report as a page that needs nothing else, the numbers as JSON)."""
        if job is None or not found:
            return gr.update(visible=False), gr.update(visible=False)
        with tempfile.TemporaryDirectory(prefix="multilobe-report-") as scratch:
            page = Path(scratch) / f"multilobe-{self.name}-{job.created[:10]}.html"
            title = f"MultiLobe Lab: {EXPERIMENTS[self.name].title}"
            page.write_text(report_page(title, job.created, self.draw(found, colours)), "utf-8")
            data = page.with_suffix(".json")
            data.write_text(json.dumps(found, ensure_ascii=False, indent=1), "utf-8")
            paths = [guard.downloadable(path) for path in (page, data)]
        return tuple(gr.update(value=path, visible=True) for path in paths)


def report_page(title: str, created: str, body: str) -> str:
    """A result as a page that stands by itself: it opens without the app, and without a network. Pure."""
    said = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{said}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STAND_ALONE}{stylesheets()}</style></head>'
        f"<body><main><h1>{said}</h1><p>{html.escape(created[:16].replace('T', ' '))} UTC</p>{body}</main></body></html>"
    )


_STAND_ALONE = """
:root { --body-text-color: #171c20; --body-text-color-subdued: #5c666b; --border-color-primary: #dfe3de;
  --block-background-fill: #fff; --background-fill-secondary: #f6f7f4; --color-accent: #3450d6; --color-accent-soft: #eef1ff;
  --font: system-ui, sans-serif; --font-mono: ui-monospace, Menlo, monospace; }
body { margin: 0; background: #fff; color: var(--body-text-color); font: 16px/1.5 var(--font); }
main { max-width: 1100px; margin: 0 auto; padding: 24px; } h1 { font-size: 1.4rem; margin: 0; }
"""
