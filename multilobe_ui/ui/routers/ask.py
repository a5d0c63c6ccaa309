"""Ask all routers about one prompt: what each says, and where the prompt lies among the lobes' rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from ..kit import guard, text
from ..kit.guard import friendly
from ..kit.lobes import colours_of
from ..kit.plots import prompt_map_figure
from ..kit.table import bare, heading, shown
from .verdicts import comparison

if TYPE_CHECKING:
    from ...app.studio import Studio

LONGEST_PROMPT = 20_000
PRESET = "Write Python code to solve quadratic equations"


class AskSide:
    """A message and what the routers make of it."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def build(self) -> None:
        with gr.Column(elem_id="routers-try"):
            bare(heading("Ask the routers", "One message, every router's answer side by side; nothing is generated."))
            with gr.Row(elem_classes="compare-line"):
                prompt = gr.Textbox(
                    label="Message", show_label=False, container=False, placeholder=f"Such as: {PRESET}",
                    lines=1, max_lines=6, max_length=LONGEST_PROMPT, min_width=260, elem_id="compare-prompt",
                )  # fmt: skip
                ask = gr.Button("Ask the routers", variant="primary", elem_id="compare-ask")
            results = bare(elem_id="compare-results")
            title = bare(visible=False, elem_id="router-map-title")
            figure = gr.Plot(
                show_label=False,
                label="Map of prompts",
                container=False,
                visible=False,
                elem_id="router-map",
                buttons=[],
            )
        comparing: dict[str, Any] = {
            "fn": self.compare, "inputs": prompt, "outputs": [results, prompt], "show_progress_on": results,
            "api_visibility": "private", "concurrency_limit": 2,
        }  # fmt: skip
        mapping: dict[str, Any] = {
            "fn": self.place, "inputs": prompt, "outputs": [title, figure], "show_progress": "hidden",
            "api_visibility": "private", "concurrency_limit": None,
        }  # fmt: skip
        for asked in (ask.click, prompt.submit):
            asked(**comparing).success(**mapping)

    @friendly
    def compare(self, prompt: Any) -> tuple[Any, Any]:
        """What every router says of a message; of the example, if there is none."""
        words = _words(prompt)
        decisions = self.studio.compare_routers(words)
        titles = {view.name: view.title for view in self.studio.desk().routers()}
        return comparison(decisions, titles, colours_of(self.studio)), words

    @friendly
    def place(self, prompt: Any) -> tuple[Any, Any]:
        """Where it lies among the lobes' rows."""
        words = _words(prompt)
        places = self.studio.prompt_map(words)
        if not places.lobes:
            return gr.update(visible=False), gr.update(visible=False)
        about = (
            "Dots are training prompts, large ones the prototypes that routers compare with. The two "
            "directions show "
            f"{text.percent(places.explained)} of what tells prototypes apart, so near here is likely near, "
            f"not surely."
        )
        figure = prompt_map_figure(places, colours_of(self.studio), words)
        return shown(heading("Where it lies among the lobes", about)), gr.update(value=figure, visible=True)


def _words(prompt: Any) -> str:
    return guard.a_text(prompt, "The message", LONGEST_PROMPT, may_be_empty=True) or PRESET
