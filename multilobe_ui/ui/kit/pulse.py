"""The one timer of an open page: it looks what has changed, and those who show it draw it anew."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import gradio as gr

from .guard import friendly

SECONDS = 1.0
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

Source = Callable[[], object]


class Pulse:
    """Call `when` for everything that is shown, then `start`; all at the root of the page, because
    Gradio mounts no component of a tab that is not open.

    Each source has a hidden text, the digest of what it returns. (Not a State: in Gradio 6.31 the
    change event of one is lost when the tick that changed it did not go through the queue.)
    """

    def __init__(self) -> None:
        self.timer = gr.Timer(SECONDS)
        self.sources: list[Source] = []
        self.signals: list[gr.Textbox] = []

    def when(self, source: Source) -> Callable[..., Any]:
        """The listener of an event that fires whenever `source` returns what it did not return before."""
        signal = gr.Textbox(digest(source()), visible="hidden", label="Signal")
        self.sources.append(source)
        self.signals.append(signal)
        return signal.change

    def start(self) -> None:
        self.timer.tick(self.probe, self.signals, self.signals, **QUICK)

    @friendly(quiet=True)
    def probe(self, *seen: str) -> tuple[Any, ...]:
        """A tick."""
        now = [digest(source()) for source in self.sources]
        return tuple(gr.skip() if new == old else new for new, old in zip(now, seen, strict=True))


def when_opened(look: Callable[..., Any], inputs: Any, outputs: Any) -> None:
    """Let `look` draw everything on a page that has just been opened: it knows nothing yet, whatever
    the server's session remembers. For use inside gr.Blocks."""
    root = gr.context.Context.root_block
    assert isinstance(root, gr.Blocks)
    root.load(look, inputs, outputs, **QUICK)


def digest(value: object) -> str:
    """A few letters that differ for values that differ."""
    return blake2b(repr(value).encode("utf-8", "replace"), digest_size=8).hexdigest()
