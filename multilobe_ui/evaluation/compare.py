"""Compare: one prompt, up to four answers that grow side by side, so that nothing differs but who answers.

The columns are rows of one batch, each under its own weights: the same prompt, the same seed, the
same step at the same time. A greedy column gives the tokens that it would give alone. Routers that
weigh every token anew (X-LoRA, Arrow) need a mixer, and a batch has one mixer or none; so each such
router (with its mixing) has a batch of its own, and all batches go in lockstep, a token each in turn.

Torch is imported by the call, not by this module, so that the page may know what a column is before
the model is loaded.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..routing.decision import AUTO, Mixing, RoutingDecision
from ..settings import SamplingConfig, check

if TYPE_CHECKING:
    from ..base.backbone import Messages
    from ..generation.decode import Request, TextPieces
    from ..lobes.bank import LobeBank
    from ..model import MultiLobeModel

AUTOMATIC = "automatic"
BASE_ONLY = "base"
MIX = "mix"
LOBE_PREFIX = "lobe:"
MOST_COLUMNS = 4
EVENT_SECONDS = 0.1
"""Seconds at least between two events: a browser that is sent more draws later and later, and Stop
comes too late."""
WORD = re.compile(r"[^\W\u3040-\u30ff\u3400-\u9fff]+|\S")
"""A word, or one other sign; Chinese and Japanese have no spaces, so each of their characters
counts as a word."""
MANY_WORDS = 300


@dataclass(frozen=True)
class Column:
    """Who answers in one column.

    Attributes:
        choice: AUTOMATIC, BASE_ONLY, "lobe:NAME", or MIX.
        router, mixing: who decides if the choice is AUTOMATIC (None is the model's own), and how
            many lobes it may choose.
        weights: lobe's name → weight, if the choice is MIX.
    """

    choice: str = AUTOMATIC
    router: str | None = None
    mixing: Mixing = AUTO
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """One column at one moment.

    Attributes:
        text: the answer so far. ids: its tokens. done: whether it has ended.
        seconds: of generation, until it ended. All columns share the machine, so each would be faster alone.
    """

    column: Column
    decision: RoutingDecision
    text: str = ""
    ids: tuple[int, ...] = ()
    done: bool = False
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def tokens_per_second(self) -> float:
        return len(self.ids) / self.seconds if self.ids and self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Agreement:
    """How a column's text stands to that of the first column.

    Attributes:
        leaves: the first character (from 0) where they part; the length of the shorter if it begins
            the longer; None if they are the same.
        marks: (start, end) in this text of words that the first column does not have there;
            neighbours are one span.
    """

    leaves: int | None = None
    marks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Comparison:
    """One moment of all columns; `agreement` has an entry for each of them once all are done, and
    is empty before.

    Attributes:
        seed: what every column draws by; None where all are greedy.
        dropped_messages: oldest messages of a conversation that no longer fitted the context.
        stopped: whether a person ended it.
    """

    columns: tuple[Answer, ...]
    done: bool
    stopped: bool
    seed: int | None
    prompt_tokens: int
    dropped_messages: int
    seconds: float
    agreement: tuple[Agreement, ...] = ()


def compare(
    model: MultiLobeModel,
    prompt: str | Messages,
    columns: Sequence[Column],
    sampling: SamplingConfig | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Comparison]:
    """Answer a prompt or a conversation once for every column: first an event with the decisions,
    then growing texts, last one that is done and says where the columns differ.

    Args:
        columns: 1 to 4. sampling: for all of them; a seed of None is drawn once, so that they share it.
        stop: set it to end early with what there is.

    Raises:
        ConfigError: no column or too many, a choice that is none, or a prompt that is empty or too long.
        RoutingError, LobeError: no lobe of that name.
    """
    from ..generation.decode import prepare

    check(1 <= len(columns) <= MOST_COLUMNS, "columns", len(columns), f"1 to {MOST_COLUMNS}")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    sampling, stop = _seeded(sampling or SamplingConfig()), stop or threading.Event()
    ids, kept = prepare(model.backbone, messages, sampling.max_new_tokens)
    decisions = [decide(model, messages, column) for column in columns]
    rows = [_Row(model, Answer(column, decided)) for column, decided in zip(columns, decisions, strict=True)]
    began, shown = time.perf_counter(), 0.0

    def event(done: bool = False) -> Comparison:
        answers = tuple(row.answer for row in rows)
        agreement = tuple(difference(answers[0].text, answer.text) for answer in answers) if done else ()
        seconds = time.perf_counter() - began
        stopped = done and stop.is_set()
        return Comparison(answers, done, stopped, sampling.seed, len(ids), len(messages) - len(kept), seconds, agreement)

    yield event()
    for tokens in _steps(model.bank, _batches(model, kept, rows, sampling, stop)):
        seconds = time.perf_counter() - began
        for place, token in tokens.items():
            rows[place].take(token, seconds)
        if time.perf_counter() - shown >= EVENT_SECONDS:
            shown = time.perf_counter()
            yield event()
    yield event(done=True)


def decide(model: MultiLobeModel, messages: Messages, column: Column) -> RoutingDecision:
    """Who answers a conversation in a column.

    Raises:
        ConfigError: a choice or router that is none. RoutingError: no lobe of that name.
    """
    choice = column.choice
    if choice == AUTOMATIC:
        return model.answers.decide(messages, router=column.router, mixing=column.mixing)
    if choice in (BASE_ONLY, MIX):
        return model.answers.decide(messages, weights=column.weights if choice == MIX else {})
    if not choice.startswith(LOBE_PREFIX):
        offered = f"'{AUTOMATIC}', '{BASE_ONLY}', '{MIX}' or '{LOBE_PREFIX}NAME'"
        raise ConfigError(f"The choice is {choice!r}: it must be {offered}.")
    return model.answers.decide(messages, lobe=choice.removeprefix(LOBE_PREFIX))


def difference(first: str, text: str) -> Agreement:
    """Where `text` leaves `first`, and which of its words `first` does not have there."""
    if first == text:
        return Agreement()
    ours, theirs = list(WORD.finditer(text)), list(WORD.finditer(first))
    # answers that run in circles would take seconds; in a long text frequent words need not begin a match
    matcher = SequenceMatcher(None, [w[0] for w in theirs], [w[0] for w in ours], autojunk=len(ours) > MANY_WORDS)
    changed = [(a, b) for kind, _, _, a, b in matcher.get_opcodes() if kind in ("replace", "insert")]
    marks = tuple((ours[a].start(), ours[b - 1].end()) for a, b in changed)
    shared = min(len(first), len(text))
    return Agreement(next((i for i in range(shared) if first[i] != text[i]), shared), marks)


def _seeded(sampling: SamplingConfig) -> SamplingConfig:
    if sampling.greedy:
        return replace(sampling, seed=None)
    return sampling if sampling.seed is not None else replace(sampling, seed=secrets.randbits(31))


class _Row:
    """A column at work: its tokens become text."""

    def __init__(self, model: MultiLobeModel, answer: Answer) -> None:
        from ..generation.decode import TextPieces

        self.answer = answer
        self._pieces: TextPieces = TextPieces(model.backbone)

    def take(self, token: int | None, seconds: float) -> None:
        """Its next token; None says that it has ended."""
        answer = self.answer
        if answer.done:
            return
        if token is None:
            text = (answer.text + self._pieces.rest()).strip()
            self.answer = replace(answer, text=text, done=True)
            return
        text = (answer.text + self._pieces.add(token)).lstrip()
        self.answer = replace(answer, text=text, ids=(*answer.ids, token), seconds=seconds)


Batch = Sequence[tuple[int, Any]]
"""(column's place, its Request): rows that are decoded together."""


def _batches(
    model: MultiLobeModel, messages: Messages, rows: Sequence[_Row], sampling: SamplingConfig, stop: threading.Event
) -> list[Batch]:
    """One batch of all columns with fixed weights, and one for each kind of mixer."""
    found: dict[Any, list[tuple[int, Request]]] = {}
    for place, row in enumerate(rows):
        column, decision = row.answer.column, row.answer.decision
        request = model.answers.request(messages, decision, sampling, mixing=column.mixing, stop=stop)
        batch = found.setdefault((decision.router, column.mixing) if request.mixer else None, [])
        # mixers of one kind are made anew for each request; a batch has to have the very same one
        batch.append((place, replace(request, mixer=batch[0][1].mixer) if batch else request))
    return list(found.values())


def _steps(bank: LobeBank, batches: Sequence[Batch]) -> Iterator[dict[int, int | None]]:
    """Column's place → its next token, None once it has ended; all batches take a step before any
    takes the next."""
    from ..generation.decode import generate_tokens

    running = [([place for place, _ in batch], generate_tokens(bank, [r for _, r in batch])) for batch in batches]
    while running:
        made: dict[int, int | None] = {}
        for places, steps in list(running):
            tokens = next(steps, None)
            if tokens is None:
                running = [other for other in running if other[1] is not steps]
            made |= dict(zip(places, tokens or [None] * len(places), strict=True))
        yield made
