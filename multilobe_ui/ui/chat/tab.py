"""The Chat tab: a conversation on the left, why this lobe answered on the right.

Nothing here is shared between people. The conversation lives in the browser; beside it goes a list
of `Reply`, one for each answer, from which the panel, the token view and the labels over the
answers are drawn. An answer is one generator; closing it (Stop, a closed page) ends the generation
at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import ConfigError
from ..kit.guard import friendly
from ..kit.html import Markup, html
from ..kit.pulse import QUICK
from ..kit.routing_row import MIX, PRESET, RoutingRow, routers_of
from ..kit.static import script
from .answering import WAITING, Answering, Step, idle, tokens_of
from .conversation import Message, answers_in, conversation, place_of, plain, question_at
from .knobs import build_knobs
from .reply import Reply
from .why_panel import labels, why_panel

if TYPE_CHECKING:
    from ...app.studio import Studio

AUTOMATIC, BASE_ONLY = "automatic", "base"  # as in studio.py, which the page must be able to outlive
LONGEST_MESSAGE = 100_000
# (text, what the card says): rows of sample_data, one for each demo lobe, and two that belong to none
STARTERS = (
    ("How does a vaccine protect a child?", ""),
    ("I wrote a song. How does copyright help me?", ""),
    ("What is the safe way to delete a key from a dictionary?", ""),
    ("An Egyptian pyramid has a square base, how do I get its volume?", ""),
    ("Review: The zip was broken when it arrived and the colour had faded.", ""),
    (
        "Condense this into one sentence: Trees clean the air in a city and give shade in summer. They "
        "slow the rain as well, which helps to prevent floods. The city plans to plant ten thousand trees "
        "in the next five years.",
        "Condense this into one sentence: Trees clean the air in a city and give shade…",
    ),
    ("Good morning! How are you today?", ""),
    (PRESET, ""),
)


class ChatTab:
    """See the module's text. `build` inside gr.Blocks, then `follow` whatever tells that the lobes
    have changed."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.answering = studio, Answering(studio)
        self.routing = RoutingRow(studio)

    # ---- layout ----------------------------------------------------------------------------------

    def build(self) -> None:
        with gr.Row(elem_id="chat-row"):
            with gr.Column(scale=13, min_width=340):
                self._conversation()
                self._composer()
            with gr.Column(scale=8, min_width=320):
                self.panel = gr.HTML(self.answering.idle_panel(), elem_id="why")
                self.tokens = gr.HTML("", visible=False, elem_id="tokens", js_on_load=script("token_view"))
        self.labels = gr.HTML(labels([]))
        self.replies = gr.State([])
        self._wire()

    def _conversation(self) -> None:
        examples: list[Any] = [{"text": t, "display_text": card or t} for t, card in STARTERS]
        self.chat = gr.Chatbot(
            elem_id="chat", label="Conversation", show_label=False, layout="bubble", editable="user",
            buttons=["copy"], placeholder=hero(self.answering.lobes(), self.answering.is_loading()),
            examples=examples, container=False, allow_tags=False, latex_delimiters=[],
        )  # fmt: skip

    def _composer(self) -> None:
        with gr.Column(elem_id="composer"):
            self.box = gr.Textbox(
                elem_id="message", label="Message", show_label=False, container=False, autofocus=True,
                lines=1,
                max_lines=8, max_length=LONGEST_MESSAGE, placeholder="Ask anything…", submit_btn="Send",
            )  # fmt: skip
            with gr.Row(elem_id="controls"):
                self.choice = gr.Dropdown(
                    choices(self.answering.lobes()), value=AUTOMATIC, label="Who answers", container=False,
                    elem_id="choice", min_width=220,
                )  # fmt: skip
                self.routing.build()
                with gr.Accordion("Advanced", open=False, elem_id="advanced"):
                    self.knobs = build_knobs()
            self.routing.build_mix()

    def _wire(self) -> None:
        inputs = [self.choice, *self.knobs, *self.routing.inputs]
        shown = [self.chat, self.box, self.panel, self.tokens, self.labels, self.replies]
        answering: dict[str, Any] = {
            "outputs": shown, "concurrency_limit": 4, "concurrency_id": "chat", "show_progress": "hidden",
            "api_visibility": "private",
        }  # fmt: skip
        runs: Any = [
            self.box.submit(self.send, [self.box, self.chat, self.replies, *inputs], **answering),
            self.chat.example_select(self.start_with, [self.chat, self.replies, *inputs], **answering),
            self.chat.retry(self.retry, [self.chat, self.replies, *inputs], **answering),
            self.chat.edit(self.edit, [self.chat, self.replies, *inputs], **answering),
        ]
        self.box.stop(self.stopped, [self.box, self.chat, self.replies], shown, cancels=runs, **QUICK)
        self.chat.undo(self.undo, [self.chat, self.replies], shown, **QUICK)
        self.chat.clear(self.cleared, None, shown[1:], cancels=runs, **QUICK)
        self.chat.select(self.look_at, [self.chat, self.replies], shown[2:5], **QUICK)
        self.routing.wire(self.choice, self.box)
        self.chat.like(self.like, [self.chat, self.replies], None, **QUICK)

    def offered(self) -> object:
        """What the tab shows of lobes and routers."""
        lobes = [(lobe.id, lobe.name, lobe.colour, lobe.usable) for lobe in self.studio.desk().lobes()]
        routers = [(view.name, view.fitted, view.stale) for view in routers_of(self.studio)]
        return lobes, routers, self.answering.is_loading()

    def follow(self, when: Callable[..., Any]) -> None:
        """Refresh what depends on the lobes whenever the event listener `when` fires (a State's
        change, a page's load)."""
        when(self.refresh, [self.choice, self.replies], [self.choice, self.panel, self.chat], **QUICK)
        self.routing.follow(when)

    # ---- handlers: an answer ---------------------------------------------------------------------

    @friendly
    def send(
        self, text: str, history: list[Message], replies: list[Reply], choice: str, *knobs: Any
    ) -> Iterator[Step]:
        """The person sent a message."""
        before = conversation(history, replies)
        if not isinstance(text, str) or not text.strip():
            yield (gr.skip(),) * 6
            return
        messages = [*before, {"role": "user", "content": text.strip()}]
        yield from self.answering.answer(messages, before, replies, text, str(choice), knobs)

    @friendly
    def start_with(
        self, history: list[Message], replies: list[Reply], event: gr.SelectData, choice: str, *knobs: Any
    ) -> Iterator[Step]:
        """The person clicked a starter."""
        value = event.value
        if isinstance(value, dict):
            value = value.get("text", "")
        yield from self.send(str(value), history, replies, choice, *knobs)

    @friendly
    def retry(
        self, history: list[Message], replies: list[Reply], event: gr.RetryData, choice: str, *knobs: Any
    ) -> Iterator[Step]:
        """Answer the same message again; later turns go."""
        before = conversation(history, replies)
        messages = before[: question_at(before, event.index) + 1]
        yield from self.answering.answer(messages, before, replies, "", str(choice), knobs)

    @friendly
    def edit(
        self, history: list[Message], replies: list[Reply], event: gr.EditData, choice: str, *knobs: Any
    ) -> Iterator[Step]:
        """A message was rewritten: answer it, later turns go."""
        before = conversation(history, replies)
        question = question_at(before, event.index)
        text = str(event.value).strip()
        if not text:
            raise ConfigError("The message is empty now. Write something, or undo it.")
        messages = [*before[:question], {"role": "user", "content": text}]
        before[question] = {"role": "user", "content": str(event.previous_value)}
        yield from self.answering.answer(messages, before, replies, text, str(choice), knobs)

    # ---- handlers: everything else ---------------------------------------------------------------

    @friendly
    def stopped(self, text: str, history: list[Message], replies: list[Reply]) -> Step:
        """Stop was pressed, and the generator is closed. What came so far stays; before the first
        word, so does nothing."""
        messages, begun = plain(history), gr.skip()
        if not messages:
            return [], idle(text), *self.answering.views([]), []
        if messages[-1]["role"] == "user" and len(replies) == answers_in(messages) + 1:
            # the first words were under way to the page when Stop was pressed there
            begun = messages = [*messages, {"role": "assistant", "content": replies[-1].answer or WAITING}]
        if messages[-1]["role"] == "assistant" and len(replies) == answers_in(messages):
            if not replies[-1].done:
                replies = [*replies[:-1], replace(replies[-1], done=True, stopped=True)]
            return begun, idle(), *self.answering.views(replies), replies
        question = question_at(messages, len(messages) - 1)
        replies = replies[: answers_in(messages[:question])]
        draft = text or messages[question]["content"]
        return messages[:question], idle(draft), *self.answering.views(replies), replies

    @friendly
    def undo(self, history: list[Message], replies: list[Reply], event: gr.UndoData) -> Step:
        """Take back the last turn; its text returns to the box."""
        messages = plain(history)
        question = question_at(messages, event.index)
        replies = replies[: answers_in(messages[:question])]
        draft = messages[question]["content"]
        return messages[:question], idle(draft), *self.answering.views(replies), replies

    def cleared(self) -> Step:
        return idle(), *self.answering.views([]), []

    @friendly(quiet=True)
    def look_at(self, history: list[Message], replies: list[Reply], event: gr.SelectData) -> Step:
        """A message was clicked: show why it was answered by whom it was answered."""
        messages = plain(history)
        index = place_of(event.index)
        number = answers_in(messages[:index])
        if index < 0 or number >= len(replies):
            return gr.skip(), gr.skip(), gr.skip()
        return why_panel(replies[number]), tokens_of(replies[number]), labels(replies, number)

    @friendly(quiet=True)
    def like(self, history: list[Message], replies: list[Reply], event: gr.LikeData) -> None:
        """Keep the person's opinion of an answer, for whoever tunes the router."""
        messages = plain(history)
        index = place_of(event.index)
        number = answers_in(messages[: index + 1]) - 1
        if 0 < index < len(messages) and 0 <= number < len(replies):
            prompt, answer = messages[index - 1]["content"], messages[index]["content"]
            self.studio.feedback(prompt, answer, replies[number].decision, bool(event.liked))

    @friendly(quiet=True)
    def refresh(self, choice: str, replies: list[Reply]) -> Step:
        """The lobes have changed: offer them, and draw the empty states anew."""
        lobes = self.answering.lobes()
        offered = choices(lobes)
        if choice not in [value for _, value in offered]:
            choice = AUTOMATIC
        panel = gr.skip()
        if not replies:
            panel = self.answering.idle_panel()
        placeholder = hero(lobes, self.answering.is_loading())
        return gr.update(choices=offered, value=choice), panel, gr.update(placeholder=placeholder)


# ---- plain values --------------------------------------------------------------------------------


def hero(lobes: Sequence[tuple[str, str]], loading: bool = False) -> Markup:
    """What an empty conversation says."""
    experts = "Small experts"
    if len(lobes) > 1:
        experts = f"{len(lobes)} small experts"
    words = (
        f"{experts} share one frozen language model. Send a message, or pick one below, and watch which of "
        "them answers, and why."
    )
    if not lobes and loading:
        words = "The model is being loaded. You can ask already: the answer comes as soon as it is ready."
    elif not lobes:
        words = (
            "There is no lobe yet, so the plain base model answers. Train your first lobe in the Train tab."
        )
    return html('<div class="ml-hero"><h2>Ask, and see which lobe answers</h2><p>{}</p></div>', words)


def choices(lobes: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(what it says, its value) of the dropdown."""
    fixed = [("Automatic: the router decides", AUTOMATIC), ("Base model only", BASE_ONLY)]
    if lobes:
        fixed.append(("Mix by hand", MIX))
    return fixed + [(f"Always {name}", f"lobe:{name}") for name, _ in lobes]
