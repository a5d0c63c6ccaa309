"""The Chat tab: a conversation on the left, why this lobe answered on the right.

Nothing here is shared between people. The conversation lives in the browser; beside it goes a list of `Reply`, one for
each answer, from which the panel, the token view and the labels over the answers are drawn. An answer is one generator;
closing it (Stop, a closed page) ends the generation at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import BackboneError, ConfigError, MultiLobeError
from ...settings import SamplingConfig
from ..kit.guard import friendly
from ..kit.html import Markup, escape, html
from ..kit.routing_row import MIX, PRESET, Routing, RoutingRow, routers_of, routing_of
from ..kit.static import script
from .conversation import Message, answers_in, conversation, place_of, plain, question_at
from .knobs import KNOBS, build_knobs, sampling_of
from .token_view import token_card
from .why_panel import Reply, idle_panel, labels, waiting_panel, why_panel

if TYPE_CHECKING:
    from ...app.studio import ChatEvent, Studio

AUTOMATIC, BASE_ONLY = "automatic", "base"  # as in studio.py, which the page must be able to outlive
LONGEST_MESSAGE = 100_000
PROBE_SECONDS = 0.25
TRACE_SECONDS = 0.4
"""Least time between two drawings of the token view."""
MOST_TRACES = 8
"""Latest answers whose tokens' weights are remembered."""

WAITING = "…"
"""What stands for an answer before its first word."""

log = logging.getLogger(__name__)

# (text, what the card says): rows of sample_data, one for each demo lobe, and two that belong to none
STARTERS = (
    ("How does a vaccine protect a child?", ""),
    ("I wrote a song. How does copyright help me?", ""),
    ("What is the safe way to delete a key from a dictionary?", ""),
    ("An Egyptian pyramid has a square base, how do I get its volume?", ""),
    ("Review: The zip was broken when it arrived and the colour had faded.", ""),
    (
        "Condense this into one sentence: Trees clean the air in a city and give shade in summer. They slow the rain as "
        "well, which helps to prevent floods. The city plans to plant ten thousand trees in the next five years.",
        "Condense this into one sentence: Trees clean the air in a city and give shade…",
    ),
    ("Good morning! How are you today?", ""),
    (PRESET, ""),
)

Step = tuple[Any, ...]
"""Values for the outputs of an answer: conversation, text box, panel, token view, labels, replies."""


class ChatTab:
    """See the module's text. `build` inside gr.Blocks, then `follow` whatever tells that the lobes have changed."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.routing = RoutingRow(studio)

    # ---- layout ------------------------------------------------------------------------------------------------------

    def build(self) -> None:
        with gr.Row(elem_id="chat-row"):
            with gr.Column(scale=13, min_width=340):
                self._conversation()
                self._composer()
            with gr.Column(scale=8, min_width=320):
                self.panel = gr.HTML(idle_panel(self._lobes(), is_loading(self.studio)), elem_id="why")
                self.tokens = gr.HTML("", visible=False, elem_id="tokens", js_on_load=script("token_view"))
        self.labels = gr.HTML(labels([]))
        self.replies = gr.State([])
        self._wire()

    def _conversation(self) -> None:
        examples: list[Any] = [{"text": t, "display_text": said or t} for t, said in STARTERS]
        self.chat = gr.Chatbot(
            elem_id="chat", label="Conversation", show_label=False, layout="bubble", editable="user", buttons=["copy"],
            placeholder=hero(self._lobes(), is_loading(self.studio)), examples=examples, container=False,
            allow_tags=False, latex_delimiters=[],
        )  # fmt: skip

    def _composer(self) -> None:
        with gr.Column(elem_id="composer"):
            self.box = gr.Textbox(
                elem_id="message", label="Message", show_label=False, container=False, autofocus=True, lines=1,
                max_lines=8, max_length=LONGEST_MESSAGE, placeholder="Ask anything…", submit_btn="Send",
            )  # fmt: skip
            with gr.Row(elem_id="controls"):
                self.choice = gr.Dropdown(
                    choices(self._lobes()), value=AUTOMATIC, label="Who answers", container=False, elem_id="choice",
                    min_width=220,
                )  # fmt: skip
                self.routing.build()
                with gr.Accordion("Advanced", open=False, elem_id="advanced"):
                    self.knobs = build_knobs()
            self.routing.build_mix()

    def _wire(self) -> None:
        told = [self.choice, *self.knobs, *self.routing.inputs]
        shown = [self.chat, self.box, self.panel, self.tokens, self.labels, self.replies]
        answering: dict[str, Any] = {
            "outputs": shown, "concurrency_limit": 4, "concurrency_id": "chat", "show_progress": "hidden",
            "api_visibility": "private",
        }  # fmt: skip
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        runs: Any = [
            self.box.submit(self.send, [self.box, self.chat, self.replies, *told], **answering),
            self.chat.example_select(self.start_with, [self.chat, self.replies, *told], **answering),
            self.chat.retry(self.retry, [self.chat, self.replies, *told], **answering),
            self.chat.edit(self.edit, [self.chat, self.replies, *told], **answering),
        ]
        self.box.stop(self.stopped, [self.box, self.chat, self.replies], shown, cancels=runs, **quick)
        self.chat.undo(self.undo, [self.chat, self.replies], shown, **quick)
        self.chat.clear(self.cleared, None, shown[1:], cancels=runs, **quick)
        self.chat.select(self.look_at, [self.chat, self.replies], shown[2:5], **quick)
        self.routing.wire(self.choice, self.box)
        if hasattr(self.studio, "feedback"):
            self.chat.like(self.like, [self.chat, self.replies], None, **quick)

    def offered(self) -> object:
        """What the tab shows of lobes and routers."""
        lobes = [(lobe.id, lobe.name, lobe.colour, lobe.usable) for lobe in self.studio.lobes()]
        routers = [(view.name, view.fitted, view.stale) for view in routers_of(self.studio)]
        return lobes, routers, is_loading(self.studio)

    def follow(self, when: Callable[..., Any]) -> None:
        """Refresh what depends on the lobes whenever the event listener `when` fires (a State's change, a page's load)."""
        outputs = [self.choice, self.panel, self.chat]
        when(
            self.refresh, [self.choice, self.replies], outputs, queue=False, show_progress="hidden",
            api_visibility="private",
        )  # fmt: skip
        self.routing.follow(when)

    # ---- handlers: an answer -----------------------------------------------------------------------------------------

    @friendly
    def send(self, text: str, history: list[Message], replies: list[Reply], choice: str, *knobs: Any) -> Iterator[Step]:
        """The person sent a message."""
        before = conversation(history, replies)
        if not isinstance(text, str) or not text.strip():
            yield (gr.skip(),) * 6
            return
        asked = [*before, {"role": "user", "content": text.strip()}]
        yield from self._answer(asked, before, replies, text, choice, knobs)

    @friendly
    def start_with(
        self, history: list[Message], replies: list[Reply], event: gr.SelectData, choice: str, *knobs: Any
    ) -> Iterator[Step]:
        """The person clicked a starter."""
        value = event.value
        text = str(value.get("text", "")) if isinstance(value, dict) else str(value)
        yield from self.send(text, history, replies, choice, *knobs)

    @friendly
    def retry(
        self, history: list[Message], replies: list[Reply], event: gr.RetryData, choice: str, *knobs: Any
    ) -> Iterator[Step]:
        """Answer the same message again; later turns go."""
        before = conversation(history, replies)
        asked = before[: question_at(before, event.index) + 1]
        yield from self._answer(asked, before, replies, "", choice, knobs)

    @friendly
    def edit(
        self, history: list[Message], replies: list[Reply], event: gr.EditData, choice: str, *knobs: Any
    ) -> Iterator[Step]:
        """A message was rewritten: answer it, later turns go."""
        before = conversation(history, replies)
        place = question_at(before, event.index)
        text = str(event.value).strip()
        if not text:
            raise ConfigError("The message is empty now. Write something, or undo it.")
        earlier = [*before[:place], {"role": "user", "content": str(event.previous_value)}, *before[place + 1 :]]
        asked = [*before[:place], {"role": "user", "content": text}]
        yield from self._answer(asked, earlier, replies, text, choice, knobs)

    def _answer(
        self,
        asked: list[Message],
        before: list[Message],
        replies: list[Reply],
        draft: str,
        choice: str,
        knobs: Sequence[Any],
    ) -> Iterator[Step]:
        """Stream the answer to `asked`. If it fails, the conversation is `before` again and the text box holds `draft`."""
        earlier = replies[: answers_in(asked)]
        lobes = self._lobes()
        stop = threading.Event()
        restored = (before, _idle(draft), *self._views(replies), replies)
        try:
            sampling, routing = sampling_of(*knobs[:KNOBS]), routing_of(knobs[KNOBS:], str(choice))
            waiting = waiting_panel(lobes, "Routing…", "The router is reading your message.")
            yield asked, _busy(), waiting, _tokens(), labels(earlier), earlier
            yield from self._until_ready(asked, lobes)
            with closing(self._events(asked, str(choice), sampling, stop, routing)) as events:  # type: ignore[type-var]
                yield from self._stream(events, asked, earlier)
        except MultiLobeError as error:
            # not gr.Error, which would lay "Error" over the whole conversation
            gr.Warning(escape(error), title="No answer")
            yield restored
        except Exception:
            log.exception("an answer failed")
            gr.Warning("Something went wrong here, and the server's log has the details. Try again.", title="No answer")
            yield restored
        finally:
            stop.set()

    def _events(
        self, asked: list[Message], choice: str, sampling: SamplingConfig, stop: threading.Event, routing: Routing
    ) -> Iterator[ChatEvent]:
        return self.studio.chat(
            asked, choice, sampling, stop, router=routing.router, mixing=routing.mixing, weights=routing.weights or None
        )

    def _until_ready(self, asked: list[Message], lobes: Sequence[tuple[str, str]]) -> Iterator[Step]:
        """While the base model loads, say so in the conversation; the answer follows by itself."""
        said = ""
        while (status := self.studio.status()).state == "loading" and status.base is None:
            if status.message != said:
                said = status.message
                words = "Your message will be answered as soon as it is ready."
                waiting = [*asked, {"role": "assistant", "content": f"*{said} {words}*"}]
                panel = waiting_panel(lobes, "One moment", f"{said} {words}")
                yield waiting, gr.skip(), panel, gr.skip(), gr.skip(), gr.skip()
            time.sleep(PROBE_SECONDS)
        if status.state == "failed":
            raise BackboneError(status.message)

    def _stream(self, events: Iterator[ChatEvent], asked: list[Message], earlier: list[Reply]) -> Iterator[Step]:
        """The panel and the labels are drawn at the decision and at the end, tokens' weights now and then, the text always."""
        lobes, drawn = tuple(self._lobes()), -TRACE_SECONDS
        earlier = [replace(reply, trace=()) for reply in earlier[:-MOST_TRACES]] + earlier[-MOST_TRACES:]
        replies = earlier
        for event in events:
            if event.decision is None:
                continue
            first = len(replies) == len(earlier)
            reply = _reply(event, lobes, asked[-1]["content"])
            replies = [*earlier, reply]
            panel = why_panel(reply) if first or event.done else gr.skip()
            tags = labels(replies, len(earlier)) if first or event.done else gr.skip()
            text = event.text or (WAITING if not event.done else "*(no answer)*")
            box = _idle() if event.done else gr.skip()
            tokens = gr.skip()
            if event.done or (event.trace and time.monotonic() - drawn >= TRACE_SECONDS):
                tokens, drawn = _tokens(reply), time.monotonic()
            yield [*asked, {"role": "assistant", "content": text}], box, panel, tokens, tags, replies

    # ---- handlers: everything else -----------------------------------------------------------------------------------

    @friendly
    def stopped(self, text: str, history: list[Message], replies: list[Reply]) -> Step:
        """Stop was pressed, and the generator is closed. What came so far stays; before the first word, so does nothing."""
        messages, begun = plain(history), gr.skip()
        if messages and messages[-1]["role"] == "user" and len(replies) == answers_in(messages) + 1:
            # the first words were under way to the page when Stop was pressed there
            begun = messages = [*messages, {"role": "assistant", "content": replies[-1].answer or WAITING}]
        if answers_in(messages) and len(replies) == answers_in(messages) and messages[-1]["role"] == "assistant":
            last = replies[-1] if replies[-1].done else replace(replies[-1], done=True, stopped=True)
            replies = [*replies[:-1], last]
            return begun, _idle(), *self._views(replies), replies
        place = question_at(messages, len(messages) - 1) if messages else 0
        draft = messages[place]["content"] if messages else ""
        replies = replies[: answers_in(messages[:place])]
        return messages[:place], _idle(text or draft), *self._views(replies), replies

    @friendly
    def undo(self, history: list[Message], replies: list[Reply], event: gr.UndoData) -> Step:
        """Take back the last turn; its text returns to the box."""
        messages = plain(history)
        place = question_at(messages, event.index)
        replies = replies[: answers_in(messages[:place])]
        return messages[:place], _idle(messages[place]["content"]), *self._views(replies), replies

    def cleared(self) -> Step:
        return _idle(), *self._views([]), []

    @friendly(quiet=True)
    def look_at(self, history: list[Message], replies: list[Reply], event: gr.SelectData) -> Step:
        """A message was clicked: show why it was answered by whom it was answered."""
        messages = plain(history)
        index = place_of(event.index)
        wanted = answers_in(messages[: index + 1]) - (index < len(messages) and messages[index]["role"] == "assistant")
        if not 0 <= wanted < len(replies):
            return gr.skip(), gr.skip(), gr.skip()
        return why_panel(replies[wanted]), _tokens(replies[wanted]), labels(replies, wanted)

    @friendly(quiet=True)
    def like(self, history: list[Message], replies: list[Reply], event: gr.LikeData) -> None:
        """Keep the person's opinion of an answer, for whoever tunes the router."""
        messages = plain(history)
        index = place_of(event.index)
        number = answers_in(messages[: index + 1]) - 1
        if 0 < index < len(messages) and 0 <= number < len(replies):
            prompt, answer = messages[index - 1]["content"], messages[index]["content"]
            self.studio.feedback(prompt, answer, replies[number].decision, bool(event.liked))  # type: ignore[attr-defined]

    @friendly(quiet=True)
    def refresh(self, choice: str, replies: list[Reply]) -> Step:
        """The lobes have changed: offer them, and draw the empty states anew."""
        lobes = self._lobes()
        offered = choices(lobes)
        value = choice if choice in [v for _, v in offered] else AUTOMATIC
        loading = is_loading(self.studio)
        panel = gr.skip() if replies else idle_panel(lobes, loading)
        return gr.update(choices=offered, value=value), panel, gr.update(placeholder=hero(lobes, loading))

    def _views(self, replies: list[Reply]) -> tuple[str, Any, str]:
        """Panel, token view and labels for the last reply."""
        panel = why_panel(replies[-1]) if replies else idle_panel(self._lobes(), is_loading(self.studio))
        return panel, _tokens(replies[-1] if replies else None), labels(replies, len(replies) - 1)

    def _lobes(self) -> list[tuple[str, str]]:
        """(name, colour) of the lobes that can answer."""
        return [(lobe.name, lobe.colour) for lobe in self.studio.lobes() if lobe.usable]


# ---- plain values --------------------------------------------------------------------------------------------------------


def is_loading(studio: Studio) -> bool:
    """Whether no base model is there yet, so that lobes may still come: those of a new home are put there by the loading."""
    status = studio.status()
    return status.state == "loading" and status.base is None


def hero(lobes: Sequence[tuple[str, str]], loading: bool = False) -> Markup:
    """What an empty conversation says."""
    experts = "Small experts"
    if len(lobes) > 1:
        experts = f"{len(lobes)} small experts"
    words = (
        f"{experts} share one frozen language model. Send a message, or pick one below, and watch which of them answers, "
        "and why."
    )
    if not lobes and loading:
        words = "The model is being loaded. You can ask already: the answer comes as soon as it is ready."
    elif not lobes:
        words = "There is no lobe yet, so the plain base model answers. Train your first lobe in the Train tab."
    return html('<div class="ml-hero"><h2>Ask, and see which lobe answers</h2><p>{}</p></div>', words)


def choices(lobes: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(what it says, its value) of the dropdown."""
    fixed = [("Automatic: the router decides", AUTOMATIC), ("Base model only", BASE_ONLY)]
    fixed += [("Mix by hand", MIX)] if lobes else []
    return fixed + [(f"Always {name}", f"lobe:{name}") for name, _ in lobes]


def _tokens(reply: Reply | None = None) -> Any:
    """The token view of a reply; nothing where its tokens were not weighed one by one."""
    card = token_card(reply.trace, reply.colours, done=reply.done) if reply else ""
    return gr.update(value=card, visible=bool(card))


def _reply(event: ChatEvent, lobes: tuple[tuple[str, str], ...], prompt: str) -> Reply:
    assert event.decision is not None
    return Reply(
        decision=event.decision,
        lobes=lobes,
        done=event.done,
        stopped=event.stopped,
        tokens=event.answer_tokens,
        tokens_per_second=event.tokens_per_second,
        first_token_ms=event.first_token_ms,
        dropped=event.dropped_messages,
        prompt=prompt,
        answer=event.text,
        trace=tuple(event.trace),
        cost=event.cost,
    )


def _busy() -> Any:
    return gr.update(value="", submit_btn=False, stop_btn="Stop")


def _idle(text: str | None = None) -> Any:
    """The box ready for a message; without `text` what the person is typing stays."""
    buttons: dict[str, Any] = {"submit_btn": "Send", "stop_btn": False}
    return gr.update(**buttons) if text is None else gr.update(value=text, **buttons)
