"""The words by which the keyword router knows a lobe: shown with their weights, changed, and brought back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import ConfigError
from ..kit import guard, text
from ..kit.guard import friendly
from ..kit.html import escape
from ..kit.pulse import QUICK

if TYPE_CHECKING:
    from ...app.studio import Studio

MOST_TERMS = 300


class WordsForm:
    """A lobe, and its words as chips."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def build(self) -> None:
        token = guard.visitor()
        self.lobe = gr.Dropdown([], label="Lobe", interactive=True, elem_id="router-lobe")
        self.terms = gr.Dropdown(
            [], value=[], label="Its words",
            info="Take one away with ×; write one and press Enter to add it.", multiselect=True,
            allow_custom_value=True, interactive=True, elem_id="router-terms",
        )  # fmt: skip
        with gr.Row(elem_classes="train-actions"):
            save = gr.Button("Save these words", variant="primary", size="sm", elem_id="router-save-words")
            learned = gr.Button("Back to the learned words", size="sm", elem_id="router-learned")
        private: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
        self.lobe.change(self.show, self.lobe, self.terms, **QUICK)
        save.click(self.do_save, [self.lobe, self.terms, token], self.terms, **private)
        learned.click(self.do_learned, [self.lobe, token], self.terms, **private)

    @friendly(quiet=True)
    def show(self, lobe: Any) -> Any:
        """The words of another lobe."""
        if not lobe:
            return gr.update(choices=[], value=[])
        return self._words_of(guard.a_text(lobe, "The lobe", 200))

    @friendly
    def do_save(self, request: gr.Request, lobe: Any, terms: Any, token: Any) -> Any:
        desk, name = guard.acting_desk(self.studio, request, token), guard.a_text(lobe, "The lobe", 200)
        words = guard.some_names(terms, "The words")
        if not 1 <= len(words) <= MOST_TERMS:
            raise ConfigError(
                f"{name} has {len(words)} words; give it 1 to {MOST_TERMS}, or go back to the learned ones."
            )
        desk.set_keyword_terms(name, words)
        gr.Info(f"{text.count(len(words), 'word')} of {escape(name)} saved.", title="Keywords", duration=5)
        return self._words_of(name)

    @friendly
    def do_learned(self, request: gr.Request, lobe: Any, token: Any) -> Any:
        desk, name = guard.acting_desk(self.studio, request, token), guard.a_text(lobe, "The lobe", 200)
        desk.set_keyword_terms(name, None)
        gr.Info(f"{escape(name)} has its learned words again.", title="Keywords", duration=5)
        return self._words_of(name)

    def _words_of(self, lobe: str) -> Any:
        """Every word with its weight, as chips."""
        terms = self.studio.desk().keyword_terms(lobe)
        chips = [(f"{term}  {weight:.1f}", term) for term, weight in terms]
        return gr.update(choices=chips, value=[term for term, _ in terms], label=f"Words of {text.short(lobe, 40)}")
