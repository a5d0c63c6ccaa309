"""The Train tab: drop a file, see at once what is in it, start, and watch the loss fall.

The job lives in the studio, not here. Page load, the page's timer and every click end in the same
read-only handler, `look` of the live side, so a reload, a second browser or another visitor sees
the same run. What is chosen on this page (which run, which curves) is lost with it, and cheap to
choose again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import DataError
from ..kit import guard
from ..kit.guard import friendly
from ..kit.html import escape
from ..kit.pulse import Pulse
from ..kit.static import scroll_to
from .data_side import DataSide
from .form import SETTINGS
from .live_side import LiveSide
from .runs import lobe_jobs

if TYPE_CHECKING:
    from ...app.studio import Studio


class TrainTab:
    """Lays out both sides, and starts a training with what the one holds so that the other shows it."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.data, self.live = studio, DataSide(studio), LiveSide(studio)

    def build(self) -> None:
        """Call it inside gr.Blocks, in the tab or column where it belongs."""
        data, live = self.data, self.live
        with gr.Row(elem_classes="train-row"):
            with gr.Column(scale=5, min_width=320):
                data.build()
            with gr.Column(scale=7, min_width=320):
                live.build()
        live.build_list()
        live.wire(data.settings["learning_rate"])
        started = data.start.click(
            self.begin, [live.token, *data.inputs], [live.shown, live.seen], api_visibility="private",
            concurrency_limit=None,
        )  # fmt: skip
        started.success(**live.looking, js=scroll_to("#train-card"))

    def watch(self, pulse: Pulse) -> None:
        """Look whenever something has changed that the tab shows."""
        pulse.when(self.shows)(**self.live.looking)

    def shows(self) -> object:
        return lobe_jobs(self.studio.desk().jobs()), self.studio.suggested_learning_rate()

    @friendly
    def begin(
        self, request: gr.Request, token: Any, source: Any, name: Any, skip_bad: Any, *settings: Any
    ) -> tuple[str, dict[str, Any]]:
        """Queue a job and put it on display; the form stays as it is, for another run with other settings."""
        desk = guard.acting_desk(self.studio, request, token)
        if not source.get("path"):
            raise DataError("There is no data yet. Drop a file, or choose one of the samples.")
        config = guard.training_config(dict(zip((of.name for of in SETTINGS), settings, strict=True)))
        job = desk.train(
            guard.a_text(name, "The name of the lobe", 80), Path(source["path"]), config,
            mapping=source.get("mapping"), skip_bad=guard.a_flag(skip_bad, "Use the good rows only"),
        )  # fmt: skip
        words = f"Training of {job.name} has been started."
        if job.place:
            words += f" It waits for its turn: place {job.place} in the queue."
        gr.Info(escape(words), title="Training", duration=6)
        return job.id, {}
