"""The loss matrix of the Lab: every lobe on every dataset, the base in the first row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...evaluation.settings import LossSettings
from ..kit import guard
from ..kit.forms import field_of
from .drawing import Drawing
from .experiment import Asked, ExperimentPanel
from .labelled_upload import upload, uploads
from .losses_figures import losses_card

if TYPE_CHECKING:
    from ...app.studio import Studio

ROWS = 64
MOST_ROWS = 10_000
FILES = "Prompts and answers, files named after lobes. Empty: the lobes’ own rows"


class LossesSection:
    """See the module."""

    title = "Lobes"
    about = (
        "Does each lobe earn its place? Every lobe is measured on everybody's data, the base model in the "
        "first row. The lobe of a dataset should win its column; what wins nothing can go."
    )

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.panel = ExperimentPanel(studio, "losses", Drawing(losses_card), run="Measure the lobes")
        self.panels: Sequence[ExperimentPanel] = (self.panel,)

    def build(self) -> None:
        """Call it inside gr.Blocks, in the tab or column where it belongs."""
        with gr.Row(elem_classes="rc-asking"):
            self.files = upload("losses-files", FILES)
            with gr.Column(min_width=280):
                self.rows = field_of(LossSettings, "most_rows", ROWS, elem_id="losses-rows")
                self.answer = field_of(LossSettings, "task", True, elem_id="losses-answer")
        self.panel.build()
        self.panel.wire(self.asked, [self.files, self.rows, self.answer])

    def asked(self, files: Any, rows: Any, answer: Any) -> Asked:
        """Settings and files of a run. Raises ConfigError."""
        settings = {
            "most_rows": guard.a_whole(rows, "Rows of each dataset", 1, MOST_ROWS),
            "task": guard.a_flag(answer, "Also answer"),
        }
        return settings, uploads(files)
