"""What every answer cost, and the sums of it for each router.

ledger.jsonl   a line for each answer, appended; never a prompt, an answer, or who asked

The file does not grow for ever: beyond LIMIT bytes the older half of its answers is folded into one
line for each router, which keeps every count and sum as it was. Medians are then of the answers
that still have a line of their own.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from ..lobes.card import now
from ..routing.decision import RoutingDecision
from .journal import Journal

LIMIT = 5_000_000
BASE = ""
"""The base model among the lobes of `by_lobe`."""
FOLDED = "folded"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """What one answer cost.

    Attributes:
        time: ISO 8601, UTC. router, stage: who decided. lobes: names of those that answered,
            heaviest first; none for the base.
        route_ms: of the decision; None where a person decided. first_token_ms: from the question to
            the first token, routing and reading the prompt included; None if there was none.
        seconds: of generation, reading the prompt included. tokens_per_second: of the answer, in that time.
        resident, resident_bytes: names of the lobes whose matrices were in memory when it ended,
            and what they take there.
        stopped: it was cut short, by a person or by an error.
    """

    time: str
    router: str
    stage: str
    lobes: tuple[str, ...]
    route_ms: float | None
    first_token_ms: float | None
    prompt_tokens: int
    answer_tokens: int
    seconds: float
    tokens_per_second: float
    resident: tuple[str, ...] = ()
    resident_bytes: int = 0
    stopped: bool = False

    @classmethod
    def of(cls, decision: RoutingDecision, lobes: Sequence[str], seconds: float, **more: Any) -> Cost:
        """Of an answer that was decided so and ends now; `more` are the other fields."""
        return cls(
            time=now(),
            router=decision.router,
            stage=decision.stage,
            lobes=tuple(lobes),
            route_ms=None if decision.router == "manual" else decision.elapsed_ms,
            seconds=seconds,
            tokens_per_second=more["answer_tokens"] / seconds if seconds > 0 else 0.0,
            **more,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Sums:
    """All answers of one router added up; `timed` of them have a `route_ms`."""

    replies: int = 0
    stopped: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0
    timed: int = 0
    route_ms: float = 0.0
    by_lobe: dict[str, int] = field(default_factory=dict)

    def add(self, cost: Cost) -> None:
        self.replies += 1
        self.stopped += cost.stopped
        self.prompt_tokens += cost.prompt_tokens
        self.answer_tokens += cost.answer_tokens
        self.seconds += cost.seconds
        self.timed += cost.route_ms is not None
        self.route_ms += cost.route_ms or 0.0
        for lobe in cost.lobes or (BASE,):
            self.by_lobe[lobe] = self.by_lobe.get(lobe, 0) + 1

    def join(self, other: _Sums) -> None:
        for name in ("replies", "stopped", "prompt_tokens", "answer_tokens", "seconds", "timed", "route_ms"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for lobe, replies in other.by_lobe.items():
            self.by_lobe[lobe] = self.by_lobe.get(lobe, 0) + replies


class Ledger:
    """The ledger of one home. Safe to use from several threads; a file that is damaged is read as
    far as it makes sense."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)
        self._lock = threading.RLock()
        self._totals: dict[str, dict[str, Any]] | None = None
        self._forget()

    def add(self, cost: Cost) -> None:
        """Note one answer. What cannot be written (a full disk) is logged: the answer matters more
        than its cost."""
        with self._lock:
            try:
                if self._journal.append(cost.to_json()) > LIMIT:
                    self._fold()
            except OSError as error:
                log.warning("the cost of an answer was not written to %s: %s", self._journal.path.name, error)

    def totals(self) -> dict[str, dict[str, Any]]:
        """For each router, the busiest first: replies, stopped, prompt_tokens, answer_tokens,
        seconds, route_ms and first_token_ms (medians), route_ms_mean, tokens_per_second (of all
        answers in all their seconds), by_lobe (replies; "" is the base). What is not known is None."""
        with self._lock:
            self._read()
            if self._totals is None:
                self._totals = self._add_up()
            return self._totals

    def recent(self, most: int = 20) -> list[Cost]:
        """The latest answers, newest first."""
        with self._lock:
            self._read()
            return self._costs[::-1][: max(0, most)]

    def clear(self) -> None:
        """Begin anew."""
        with self._lock:
            self._journal.path.unlink(missing_ok=True)
            self._journal = Journal(self._journal.path)  # the next file may get the number of this one
            self._forget()

    # ---- inside -----------------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        """Nothing has been read yet: neither folded sums nor costs."""
        self._folded: dict[str, _Sums] = {}
        self._costs: list[Cost] = []
        self._totals = None

    def _read(self) -> None:
        """Take in the lines that have come since the last time."""
        another, entries = self._journal.news()
        if another:
            self._forget()
        for entry in entries:
            self._totals = None
            with suppress(ValueError, TypeError, KeyError, AttributeError):
                if FOLDED in entry:
                    self._folded.setdefault(str(entry[FOLDED]), _Sums()).join(_sums(entry))
                else:
                    self._costs.append(_cost(entry))

    def _add_up(self) -> dict[str, dict[str, Any]]:
        sums: dict[str, _Sums] = {}
        for router, folded in self._folded.items():
            sums.setdefault(router, _Sums()).join(folded)
        for cost in self._costs:
            sums.setdefault(cost.router, _Sums()).add(cost)
        order = sorted(sums, key=lambda router: (-sums[router].replies, router))
        return {router: self._total(router, sums[router]) for router in order}

    def _total(self, router: str, sums: _Sums) -> dict[str, Any]:
        own = [cost for cost in self._costs if cost.router == router]
        return {
            "replies": sums.replies,
            "stopped": sums.stopped,
            "prompt_tokens": sums.prompt_tokens,
            "answer_tokens": sums.answer_tokens,
            "seconds": sums.seconds,
            "route_ms": _median([cost.route_ms for cost in own]),
            "route_ms_mean": sums.route_ms / sums.timed if sums.timed else None,
            "tokens_per_second": sums.answer_tokens / sums.seconds if sums.seconds > 0 else None,
            "first_token_ms": _median([cost.first_token_ms for cost in own]),
            "by_lobe": dict(sorted(sums.by_lobe.items(), key=lambda item: (-item[1], item[0]))),
        }

    def _fold(self) -> None:
        """Make the file smaller; replaced in one step, so that a crash loses nothing."""
        self._read()
        older, newer = self._costs[: len(self._costs) // 2], self._costs[len(self._costs) // 2 :]
        for cost in older:
            self._folded.setdefault(cost.router, _Sums()).add(cost)
        lines = [{FOLDED: router, **asdict(sums)} for router, sums in self._folded.items()]
        self._journal.rewrite([*lines, *(cost.to_json() for cost in newer)])


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return float(median(known))


def _cost(entry: Mapping[str, Any]) -> Cost:
    """Raises KeyError, TypeError or ValueError for what `Cost.to_json` has not made."""
    return Cost(
        time=_text(entry["time"]),
        router=_text(entry["router"]),
        stage=_text(entry["stage"]),
        lobes=tuple(_text(name) for name in entry["lobes"]),
        route_ms=None if entry["route_ms"] is None else _number(entry["route_ms"]),
        first_token_ms=None if entry["first_token_ms"] is None else _number(entry["first_token_ms"]),
        prompt_tokens=int(_number(entry["prompt_tokens"])),
        answer_tokens=int(_number(entry["answer_tokens"])),
        seconds=_number(entry["seconds"]),
        tokens_per_second=_number(entry["tokens_per_second"]),
        resident=tuple(_text(name) for name in entry["resident"]),
        resident_bytes=int(_number(entry["resident_bytes"])),
        stopped=bool(entry["stopped"]),
    )


def _sums(entry: Mapping[str, Any]) -> _Sums:
    whole = {
        name: int(_number(entry[name])) for name in ("replies", "stopped", "prompt_tokens", "answer_tokens", "timed")
    }
    lobes = {_text(name): int(_number(replies)) for name, replies in entry["by_lobe"].items()}
    return _Sums(seconds=_number(entry["seconds"]), route_ms=_number(entry["route_ms"]), by_lobe=lobes, **whole)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(value)
    return value
