"""What is remembered of an answer beside its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...routing.decision import NEGLIGIBLE, RoutingDecision
from ..kit.figures import BASE_COLOUR
from ..kit.text import colour, parts_of
from .token_view import mean_weights

if TYPE_CHECKING:
    from ...app.ledger import Cost
    from ...app.views import ChatEvent, TokenTrace


@dataclass(frozen=True)
class Reply:
    """What is remembered of one answer, for as long as the conversation is open.

    Attributes:
        decision: what the router said. lobes: (name, colour) of all lobes at that moment, so that
            an old reply still shows the brain that gave it.
        done, stopped: it is complete; it was cut short by a person.
        tokens, tokens_per_second, first_token_ms, dropped: of the answer; `dropped` messages no
            longer fitted the context.
        prompt: the message that was answered. answer: its whole text so far.
        trace: how each token was weighed, where a router weighs tokens. cost: of a complete answer.
    """

    decision: RoutingDecision
    lobes: tuple[tuple[str, str], ...] = ()
    done: bool = False
    stopped: bool = False
    tokens: int = 0
    tokens_per_second: float = 0.0
    first_token_ms: float | None = None
    dropped: int = 0
    prompt: str = ""
    answer: str = ""
    trace: Sequence[TokenTrace] = ()
    cost: Cost | None = None
    colours: Mapping[str, str] = field(init=False, default_factory=dict)

    @classmethod
    def of(cls, event: ChatEvent, lobes: tuple[tuple[str, str], ...], prompt: str) -> Reply:
        """From an event that has a decision."""
        assert event.decision is not None
        return cls(
            event.decision, lobes, done=event.done, stopped=event.stopped, tokens=event.answer_tokens,
            tokens_per_second=event.tokens_per_second, first_token_ms=event.first_token_ms,
            dropped=event.dropped_messages, prompt=prompt, answer=event.text, trace=tuple(event.trace),
            cost=event.cost,
        )  # fmt: skip

    def __post_init__(self) -> None:
        object.__setattr__(self, "colours", dict(self.lobes))

    @property
    def weights(self) -> Mapping[str, float]:
        """What ran: of a complete answer whose tokens were weighed one by one, their mean; else
        what was decided."""
        if self.done and self.trace:
            return mean_weights(self.trace)
        return self.decision.weights

    @property
    def parts(self) -> Sequence[str]:
        """The lobes that ran, heaviest first, without those of negligible weight; none for the base model."""
        names = parts_of(self.weights)
        return [name for name in names if abs(self.weights[name]) >= NEGLIGIBLE] or names[:1]

    @property
    def mix(self) -> Mapping[str, float]:
        """The weights of `parts`."""
        return {name: self.weights[name] for name in self.parts}

    @property
    def colour(self) -> str:
        """Of the heaviest lobe; the base model's own where none ran."""
        if not self.parts:
            return BASE_COLOUR
        return colour(self.colours.get(self.parts[0]))
