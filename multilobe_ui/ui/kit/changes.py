"""Draw again only what has changed since a page last looked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

Outputs = tuple[Any, ...]


class Changes:
    """Compares what the parts of a view depend on with what the page has `seen` of that; true if
    any part differs."""

    def __init__(self, keys: Mapping[str, object], seen: Mapping[str, object]) -> None:
        self.parts = {part for part in keys if keys[part] != seen.get(part, ...)}

    def __bool__(self) -> bool:
        return bool(self.parts)

    def draw(self, parts: str, draw: Callable[..., Outputs], *values: Any, width: int = 1) -> Outputs:
        """`draw(*values)` if one of the parts (words) has changed, else "no change" for its `width`
        outputs."""
        if self.parts.isdisjoint(parts.split()):
            return (gr.skip(),) * width
        return draw(*values)
