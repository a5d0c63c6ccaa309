"""What is to be trained, and how: a file or a sample, what is in it, the new lobe's name, and the
settings."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...assets import sample_files
from ...errors import DataError, MultiLobeError
from ...settings import about, suggested_epochs
from ..kit import guard
from ..kit.guard import friendly
from ..kit.html import Markup
from ..kit.pulse import QUICK
from ..kit.table import bare, heading, shown
from .dataset_card import length_histogram, plan_line, refusal_card, report_card
from .form import SETTINGS, build_settings, free_name
from .overlap import OverlapCard
from .runs import lobe_jobs

if TYPE_CHECKING:
    from ...app.studio import Studio
    from ...data.dataset import DatasetReport

READY_SECONDS = 300

Outputs = tuple[Any, ...]


class DataSide:
    """The left side of the Train tab. `source` is what is known of the data on display, {} before
    there are any."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.overlap = studio, OverlapCard(studio)

    def build(self) -> None:
        """Call it inside gr.Blocks, in the column where it belongs."""
        self.source = gr.State({})
        bare(heading("Your examples", "A file of prompts and answers: JSONL, JSON, CSV or Parquet."))
        self.file = gr.File(
            label="Training file", file_types=[".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt"],
            type="filepath", height=180, elem_id="train-file",
        )  # fmt: skip
        bare(Markup('<p class="ml-faint train-or">or try one of ours</p>'))
        self.samples: dict[str, gr.Button] = {}
        with gr.Row(elem_classes="train-samples"):
            for domain in sample_files():
                label = domain.replace("_", " ").capitalize()
                self.samples[domain] = gr.Button(
                    label, size="sm", min_width=90, elem_id=f"train-sample-{domain}"
                )
        self.report = bare(visible=False, elem_id="train-report")
        with gr.Row(visible=False) as self.mapping:
            shared: dict[str, Any] = {
                "choices": [],
                "interactive": True,
                "min_width": 140,
                "allow_custom_value": True,
            }
            self.prompt_column = gr.Dropdown(
                label="Column with the prompt", elem_id="train-prompt-column", **shared
            )
            self.answer_column = gr.Dropdown(
                label="Column with the answer", elem_id="train-answer-column", **shared
            )
        self.lengths = bare(visible=False, elem_id="train-lengths")
        self.skip_bad = gr.Checkbox(label="Use the good rows only", visible=False, elem_id="train-skip-bad")
        self.name = gr.Textbox(
            label="Name of the new lobe", placeholder="Such as: Medicine", max_length=80, elem_id="train-name"
        )
        self.plan = bare(visible=False, elem_id="train-plan")
        with (
            gr.Accordion("Settings", open=False, elem_id="train-settings"),
            gr.Row(elem_classes="train-settings"),
        ):
            self.settings = build_settings()
        self.start = gr.Button("Start training", variant="primary", interactive=False, elem_id="train-start")
        self.overlap.build()
        self._wire()

    @property
    def inputs(self) -> list[Any]:
        """What a training is started with: source, name, whether bad rows are left out, and the settings."""
        return [self.source, self.name, self.skip_bad, *self.settings.values()]

    def _wire(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
        report = [
            self.report, self.lengths, self.mapping, self.prompt_column, self.answer_column, self.skip_bad,
            self.name, self.start, self.source,
        ]  # fmt: skip
        known = [self.name, self.source, self.settings["max_length"]]
        self.file.upload(self.use_file, [self.file, *known], report, show_progress_on=self.file, **private)
        self.file.clear(self.use_nothing, None, report, **QUICK)
        for domain, button in self.samples.items():
            button.click(
                partial(self.use_sample, domain), known, [self.file, *report], show_progress="hidden",
                **private,
            )  # fmt: skip
        columns = [self.prompt_column, self.answer_column]
        for column in columns:
            column.input(self.use_columns, [*columns, *known], report, show_progress="hidden", **private)
        share, keep = self.settings["validation_fraction"], self.settings["keep"]
        for changed in (self.source.change, share.change, keep.change):
            changed(self.show_plan, [self.source, share, keep], [self.plan, self.settings["epochs"]], **QUICK)
        self.skip_bad.input(self.allow_start, [self.skip_bad, self.source], self.start, **QUICK)
        self.overlap.wire(self.source, share, self.settings["seed"], self.file)
        limit = self.settings["max_length"]
        limit.input(self.show_lengths, [limit, self.source], self.lengths, **QUICK)

    # ---- handlers --------------------------------------------------------------------------------

    @friendly
    def use_file(self, path: Any, name: Any, source: Any, limit: Any) -> Iterator[Outputs]:
        """A file was dropped."""
        file = guard.an_upload(path)
        yield from self._report(file, file.name, None, name, source, limit)

    @friendly
    def use_sample(self, domain: str, name: Any, source: Any, limit: Any) -> Iterator[Outputs]:
        """One of our own data sets; the dropped file, if any, makes way."""
        files = sample_files()
        file = files[guard.a_choice(domain, "The sample", list(files))]
        for outputs in self._report(file, file.name, None, name, source, limit):
            yield (None, *outputs)

    @friendly
    def use_columns(self, prompt: Any, answer: Any, name: Any, source: Any, limit: Any) -> Iterator[Outputs]:
        """The person said which column is what."""
        if not source.get("path") or not prompt or not answer or prompt == answer:
            yield (gr.skip(),) * 9
            return
        columns = {"prompt": prompt, "answer": answer}
        mapping = {role: guard.a_text(column, f"The {role} column", 1000) for role, column in columns.items()}
        yield from self._report(Path(source["path"]), source["label"], mapping, name, source, limit)

    @friendly(quiet=True)
    def use_nothing(self) -> Outputs:
        """The file was taken away."""
        hidden = gr.update(visible=False)
        return (hidden, hidden, hidden, gr.skip(), gr.skip(), hidden, "", gr.update(interactive=False), {})

    @friendly(quiet=True)
    def show_plan(self, source: Any, share: Any, keep: Any) -> tuple[Any, Any]:
        """What will be trained, held out and kept, in a line; and how many passes that is where
        nobody says otherwise."""
        held_out = source.get("held_out")
        if not source.get("rows") or held_out is None:
            return gr.update(visible=False), gr.update(info=about(SETTINGS[0]).help)
        fraction, count = guard.a_share(share), held_out.count
        if fraction is not None:
            count = round(fraction * held_out.rows)
        epochs = suggested_epochs(held_out.rows - count)
        plan = plan_line(held_out, fraction, guard.a_choice(keep, "Keep", guard.KEEPS))
        return shown(plan), gr.update(
            info=f"How often all rows are read. Empty: automatic, {epochs} for these."
        )

    @friendly(quiet=True)
    def allow_start(self, skip_bad: Any, source: Any) -> Any:
        return gr.update(interactive=_can_start(source, bool(skip_bad)))

    @friendly(quiet=True)
    def show_lengths(self, limit: Any, source: Any) -> Any:
        return shown(length_histogram(source.get("lengths", ()), limit, source.get("rows", 0)))

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
                self.studio.ready(READY_SECONDS)
                seen = self.studio.inspect(path, mapping)
            except MultiLobeError:
                return
            yield (gr.skip(), shown(length_histogram(seen.token_lengths, limit, seen.rows)), *[gr.skip()] * 7)

    def _accepted(
        self, seen: DatasetReport, path: Path, label: str, mapping: Any, name: Any, source: Any, limit: Any
    ) -> Outputs:
        if not name or name == source.get("suggested"):  # what a person has typed stays
            name = self._free_name(label)
        source = {
            "path": str(path), "label": label, "mapping": mapping, "rows": seen.rows, "bad": seen.bad_rows,
            "lengths": seen.token_lengths, "suggested": name, "held_out": seen.held_out,
        }  # fmt: skip
        skip_bad = gr.update(visible=bool(seen.bad_rows and seen.rows), value=False)
        return (
            shown(report_card(seen, label)), shown(length_histogram(seen.token_lengths, limit, seen.rows)),
            gr.update(visible=bool(mapping)), gr.skip(), gr.skip(), skip_bad, name,
            gr.update(interactive=_can_start(source, False)), source,
        )  # fmt: skip

    def _refused(self, error: DataError, path: Path, label: str, mapping: Any) -> Outputs:
        source, choices, hidden = {}, gr.skip(), gr.update(visible=False)
        if error.columns or mapping:
            source = {"path": str(path), "label": label, "rows": 0}
        if error.columns:
            choices = gr.update(choices=list(error.columns), value=None)
        return (
            shown(refusal_card(error, label)), hidden, gr.update(visible=bool(source)), choices, choices,
            hidden, gr.skip(), gr.update(interactive=False), source,
        )  # fmt: skip

    def _free_name(self, label: str) -> str:
        """A name from the file's name that no lobe and no run has, so that Start works at once."""
        lobes, jobs = self.studio.desk().lobes(), lobe_jobs(self.studio.desk().jobs())
        return free_name(label, [lobe.name for lobe in lobes] + [job.name for job in jobs])


def _can_start(source: dict[str, Any], skip_bad: bool) -> bool:
    return bool(source.get("rows")) and (not source.get("bad") or skip_bad)
