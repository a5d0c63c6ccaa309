"""What has been done, as a toast."""

from __future__ import annotations

import gradio as gr

from ..kit.html import escape


def tell(sentence: str) -> None:
    """A toast is HTML, and names are other people's words."""
    gr.Info(escape(sentence), title="Done", duration=6)
