"""The card "Among your lobes" of the Train tab: a second step after the report, which waits for
nothing of it.

It follows what the tab knows of its data; when that changes, a comparison begins, and when it has
ended its card is there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import MultiLobeError
from ..kit import guard
from ..kit.guard import friendly
from ..kit.lobes import colours_of
from ..kit.pulse import QUICK
from ..kit.table import bare, shown
from .overlap_card import failed_card, new_name, overlap_card, overlap_figure, waiting_card

if TYPE_CHECKING:
    from ...app.studio import Studio

READY_SECONDS = 300
AT_ONCE = 2
"""Comparisons at once, of all visitors: each keeps a core busy for seconds."""
COMPARING = "Comparing them with the rows of your lobes. You need not wait for it."
LOADING = "The base model is still loading. The comparison comes by itself."
FAILED = "The comparison has failed, and the server's log has the details."
Outputs = tuple[Any, ...]
"""Values for the card, the fold of the map, the map, and what is on display."""

log = logging.getLogger(__name__)


class OverlapCard:
    """Lays out and wires the card. Call `build` where it belongs, then `wire`, inside gr.Blocks."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._turns = threading.BoundedSemaphore(AT_ONCE)

    def build(self) -> None:
        self.card = bare(visible=False, elem_id="train-overlap")
        with gr.Accordion(
            "Map: your rows among the lobes", open=False, visible=False, elem_id="train-overlap-map"
        ) as self.fold:
            self.map = gr.Plot(show_label=False, label="Map of rows", container=False, buttons=[])
        self.seen = gr.State("")

    def wire(self, source: Any, fraction: Any, seed: Any, file: Any) -> None:
        """Follow `source` (a gr.State of what the tab knows of its data), the settings of the
        split, and the file's removal."""
        private: dict[str, Any] = {
            "api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None,
            "trigger_mode": "always_last",
        }  # fmt: skip
        outputs = [self.card, self.fold, self.map, self.seen]
        for changed in (source.change, fraction.blur, fraction.submit, seed.blur, seed.submit):
            changed(self.look, [source, fraction, seed, self.seen], outputs, **private)
        file.clear(self.nothing, None, outputs, **QUICK)

    @friendly
    def look(self, source: Any, fraction: Any, seed: Any, seen: Any) -> Iterator[Outputs]:
        """The data or its split may have changed: compare, unless it is what is on display."""
        if not isinstance(source, Mapping) or not source.get("rows"):
            yield self.nothing()
            return
        colours = colours_of(self.studio)
        now = repr((source["path"], source.get("mapping"), fraction, seed, sorted(colours)))
        if now == seen:
            yield (gr.skip(),) * 4
            return
        label, hidden = source["label"], gr.update(visible=False)
        status = self.studio.status()
        loading = status.state == "loading" and status.base is None
        yield shown(waiting_card(label, LOADING if loading else COMPARING)), hidden, gr.skip(), ""
        try:
            self.studio.ready(READY_SECONDS)
            with self._turns:
                compared = self._compared(source, fraction, seed)
            yield (*compared, now)
        except MultiLobeError as error:
            yield shown(failed_card(label, str(error))), hidden, gr.skip(), ""
        except Exception:  # an extra must not look like a failure of the tab
            log.exception("comparing new data with the lobes failed")
            yield shown(failed_card(label, FAILED)), hidden, gr.skip(), ""

    def nothing(self) -> Outputs:
        hidden = gr.update(visible=False)
        return hidden, hidden, gr.skip(), ""

    def _compared(self, source: Mapping[str, Any], fraction: Any, seed: Any) -> Outputs:
        lab, colours = self.studio.lab, colours_of(self.studio)
        report = lab.overlap(
            Path(source["path"]), source.get("mapping"), guard.a_share(fraction),
            guard.a_whole(seed, "The seed", 0, 2**31 - 1),
        )  # fmt: skip
        card, name = overlap_card(report.to_json(), source["label"], colours), new_name(list(colours))
        prompt_map = lab.overlap_map(report, name)
        if len(prompt_map.lobes) < 2:  # the new rows alone are no map
            return shown(card), gr.update(visible=False), gr.skip()
        return shown(card), gr.update(visible=True), overlap_figure(prompt_map, colours, name)
