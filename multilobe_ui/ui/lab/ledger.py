"""The Lab's section "Cost": the ledger of all answers, kept up to date while the page is open, to
be taken away or begun anew."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..kit import guard, text
from ..kit.guard import friendly
from ..kit.lobes import colours_of
from ..kit.pulse import QUICK, Pulse, when_opened
from ..kit.routing_row import routers_of
from ..kit.table import bare, heading, shown
from .drawing import Drawing
from .experiment import ExperimentPanel
from .ledger_tables import ledger_csv, ledger_json, ledger_table, recent_table
from .speed_card import speed_card

if TYPE_CHECKING:
    from ...app.studio import Studio

SPEED = (
    "Training, routing and answers with the present base and lobes, beside what the processor and its memory "
    "could do. About a minute."
)
LATEST = 12
MOST_SAVED = 100_000


class LedgerSection:
    """See the module. The ledger is no experiment, so it looks for itself."""

    title = "Cost"
    about = (
        "Every answer is entered with what it cost: time to route, tokens read and written, speed, and the "
        "lobes in memory. No prompt, no answer and no name of a person is kept."
    )

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.speed = ExperimentPanel(studio, "speed", Drawing(speed_card), run="Time this machine")
        self.panels: Sequence[ExperimentPanel] = (self.speed,)

    def build(self) -> None:
        """Call it inside gr.Blocks, in the tab or column where it belongs."""
        self.token = guard.visitor()
        self.totals = bare(elem_id="ledger-totals")
        with gr.Row(elem_classes="train-actions"):
            small: dict[str, Any] = {"size": "sm", "min_width": 110}
            self.csv = gr.Button("Save as CSV", elem_id="ledger-csv", **small)
            self.json = gr.Button("Save as JSON", elem_id="ledger-json", **small)
            self.download = gr.DownloadButton("Download", visible=False, elem_id="ledger-download", **small)
            self.clear = gr.Button("Begin anew…", visible=not self.studio.shared, elem_id="ledger-clear", **small)
            self.really = gr.Button(
                "Delete all entries", variant="stop", visible=False, elem_id="ledger-really", **small
            )
            self.keep = gr.Button("Keep them", visible=False, elem_id="ledger-keep", **small)
        self.heading = bare(visible=False)
        self.recent = bare(visible=False, elem_id="ledger-recent")
        with gr.Column(visible=not self.studio.shared, elem_id="ledger-speed"):
            bare(heading("What this machine does", SPEED))
            self.speed.build()
            self.speed.wire(lambda: ({}, []), [])
        self._wire()

    def _wire(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 2, "show_progress": "hidden"}
        self.looking: dict[str, Any] = {
            "fn": self.look, "inputs": None, "outputs": [self.totals, self.heading, self.recent], **QUICK
        }  # fmt: skip
        asking = [self.clear, self.really, self.keep]
        for button, kind in ((self.csv, "csv"), (self.json, "json")):
            button.click(partial(self.save, kind), None, self.download, **private)
        self.clear.click(self.ask, None, asking, **QUICK)
        self.keep.click(self.calm, None, asking, **QUICK)
        self.really.click(self.do_clear, self.token, asking, **private).success(**self.looking)
        when_opened(self.look, None, self.looking["outputs"])

    def watch(self, pulse: Pulse) -> None:
        """Look whenever something has changed that the section shows."""
        pulse.when(self.shows)(**self.looking)

    def shows(self) -> object:
        lab = self.studio.lab
        recent = lab.ledger_recent(LATEST)
        return lab.ledger_totals(), recent, [text.when(cost.time) for cost in recent], self._names()

    # ---- handlers --------------------------------------------------------------------------------

    @friendly(quiet=True)
    def look(self) -> tuple[Any, ...]:
        """The totals, and the latest answers with their heading."""
        titles, colours = self._names()
        table = ledger_table(self.studio.lab.ledger_totals(), titles, colours)
        latest = recent_table(self.studio.lab.ledger_recent(LATEST), titles, colours)
        above = gr.update(value=heading("Latest answers", ""), visible=bool(latest))
        return table, above, shown(latest)

    def _names(self) -> tuple[dict[str, str], dict[str, str]]:
        """Name → title of routers, and name → colour of lobes."""
        titles = {view.name: view.title for view in routers_of(self.studio)}
        return titles, colours_of(self.studio)

    @friendly
    def save(self, kind: str) -> Any:
        """A file of the ledger, to be downloaded."""
        totals, costs = self.studio.lab.ledger_totals(), self.studio.lab.ledger_recent(MOST_SAVED)
        content = ledger_csv(costs) if kind == "csv" else ledger_json(totals, costs)
        with tempfile.TemporaryDirectory(prefix="multilobe-ledger-") as scratch:
            path = Path(scratch) / f"multilobe-ledger.{kind}"
            path.write_text(content, encoding="utf-8", errors="replace", newline="")
            label = f"Download {path.name} ({text.size(path.stat().st_size)})"
            return gr.update(value=guard.downloadable(path), label=label, visible=True)

    @friendly
    def do_clear(self, request: gr.Request, token: Any) -> tuple[Any, ...]:
        """The person is sure."""
        guard.acting_desk(self.studio, request, token).lab.clear_ledger()
        return self.calm()

    def ask(self) -> tuple[Any, ...]:
        return gr.update(visible=False), gr.update(visible=True), gr.update(visible=True)

    def calm(self) -> tuple[Any, ...]:
        return gr.update(visible=not self.studio.shared), gr.update(visible=False), gr.update(visible=False)
