"""One answer as a stream of what the page shows of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import BackboneError, MultiLobeError
from ..kit.html import Markup, escape
from ..kit.lobes import usable_lobes
from ..kit.routing_row import routing_of
from .conversation import Message, answers_in
from .knobs import KNOBS, sampling_of
from .reply import Reply
from .token_view import token_card
from .why_panel import idle_panel, labels, waiting_panel, why_panel

if TYPE_CHECKING:
    from ...app.studio import Studio
    from ...app.views import ChatEvent

PROBE_SECONDS = 0.25
TRACE_SECONDS = 0.4
"""Least time between two drawings of the token view."""
MOST_TRACES = 8
"""Latest answers whose tokens' weights are remembered."""

WAITING = "…"
"""What stands for an answer before its first word."""
NO_ANSWER = "*(no answer)*"
PROMISE = "Your message will be answered as soon as it is ready."

Step = tuple[Any, ...]
"""Values for the outputs of an answer: conversation, text box, panel, token view, labels, replies."""

log = logging.getLogger(__name__)


class Answering:
    """Draws answers. Makes one call on the studio for each."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def answer(
        self,
        messages: list[Message],
        before: list[Message],
        replies: list[Reply],
        draft: str,
        choice: str,
        knobs: Sequence[Any],
    ) -> Iterator[Step]:
        """Stream the answer to `messages`. If it fails, the conversation is `before` again and the
        text box holds `draft`."""
        earlier = replies[: answers_in(messages)]
        stop = threading.Event()
        restored = (before, idle(draft), *self.views(replies), replies)
        try:
            sampling, routing = sampling_of(*knobs[:KNOBS]), routing_of(knobs[KNOBS:], choice)
            panel = waiting_panel(self.lobes(), "Routing…", "The router is reading your message.")
            yield messages, busy(), panel, tokens_of(), labels(earlier), earlier
            yield from self._until_ready(messages)
            events = self.studio.chat(
                messages, choice, sampling, stop, router=routing.router, mixing=routing.mixing,
                weights=routing.weights or None,
            )  # fmt: skip
            with closing(events) as events:  # type: ignore[type-var]
                yield from self._stream(events, messages, earlier)
        except MultiLobeError as error:
            # not gr.Error, which would lay "Error" over the whole conversation
            gr.Warning(escape(error), title="No answer")
            yield restored
        except Exception:
            log.exception("an answer failed")
            gr.Warning(
                "Something went wrong here, and the server's log has the details. Try again.",
                title="No answer",
            )
            yield restored
        finally:
            stop.set()

    def _until_ready(self, messages: list[Message]) -> Iterator[Step]:
        """While the base model loads, say so in the conversation; the answer follows by itself."""
        message = ""
        while (status := self.studio.status()).state == "loading" and status.base is None:
            if status.message != message:
                message = status.message
                waiting = [*messages, {"role": "assistant", "content": f"*{message} {PROMISE}*"}]
                panel = waiting_panel(self.lobes(), "One moment", f"{message} {PROMISE}")
                yield waiting, gr.skip(), panel, gr.skip(), gr.skip(), gr.skip()
            time.sleep(PROBE_SECONDS)
        if status.state == "failed":
            raise BackboneError(status.message)

    def _stream(
        self, events: Iterator[ChatEvent], messages: list[Message], earlier: list[Reply]
    ) -> Iterator[Step]:
        """The panel and the labels are drawn at the decision and at the end, tokens' weights now
        and then, the text always."""
        lobes, drawn = tuple(self.lobes()), -TRACE_SECONDS
        earlier = [replace(reply, trace=()) for reply in earlier[:-MOST_TRACES]] + earlier[-MOST_TRACES:]
        replies = earlier
        for event in events:
            if event.decision is None:
                continue
            reply = Reply.of(event, lobes, messages[-1]["content"])
            box = panel = tags = tokens = gr.skip()
            if event.done or len(replies) == len(earlier):
                replies = [*earlier, reply]
                panel, tags = why_panel(reply), labels(replies, len(earlier))
            if event.done or (event.trace and time.monotonic() - drawn >= TRACE_SECONDS):
                tokens, drawn = tokens_of(reply), time.monotonic()
            text = event.text or WAITING
            if event.done:
                text, box = event.text or NO_ANSWER, idle()
            replies = [*earlier, reply]
            yield [*messages, {"role": "assistant", "content": text}], box, panel, tokens, tags, replies

    def views(self, replies: list[Reply]) -> tuple[Markup, Any, Markup]:
        """Panel, token view and labels for the last reply, or before the first question."""
        if not replies:
            return self.idle_panel(), tokens_of(), labels([])
        return why_panel(replies[-1]), tokens_of(replies[-1]), labels(replies, len(replies) - 1)

    def idle_panel(self) -> Markup:
        return idle_panel(self.lobes(), self.is_loading())

    def is_loading(self) -> bool:
        """Whether no base model is there yet, so that lobes may still come: those of a new home are
        put there by the loading."""
        status = self.studio.status()
        return status.state == "loading" and status.base is None

    def lobes(self) -> list[tuple[str, str]]:
        """(name, colour) of the lobes that can answer."""
        return usable_lobes(self.studio)


def tokens_of(reply: Reply | None = None) -> Any:
    """The token view of a reply; nothing where its tokens were not weighed one by one."""
    if reply is None:
        return gr.update(value="", visible=False)
    card = token_card(reply.trace, reply.colours, done=reply.done)
    return gr.update(value=card, visible=bool(card))


def busy() -> Any:
    """The text box while an answer is written."""
    return gr.update(value="", submit_btn=False, stop_btn="Stop")


def idle(text: str | None = None) -> Any:
    """The box ready for a message; without `text` what the person is typing stays."""
    if text is None:
        return gr.update(submit_btn="Send", stop_btn=False)
    return gr.update(value=text, submit_btn="Send", stop_btn=False)
