"""What is typed into a tab that is still being built counts. Gradio's page would forget it.

When a tab is opened for the first time, Gradio 6.31 mounts its fields, waits until all its parts
are loaded and the browser draws, and then gives every field the value that the page knows of it. It
knows of what the server sent, not of what was typed: a number typed meanwhile jumps back, and the
button pressed next sends the old one.
"""

from __future__ import annotations

import gradio as gr


def remember_typing() -> None:
    """Tell the page of every number and tick as it is made, in the browser. Call it inside
    gr.Blocks, after all fields."""
    root = gr.context.Context.root_block
    if root is None:
        raise RuntimeError("remember_typing() is for use inside gr.Blocks.")
    for field in list(root.blocks.values()):
        if isinstance(field, (gr.Number, gr.Checkbox)):
            field.input(  # type: ignore[union-attr]
                None,
                field,
                field,
                js="(value) => value",
                queue=False,
                show_progress="hidden",
                api_visibility="private",
            )
