"""What only the complexity router asks: where its tiers begin, a file of one's own, and how many
rows each tier gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import ConfigError
from ..kit import guard
from ..kit.complexity_card import stratification_card
from ..kit.guard import friendly
from ..kit.pulse import QUICK
from ..kit.table import bare, shown
from .form import RouterSettings

if TYPE_CHECKING:
    from ...app.studio import Studio

FILE_TYPES = [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt"]


class TiersForm:
    """Thresholds and a file, with a preview before any training."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def build(self, router: str, settings: RouterSettings) -> None:
        with gr.Row(elem_classes="router-thresholds"):
            self.low, self.high = (settings.field(router, name) for name in ("low", "high"))
        with gr.Accordion("Learn from a file instead of the lobes' own rows", open=False):
            self.file = gr.File(
                label="Prompts and answers: JSONL, JSON, CSV or Parquet", height=150, type="filepath",
                elem_id="router-file", file_types=FILE_TYPES,
            )  # fmt: skip
        with gr.Row(elem_classes="train-actions"):
            self.preview = gr.Button("Preview the tiers", elem_id="router-preview")
        self.strata = bare(visible=False, elem_id="router-strata")
        self.preview.click(
            self.stratify, [self.low, self.high, self.file], self.strata, show_progress_on=self.strata,
            api_visibility="private", concurrency_limit=None,
        )  # fmt: skip
        self.file.clear(lambda: gr.update(visible=False), None, self.strata, **QUICK)

    @friendly
    def stratify(self, low: Any, high: Any, file: Any) -> Any:
        """How many rows each tier would get, with examples."""
        limits = guard.a_number(low, "Low", 0, 1), guard.a_number(high, "High", 0, 1)
        if limits[0] >= limits[1]:
            raise ConfigError(f"Low is {limits[0]:g} and high {limits[1]:g}; low must be below high.")
        return shown(stratification_card(self.studio.stratify(*limits, path_of(file))))


def path_of(file: Any) -> str | None:
    """The uploaded file, if there is one. Raises ConfigError."""
    if not file:
        return None
    return str(guard.an_upload(file))
