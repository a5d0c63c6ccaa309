"""The Lab's section "Compare": one prompt, up to four answers that grow side by side, and a vote
for the best.

What is compared lives on the server in the visitor's own session, so a vote is always for answers
that this visitor was shown. A comparison is one generator; closing it (Stop, a closed page) ends
the generation at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...app.feedback import ROUTING, TRAINING
from ...errors import BackboneError, ConfigError
from ...evaluation.compare import MIX, MOST_COLUMNS
from ..kit import guard, text
from ..kit.guard import friendly
from ..kit.html import Markup, html
from ..kit.lobes import colours_of
from ..kit.pulse import QUICK, Pulse
from ..kit.table import bare
from .compare_card import LETTERS, cards, empty_card, feedback_line, summary
from .compare_form import LONGEST_ANSWER, NOBODY, columns_of, defaults, offers, sampling_of
from .experiment import ExperimentPanel

if TYPE_CHECKING:
    from ...app.studio import Studio
    from ...evaluation.compare import Comparison

LONGEST_PROMPT = 100_000
PROBE_SECONDS = 0.25
DRAW_SECONDS = 0.1
"""Least time between two drawings of the columns."""
EMPTY = "Write a prompt and press Compare."
UNUSED = "Nobody answers here. Choose who should."
Step = tuple[Any, ...]


@dataclass(frozen=True)
class Shown:
    """What this visitor's page shows. `places` on the page of the columns that were used; `voted`
    once it has been."""

    prompt: str = ""
    places: tuple[int, ...] = ()
    comparison: Comparison | None = None
    voted: bool = False

    @property
    def may_vote(self) -> bool:
        seen = self.comparison
        return bool(seen and seen.done and not seen.stopped and len(seen.columns) > 1 and not self.voted)


class CompareSection:
    """See the module's text. Call `build` inside gr.Blocks, then `follow` whatever tells that the
    lobes have changed."""

    title = "Compare"
    about = (
        "One prompt, up to four answers side by side: the base, the router's choice, any lobe, any mixture. "
        "They are rows of one batch with the same seed, so what differs is only who answers."
    )
    panels: Sequence[ExperimentPanel] = ()

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    # ---- layout ----------------------------------------------------------------------------------

    def build(self) -> None:
        self.state = gr.State(Shown())
        self.known = gr.State(self._names())
        with gr.Row(elem_classes="lab-compare-ask"):
            self.prompt = gr.Textbox(
                label="Prompt", show_label=False, container=False, lines=1, max_lines=8,
                max_length=LONGEST_PROMPT, scale=5, placeholder="One prompt for all columns…",
                elem_id="lab-compare-prompt", min_width=240,
            )  # fmt: skip
            self.run = gr.Button("Compare", variant="primary", elem_id="lab-compare-run", min_width=110)
            self.stop = gr.Button("Stop", variant="stop", visible=False, elem_id="lab-compare-stop", min_width=110)
        self._settings()
        names = self._names()
        self.choosers: list[Any] = []
        self.weights: list[Any] = []
        self.cards: list[Any] = []
        self.best: list[Any] = []
        with gr.Row(elem_classes="lab-compare-columns", elem_id="lab-compare-columns"):
            for place, choice in enumerate(defaults(names)):
                self._column(place, choice, names)
        with gr.Row(elem_classes="lab-compare-verdict"):
            self.summary = bare(_note(names), elem_id="lab-compare-summary")
            self.tie = gr.Button("No difference", size="sm", interactive=False, elem_id="lab-compare-tie")
        self._feedback()
        self._wire()

    def _settings(self) -> None:
        with (
            gr.Accordion("Settings: longest answer, temperature, seed", open=False, elem_id="lab-compare-settings"),
            gr.Row(),
        ):
            self.limit = gr.Slider(1, LONGEST_ANSWER, 120, step=1, label="Longest answer", info="tokens", min_width=200)
            self.temperature = gr.Slider(
                0, 2, 0, step=0.05, label="Temperature", info="0 is always the likeliest token", min_width=200
            )
            self.seed = gr.Textbox(
                "", label="Seed", info="the same for all columns", placeholder="random", max_length=20,
                min_width=160
            )

    def _column(self, place: int, choice: str, names: Sequence[str]) -> None:
        at = f"lab-compare-{LETTERS[place].lower()}"
        with gr.Column(min_width=0, elem_classes="lab-compare-column"):
            plain: dict[str, Any] = {"show_label": False, "container": False}
            who = gr.Dropdown(
                offers(names),
                value=choice,
                label=f"Column {LETTERS[place]}",
                elem_id=f"{at}-who",
                interactive=True,
                **plain,
            )
            weights = gr.Textbox(
                "", label=f"Weights of column {LETTERS[place]}", placeholder="python=0.6, maths=0.4",
                visible=False, max_length=2000, elem_id=f"{at}-weights", **plain,
            )  # fmt: skip
            self.choosers.append(who)
            self.weights.append(weights)
            self.cards.append(bare(empty_card(place, UNUSED if choice == NOBODY else EMPTY), elem_id=f"{at}-card"))
            self.best.append(gr.Button(f"{LETTERS[place]} is best", size="sm", interactive=False, elem_id=f"{at}-best"))

    def _feedback(self) -> None:
        with gr.Row(elem_classes="train-actions lab-actions lab-compare-export"):
            self.counts = bare(self.count(), elem_id="lab-compare-feedback")
            private = not self.studio.shared
            self.routing = gr.Button(
                "Export as labelled prompts", size="sm", visible=private, elem_id="lab-compare-routing"
            )
            self.training = gr.Button(
                "Export as training set", size="sm", visible=private, elem_id="lab-compare-training"
            )
            self.download = gr.DownloadButton("Download", size="sm", visible=False, elem_id="lab-compare-download")

    def _wire(self) -> None:
        quick: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
        asked = [self.prompt, self.limit, self.temperature, self.seed, *self.choosers, *self.weights]
        answering: dict[str, Any] = {
            "outputs": self.outputs, "concurrency_limit": 2, "concurrency_id": "lab-compare",
            "show_progress": "minimal",
            "show_progress_on": self.summary, "api_visibility": "private",
        }  # fmt: skip
        # one event of both, so that Enter does not begin another one meanwhile
        runs: Any = gr.on([self.run.click, self.prompt.submit], self.compare, asked, **answering)
        self.stop.click(self.stopped, self.state, self.outputs, cancels=runs, **quick)
        for place, (chooser, weights, card) in enumerate(zip(self.choosers, self.weights, self.cards, strict=True)):
            chooser.change(partial(self.picked, place), [chooser, weights, self.state], [weights, card], **quick)
        # through the queue, for without it Gradio shows no word of thanks
        voting: dict[str, Any] = {
            "inputs": self.state, "outputs": [*self.best, self.tie, self.state, self.counts],
            "concurrency_limit": None,
            "show_progress": "hidden", "api_visibility": "private",
        }  # fmt: skip
        for place, button in enumerate([*self.best, self.tie]):
            button.click(partial(self.vote, None if button is self.tie else place), **voting)
        for button, kind in ((self.routing, ROUTING), (self.training, TRAINING)):
            button.click(partial(self.export, kind), None, self.download, api_visibility="private", concurrency_limit=2)

    @property
    def outputs(self) -> list[Any]:
        """What a comparison fills."""
        return [*self.cards, *self.best, self.tie, self.run, self.stop, self.summary, self.state]

    def follow(self, when: Callable[..., Any]) -> None:
        """Offer the lobes that there are whenever the event listener `when` fires (a change, a
        page's load)."""
        when(
            self.refresh, [self.known, self.state, *self.choosers],
            [self.known, self.summary, *self.choosers], queue=False, show_progress="hidden",
            api_visibility="private",
        )  # fmt: skip

    # ---- handlers: a comparison ------------------------------------------------------------------

    @friendly
    def compare(self, prompt: Any, limit: Any, temperature: Any, seed: Any, *told: Any) -> Iterator[Step]:
        """Run the columns, and draw them as they grow."""
        asked = guard.a_text(prompt, "The prompt", LONGEST_PROMPT)
        sampling = sampling_of(limit, temperature, seed)
        chosen = columns_of(told[:MOST_COLUMNS], told[MOST_COLUMNS:], self._names())
        places, stop = tuple(chosen), threading.Event()
        try:
            yield *_empty(chosen, "Deciding who answers…"), *_votes(None), *_buttons(True), "", Shown()
            yield from self._until_ready()
            events = self.studio.lab.compare(asked, list(chosen.values()), sampling, stop)
            with closing(events) as events:  # type: ignore[type-var]
                yield from self._stream(events, asked, places)
        except Exception:
            yield *_empty(chosen, EMPTY), *_votes(None), *_buttons(False), _note(self._names()), Shown()
            raise
        finally:
            stop.set()

    def _until_ready(self) -> Iterator[Step]:
        """While the base model loads, say so; the answers follow by themselves."""
        said = ""
        while (status := self.studio.status()).state == "loading" and status.base is None:
            if status.message != said:
                said = status.message
                words = html('<p class="lab-compare-sum">{} Then the columns begin.</p>', said)
                yield *(gr.skip(),) * (len(self.outputs) - 2), words, gr.skip()
            time.sleep(PROBE_SECONDS)
        if status.state == "failed":
            raise BackboneError(status.message)

    def _stream(self, events: Iterator[Comparison], prompt: str, places: Sequence[int]) -> Iterator[Step]:
        drawn, still = -DRAW_SECONDS, (gr.skip(),) * (MOST_COLUMNS + 1)
        colours = colours_of(self.studio)
        for event in events:
            if not event.done and time.monotonic() - drawn < DRAW_SECONDS:
                continue
            drawn = time.monotonic()
            shown = Shown(prompt, tuple(places), event)
            told = self._laid_out(cards(event, colours, places), places)
            ended = (*_votes(shown), *_buttons(False)) if event.done else (*still, gr.skip(), gr.skip())
            yield *told, *ended, summary(event, places), shown

    @staticmethod
    def _laid_out(drawn: Sequence[str], places: Sequence[int]) -> list[Any]:
        """Each card at its place; what nobody uses stays."""
        by_place = dict(zip(places, drawn, strict=True))
        return [by_place.get(place, gr.skip()) for place in range(MOST_COLUMNS)]

    @friendly
    def stopped(self, state: Any) -> Step:
        """Stop was pressed, and the generator is closed. What came so far stays."""
        shown = state if isinstance(state, Shown) else Shown()
        if shown.comparison is None:
            return *_empty(range(MOST_COLUMNS), EMPTY), *_votes(None), *_buttons(False), _note(self._names()), Shown()
        drawn = cards(shown.comparison, colours_of(self.studio), shown.places, ended=True)
        told = self._laid_out(drawn, shown.places)
        return *told, *_votes(shown), *_buttons(False), summary(shown.comparison, shown.places, ended=True), gr.skip()

    # ---- handlers: votes and feedback ------------------------------------------------------------

    @friendly
    def vote(self, place: int | None, state: Any) -> Step:
        """The column at `place` is best; None says that there is no difference."""
        shown = state if isinstance(state, Shown) else Shown()
        if not shown.may_vote or shown.comparison is None or not (place is None or place in shown.places):
            said = "You have voted on these answers." if shown.voted else "There is nothing to vote on yet."
            raise ConfigError(f"{said} Compare again, and let the answers come to their end.")
        answers = [
            {"choice": one.column.choice, "lobe": one.decision.chosen, "text": one.text}
            for one in shown.comparison.columns
        ]
        self.studio.lab.vote(shown.prompt, answers, None if place is None else shown.places.index(place))
        after = Shown(shown.prompt, shown.places, shown.comparison, voted=True)
        said = "no difference" if place is None else f"{LETTERS[place]} is best"
        gr.Info(f"Thank you: {said}. It is kept with the feedback.", title="Your vote", duration=5)
        return *_votes(after, place), after, self.count()

    @friendly
    def export(self, kind: str) -> Any:
        """A file of the feedback, to be downloaded."""
        path = self.studio.desk().lab.export_feedback(kind)
        label = f"Download {path.name} ({text.size(path.stat().st_size)})"
        return gr.update(value=guard.downloadable(path), label=label, visible=True)

    def watch(self, pulse: Pulse) -> None:
        """Follow the feedback: thumbs come from Chat, and votes from other pages."""
        pulse.when(self.count)(self.count, None, self.counts, **QUICK)

    @friendly(quiet=True)
    def count(self) -> Markup:
        return feedback_line(self.studio.lab.feedback_counts(), self.studio.shared)

    # ---- handlers: choosing ----------------------------------------------------------------------

    @friendly(quiet=True)
    def picked(self, place: int, choice: Any, weights: Any, state: Any) -> tuple[Any, Any]:
        """A column was given to somebody. A mixture asks for weights, and begins with an example;
        an answer stays."""
        names = self._names()[:2]
        example = ", ".join(f"{name}={weight}" for name, weight in zip(names, (0.6, 0.4), strict=False))
        value = weights if isinstance(weights, str) and weights.strip() else example
        answered = isinstance(state, Shown) and place in state.places
        card = gr.skip() if answered else empty_card(place, EMPTY if choice else UNUSED)
        return gr.update(visible=choice == MIX, value=value), card

    @friendly(quiet=True)
    def refresh(self, known: Any, state: Any, *choices: Any) -> Step:
        """The lobes are others now: offer them; whoever is gone makes room for the default."""
        names = self._names()
        offered = [value for _, value in offers(names)]
        usual = defaults(names)
        values = [choice if choice in offered else usual[place] for place, choice in enumerate(choices)]
        if not known and names:  # the first lobes: columns that nobody could have filled
            values = [usual[place] if value == NOBODY else value for place, value in enumerate(values)]
        note = gr.skip() if isinstance(state, Shown) and state.comparison else _note(names)
        return names, note, *(gr.update(choices=offers(names), value=value) for value in values)

    def _names(self) -> list[str]:
        return [lobe.name for lobe in self.studio.desk().lobes() if lobe.usable]


# ---- plain values --------------------------------------------------------------------------------


def _note(names: Sequence[str]) -> Markup:
    if names:
        return Markup()
    return Markup(
        '<p class="lab-compare-sum">There is no lobe yet, so the base model answers in every column. '
        "Train one in the Train tab.</p>"
    )


def _empty(used: Container[int], words: str) -> list[str]:
    """Cards without an answer; `used` are the places where somebody is to answer."""
    return [empty_card(place, words if place in used else UNUSED) for place in range(MOST_COLUMNS)]


def _votes(shown: Shown | None, chosen: int | None = -1) -> list[Any]:
    """The vote buttons, and that for a tie: on once there is something to vote on. `chosen`: what
    was voted for, -1 is not yet."""
    on = shown is not None and shown.may_vote
    best = [
        gr.update(
            value="Your vote" if chosen == place else f"{LETTERS[place]} is best",
            interactive=on and shown is not None and place in shown.places,
            variant="primary" if chosen == place else "secondary",
        )
        for place in range(MOST_COLUMNS)
    ]
    tie = gr.update(interactive=on, value="Your vote: no difference" if chosen is None else "No difference")
    return [*best, tie]


def _buttons(running: bool) -> tuple[Any, Any]:
    """Compare and Stop: the one that would work."""
    return gr.update(visible=not running), gr.update(visible=running)
