"""The Train tab: drop a file, see at once what is in it, start, and watch the loss fall.

The job lives in the studio, not here. Page load, timer tick and every click end in the same read-only handler, `look`, so
a reload, a second browser or another visitor sees the same run. What is chosen on this page (which run, which curves) is
lost with it, and cheap to choose again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import DataError, JobError, MultiLobeError
from ...settings import about, suggested_epochs
from ..kit import guard
from ..kit.curves import PALETTE, RUN, compare_curves, loss_curves
from ..kit.guard import friendly
from ..kit.html import Markup, escape
from ..kit.pulse import Pulse
from ..kit.static import script, scroll_to
from ..kit.table import bare, heading, pickable, shown, table
from .dataset_card import length_histogram, plan_line, refusal_card, report_card
from .form import SETTINGS, build_settings, free_name, rate_hint
from .overlap import OverlapCard
from .run_card import (
    COLUMNS,
    EMPTY_CARD,
    NOTHING_YET,
    job_card,
    run_row,
    status_html,
    status_line,
)  # fmt: skip
from .runs import STOP, buttons, curve_key, lobe_jobs, numbered, on_display, run_key

if TYPE_CHECKING:
    from ...app.studio import JobView, Studio
    from ...data.dataset import DatasetReport

Outputs = tuple[Any, ...]

MOST_RUNS = 50
MOST_COMPARED = 8
READY_SECONDS = 300


class TrainTab:
    """Lays out and wires the tab. Handlers take and return plain values and make one call on the studio."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.overlap = studio, OverlapCard(studio)

    def build(self) -> None:
        """Call it inside gr.Blocks, in the tab or column where it belongs."""
        self.token = guard.visitor()
        self.source = gr.State({})
        self.shown = gr.State("")
        self.ticked = gr.State([])
        self.seen = gr.State({})
        with gr.Row(elem_classes="train-row"):
            with gr.Column(scale=5, min_width=320):
                self._data_side()
            with gr.Column(scale=7, min_width=320):
                self._live_side()
        self._runs_side()
        self._wire()

    # ---- layout --------------------------------------------------------------------------------------------------

    def _data_side(self) -> None:
        bare(heading("Your examples", "A file of prompts and answers: JSONL, JSON, CSV or Parquet."))
        self.file = gr.File(
            label="Training file", file_types=[".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt"], type="filepath",
            height=180, elem_id="train-file",
        )  # fmt: skip
        bare(Markup('<p class="ml-faint train-or">or try one of ours</p>'))
        self.samples: dict[str, gr.Button] = {}
        with gr.Row(elem_classes="train-samples"):
            for domain in self.studio.sample_files():
                label = domain.replace("_", " ").capitalize()
                self.samples[domain] = gr.Button(label, size="sm", min_width=90, elem_id=f"train-sample-{domain}")
        self.report = bare(visible=False, elem_id="train-report")
        with gr.Row(visible=False) as self.mapping:
            shared: dict[str, Any] = {"choices": [], "interactive": True, "min_width": 140, "allow_custom_value": True}
            self.prompt_column = gr.Dropdown(label="Column with the prompt", elem_id="train-prompt-column", **shared)
            self.answer_column = gr.Dropdown(label="Column with the answer", elem_id="train-answer-column", **shared)
        self.lengths = bare(visible=False, elem_id="train-lengths")
        self.skip_bad = gr.Checkbox(label="Use the good rows only", visible=False, elem_id="train-skip-bad")
        self.name = gr.Textbox(
            label="Name of the new lobe", placeholder="Such as: Medicine", max_length=80, elem_id="train-name"
        )
        self.plan = bare(visible=False, elem_id="train-plan")
        self._settings_form()
        self.start = gr.Button("Start training", variant="primary", interactive=False, elem_id="train-start")
        self.overlap.build()

    def _settings_form(self) -> None:
        with gr.Accordion("Settings", open=False, elem_id="train-settings"), gr.Row(elem_classes="train-settings"):
            self.settings = build_settings()

    def _live_side(self) -> None:
        bare(heading("Live training", "It goes on if you close this page; come back any time."))
        self.card = bare(EMPTY_CARD, elem_id="train-card")
        self.plot = gr.Plot(
            show_label=False, label="Loss curves", container=False, visible=False, elem_id="train-plot", buttons=[]
        )
        self.status = bare(status_html(NOTHING_YET), elem_id="train-status")
        with gr.Row(elem_classes="train-actions"):
            small: dict[str, Any] = {"size": "sm", "visible": False, "min_width": 110}
            self.stop = gr.Button(STOP, variant="stop", elem_id="train-stop", **small)
            self.resume = gr.Button("Resume", variant="primary", elem_id="train-resume", **small)
            self.chat = gr.Button("Try it in Chat", variant="primary", elem_id="train-chat", **small)
            self.earlier = gr.Button("Move up", elem_id="train-earlier", **small)
            self.later = gr.Button("Move down", elem_id="train-later", **small)
            self.cancel = gr.Button("Cancel", variant="stop", elem_id="train-cancel", **small)
            self.forget = gr.Button("Remove from the list", elem_id="train-forget", **small)

    def _runs_side(self) -> None:
        self.runs_heading = bare(visible=False, elem_id="train-runs-heading")
        self.runs = pickable(visible=False, elem_id="train-runs")
        self.compared = gr.Plot(
            show_label=False, label="Compared loss curves", container=False, visible=False, elem_id="train-compare",
            buttons=[],
        )  # fmt: skip

    # ---- wiring --------------------------------------------------------------------------------------------------

    def _wire(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
        quick: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
        report = [
            self.report, self.lengths, self.mapping, self.prompt_column, self.answer_column, self.skip_bad, self.name,
            self.start, self.source,
        ]  # fmt: skip
        known = [self.name, self.source, self.settings["max_length"]]
        self.file.upload(self.use_file, [self.file, *known], report, show_progress_on=self.file, **private)
        self.file.clear(self.use_nothing, None, report, **quick)
        for domain, button in self.samples.items():
            button.click(self._sampler(domain), known, [self.file, *report], show_progress="hidden", **private)
        columns = [self.prompt_column, self.answer_column]
        for column in columns:
            column.input(self.use_columns, [*columns, *known], report, show_progress="hidden", **private)
        share, keep = self.settings["validation_fraction"], self.settings["keep"]
        for changed in (self.source.change, share.change, keep.change):
            changed(self.show_plan, [self.source, share, keep], [self.plan, self.settings["epochs"]], **quick)
        self.skip_bad.input(self.allow_start, [self.skip_bad, self.source], self.start, **quick)
        self.overlap.wire(self.source, self.settings["validation_fraction"], self.settings["seed"], self.file)
        limit = self.settings["max_length"]
        limit.input(self.show_lengths, [limit, self.source], self.lengths, **quick)

        view = [
            self.status, self.card, self.plot, self.stop, self.resume, self.chat, self.earlier, self.later, self.cancel,
            self.forget, self.runs_heading, self.runs, self.compared, self.settings["learning_rate"], self.seen,
        ]  # fmt: skip
        look: dict[str, Any] = {
            "fn": self.look, "inputs": [self.shown, self.ticked, self.seen, self.token], "outputs": view, **quick
        }  # fmt: skip
        form = [self.settings[of.name] for of in SETTINGS]
        asked = [self.source, self.name, self.skip_bad, self.token, *form]
        self.start.click(self.begin, asked, [self.shown, self.seen], **private).success(**look, js=scroll_to("#train-card"))
        acts: dict[gr.Button, Callable[..., Any]] = {
            self.stop: self.do_stop, self.resume: self.do_resume, self.cancel: self.do_cancel,
            self.earlier: self.do_earlier, self.later: self.do_later, self.forget: self.do_forget,
        }  # fmt: skip
        for button, act in acts.items():
            done = button.click(act, [self.seen, self.token], None, show_progress="hidden", **private)
            done.success(**look)
        self.chat.click(None, js=script("go_to_chat"), api_visibility="private")
        self.runs.pick(self.pick, None, self.shown, **quick).then(**look, js=scroll_to("#train-card"))
        self.runs.check(self.tick_run, self.ticked, self.ticked, show_progress="hidden", **private).then(**look)
        self.looking = look
        root = gr.context.Context.root_block
        if root is not None:
            # A fresh page knows nothing, whatever the server's session remembers: everything is drawn anew.
            inputs = [self.shown, self.ticked, self.token]
            root.load(self.look_anew, inputs, view, **quick)  # type: ignore[attr-defined]

    def watch(self, pulse: Pulse) -> None:
        """Look whenever something has changed that the tab shows."""
        pulse.when(self.shows)(**self.looking)

    def shows(self) -> object:
        return lobe_jobs(self.studio.jobs()), self.studio.suggested_learning_rate()

    # ---- handlers: data ------------------------------------------------------------------------------------------

    @friendly
    def use_file(self, path: Any, name: Any, source: Any, limit: Any) -> Iterator[Outputs]:
        """A file was dropped."""
        file = guard.an_upload(path)
        yield from self._report(file, file.name, None, name, source, limit)

    @friendly
    def use_sample(self, domain: str, name: Any, source: Any, limit: Any) -> Iterator[Outputs]:
        """One of our own data sets; the dropped file, if any, makes way."""
        files = self.studio.sample_files()
        file = files[guard.a_choice(domain, "The sample", list(files))]
        for outputs in self._report(file, file.name, None, name, source, limit):
            yield (None, *outputs)

    @friendly
    def use_columns(self, prompt: Any, answer: Any, name: Any, source: Any, limit: Any) -> Iterator[Outputs]:
        """The person said which column is what."""
        if not source.get("path") or not prompt or not answer or prompt == answer:
            yield (gr.skip(),) * 9
            return
        chosen = {"prompt": prompt, "answer": answer}
        mapping = {role: guard.a_text(column, f"The {role} column", 1000) for role, column in chosen.items()}
        yield from self._report(Path(source["path"]), source["label"], mapping, name, source, limit)

    @friendly(quiet=True)
    def use_nothing(self) -> Outputs:
        """The file was taken away."""
        hidden = gr.update(visible=False)
        return (hidden, hidden, hidden, gr.skip(), gr.skip(), hidden, "", gr.update(interactive=False), {})

    @friendly(quiet=True)
    def show_plan(self, source: Any, share: Any, keep: Any) -> tuple[Any, Any]:
        """What will be trained, held out and kept, in a line; and how many passes that is where nobody says otherwise."""
        held_out = source.get("held_out")
        if not source.get("rows") or held_out is None:
            return gr.update(visible=False), gr.update(info=about(SETTINGS[0]).help)
        asked = guard.a_share(share)
        trained = held_out.rows - (held_out.count if asked is None else round(asked * held_out.rows))
        epochs = f"How often all rows are read. Empty: automatic, {suggested_epochs(trained)} for these."
        return shown(plan_line(held_out, asked, guard.a_choice(keep, "Keep", guard.KEEPS))), gr.update(info=epochs)

    @friendly(quiet=True)
    def allow_start(self, skip_bad: Any, source: Any) -> Any:
        return gr.update(interactive=_can_start(source, bool(skip_bad)))

    @friendly(quiet=True)
    def show_lengths(self, limit: Any, source: Any) -> Any:
        return shown(length_histogram(source.get("lengths", ()), limit, source.get("rows", 0)))

    def _sampler(self, domain: str) -> Callable[..., Iterator[Outputs]]:
        def use(name: Any, source: Any, limit: Any) -> Iterator[Outputs]:
            yield from self.use_sample(domain, name, source, limit)

        return use

    def _report(
        self, path: Path, label: str, mapping: dict[str, str] | None, name: Any, source: Any, limit: Any
    ) -> Iterator[Outputs]:
        """What is in the file, at once; and once more with token lengths when the base has come up."""
        try:
            seen = self.studio.inspect(path, mapping)
        except DataError as error:
            yield self._refused(error, path, label, mapping)
            return
        except MultiLobeError as error:
            yield self._refused(DataError(str(error)), path, label, mapping)
            return
        yield self._accepted(seen, path, label, mapping, name, source, limit)
        if seen.rows and not seen.token_lengths:
            try:
                self.studio.wait_ready(READY_SECONDS)
                seen = self.studio.inspect(path, mapping)
            except MultiLobeError:
                return
            yield (gr.skip(), shown(length_histogram(seen.token_lengths, limit, seen.rows)), *[gr.skip()] * 7)

    def _accepted(
        self, seen: DatasetReport, path: Path, label: str, mapping: Any, name: Any, source: Any, limit: Any
    ) -> Outputs:
        suggested = name if name and name != source.get("suggested") else self._free_name(label)
        found = {
            "path": str(path), "label": label, "mapping": mapping, "rows": seen.rows, "bad": seen.bad_rows,
            "lengths": seen.token_lengths, "suggested": suggested, "held_out": seen.held_out,
        }  # fmt: skip
        skip = gr.update(visible=bool(seen.bad_rows and seen.rows), value=False)
        known = gr.update(visible=True) if mapping else gr.update(visible=False)
        return (
            shown(report_card(seen, label)), shown(length_histogram(seen.token_lengths, limit, seen.rows)),
            known, gr.skip(), gr.skip(), skip, suggested, gr.update(interactive=_can_start(found, False)), found,
        )  # fmt: skip

    def _refused(self, error: DataError, path: Path, label: str, mapping: Any) -> Outputs:
        columns = list(error.columns)
        asked = bool(columns or mapping)
        found = {"path": str(path), "label": label, "rows": 0} if asked else {}
        choices = gr.update(choices=columns, value=None) if columns else gr.skip()
        hidden = gr.update(visible=False)
        card = refusal_card(error, label)
        start = gr.update(interactive=False)
        return (shown(card), hidden, gr.update(visible=asked), choices, choices, hidden, gr.skip(), start, found)

    def _free_name(self, label: str) -> str:
        """A name from the file's name that no lobe and no run has, so that Start works at once."""
        return free_name(label, [*(l.name for l in self.studio.lobes()), *(j.name for j in lobe_jobs(self.studio.jobs()))])

    # ---- handlers: jobs ------------------------------------------------------------------------------------------

    @friendly
    def begin(
        self, request: gr.Request, source: Any, name: Any, skip_bad: Any, token: Any, *settings: Any
    ) -> tuple[str, dict[str, Any]]:
        """Queue a job and put it on display; the form stays as it is, for another run with other settings."""
        owner = guard.acting_owner(self.studio, request, token)
        if not source.get("path"):
            raise DataError("There is no data yet. Drop a file, or choose one of the samples.")
        config = guard.training_config(dict(zip((of.name for of in SETTINGS), settings, strict=True)))
        job = self.studio.train(
            guard.a_text(name, "The name of the lobe", 80), Path(source["path"]), config,
            mapping=source.get("mapping"), skip_bad=guard.a_flag(skip_bad, "Use the good rows only"), owner=owner,
        )  # fmt: skip
        waits = f" It waits for its turn: place {job.place} in the queue." if job.place else ""
        gr.Info(f"Training of {escape(job.name)} has been started.{waits}", title="Training", duration=6)
        return job.id, {}

    @friendly
    def do_stop(self, request: gr.Request, seen: Any, token: Any) -> None:
        self.studio.stop(*self._acting(request, seen, token))

    @friendly
    def do_resume(self, request: gr.Request, seen: Any, token: Any) -> None:
        self.studio.resume(*self._acting(request, seen, token))

    @friendly
    def do_cancel(self, request: gr.Request, seen: Any, token: Any) -> None:
        self.studio.cancel(*self._acting(request, seen, token))

    @friendly
    def do_forget(self, request: gr.Request, seen: Any, token: Any) -> None:
        self.studio.forget(*self._acting(request, seen, token))

    @friendly
    def do_earlier(self, request: gr.Request, seen: Any, token: Any) -> None:
        job, owner = self._acting(request, seen, token)
        self.studio.move(job, -1, owner)

    @friendly
    def do_later(self, request: gr.Request, seen: Any, token: Any) -> None:
        job, owner = self._acting(request, seen, token)
        self.studio.move(job, 1, owner)

    def _acting(self, request: gr.Request, seen: Any, token: Any) -> tuple[str, str]:
        """(the run on display, who asks)."""
        if not seen.get("job"):
            raise JobError("No run is on display. Choose one in the list of runs.")
        return seen["job"], guard.acting_owner(self.studio, request, token)

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
            gr.Warning(f"{MOST_COMPARED} curves are the most; the first one chosen has been dropped.", duration=5)
        return chosen[-MOST_COMPARED:]

    # ---- handlers: looking ---------------------------------------------------------------------------------------

    @friendly(quiet=True)
    def look_anew(self, request: gr.Request, shown: Any, ticked: Any, token: Any) -> Outputs:
        """For a page that has just been opened."""
        return self._view(request, shown, ticked, {}, token)

    @friendly(quiet=True)
    def look(self, request: gr.Request, shown: Any, ticked: Any, seen: Any, token: Any) -> Outputs:
        """What has changed since `seen`; reads only."""
        return self._view(request, shown, ticked, seen, token)

    def _view(self, request: gr.Request, shown: str, ticked: list[str], seen: dict[str, Any], token: Any) -> Outputs:
        jobs = lobe_jobs(self.studio.jobs(guard.owner_of(request, token)))
        job = on_display(jobs, shown)
        rate = self.studio.suggested_learning_rate()
        compared = [other for id in ticked for other in jobs if other.id == id]
        keys = {
            "job": job.id if job else "",
            "live": repr(job),
            "plot": job and curve_key(job),
            "runs": (repr([run_key(other) for other in jobs]), job and job.id, ticked),
            "compare": [curve_key(other) for other in compared],
            "rate": rate,
        }
        changed = {key for key in keys if keys[key] != seen.get(key, ...)}
        if not changed:
            return (gr.skip(),) * 15
        live = self._live(job, len(jobs)) if "live" in changed else (gr.skip(),) * 2
        acts = buttons(job, jobs) if changed & {"live", "runs"} else (gr.skip(),) * 7
        plot = self._plot(job) if "plot" in changed else gr.skip()
        runs = self._runs(jobs, job, ticked) if "runs" in changed else (gr.skip(),) * 2
        compare = self._compare(compared) if "compare" in changed else gr.skip()
        hint = gr.update(info=rate_hint(rate)) if "rate" in changed else gr.skip()
        return (*live, plot, *acts, *runs, compare, hint, keys)

    def _live(self, job: JobView | None, count: int) -> tuple[str, str]:
        if job is None:
            return status_html(NOTHING_YET), EMPTY_CARD
        return status_html(status_line(job)), job_card(job)

    def _plot(self, job: JobView | None) -> Any:
        records = self.studio.metrics(job.id) if job else []
        if job is None or not records:
            return gr.update(visible=False)
        colour = self._colours().get(job.name, RUN)
        return gr.update(value=loss_curves(records, job.base_validation_loss, job.steps, colour), visible=True)

    def _colours(self) -> dict[str, str]:
        return {lobe.name: lobe.colour for lobe in self.studio.lobes()}

    def _runs(self, jobs: Sequence[JobView], job: JobView | None, ticked: Sequence[str]) -> tuple[Any, Any]:
        if not jobs:
            return gr.update(visible=False), gr.update(visible=False)
        colours = self._colours()
        rows = [run_row(other, colours.get(other.name, "")) for other in jobs[:MOST_RUNS]]
        more = f" The newest {MOST_RUNS} of {len(jobs)}." if len(jobs) > MOST_RUNS else ""
        title = heading("All runs", f"Click one to see it above; tick several to compare their curves.{more}")
        listed = table(COLUMNS, rows, picked=job.id if job else "", checked=ticked, tick="Compare")
        return shown(title), shown(listed)

    def _compare(self, jobs: Sequence[JobView]) -> Any:
        if not jobs:
            return gr.update(visible=False)
        known = self._colours()
        runs: dict[str, Any] = {}
        colours: dict[str, str] = {}
        for number, job in enumerate(jobs):
            label = numbered(job.name, runs)
            runs[label] = self.studio.metrics(job.id)
            taken = known.get(job.name) in colours.values()
            colours[label] = PALETTE[number] if taken else known.get(job.name, PALETTE[number])
        return gr.update(value=compare_curves(runs, colours), visible=True)


def _can_start(source: dict[str, Any], skip_bad: bool) -> bool:
    return bool(source.get("rows")) and (not source.get("bad") or skip_bad)
