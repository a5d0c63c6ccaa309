"""What people said about answers: thumbs in Chat, votes in Compare, kept as lines of
`feedback.jsonl` in the home.

    {"time", "prompt", "answer", "lobe", "liked"}                                             a thumb
    {"kind": "vote", "time", "prompt", "answers": [{"choice", "lobe", "text"}], "best": 0}    a vote; best is null for a tie

Lines are only ever added, and a line that cannot be read is passed over and counted. Who said it is not kept.
`routing_rows` makes labelled prompts of them, `training_rows` a training set.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import ConfigError, DataError
from ..evaluation.compare import MIX, MOST_COLUMNS
from ..lobes.card import now
from ..lobes.store import same_name
from ..routing.router import same_prompt
from .journal import Journal

LONGEST = 200_000
"""Most characters of a prompt or an answer that are kept."""
ROUTING, TRAINING = "routing", "training"
KINDS = (ROUTING, TRAINING)


@dataclass(frozen=True)
class Thumb:
    """An opinion of one answer; `lobe` is None where the base gave it."""

    prompt: str
    answer: str
    lobe: str | None
    liked: bool


@dataclass(frozen=True)
class Voted:
    """One of the answers of a vote. `choice` as in `comparison.Column`; `lobe` the heaviest lobe,
    None for the base."""

    choice: str
    lobe: str | None
    text: str


@dataclass(frozen=True)
class Vote:
    """An opinion of several answers to one prompt; `best` is the place of the winner, None for "no
    difference"."""

    prompt: str
    answers: tuple[Voted, ...]
    best: int | None

    @property
    def winner(self) -> Voted | None:
        return None if self.best is None else self.answers[self.best]


Opinion: TypeAlias = Thumb | Vote


@dataclass(frozen=True)
class Counts:
    """How much there is; `damaged` lines could not be read."""

    votes: int = 0
    thumbs: int = 0
    damaged: int = 0


class Feedback:
    """See the module's text. Safe to use from several threads, and from several processes.

    Args:
        path: the file; it is made with the first opinion.
    """

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)
        self._lock = threading.Lock()
        self._opinions: list[Opinion] = []
        self._damaged = 0

    @property
    def path(self) -> Path:
        return self._journal.path

    def thumb(self, prompt: str, answer: str, lobe: str | None, liked: bool) -> None:
        """Keep a thumb up or down for an answer of a lobe, or of the base (None). Raises
        ConfigError: a text is too long."""
        line = {"time": now(), "prompt": prompt, "answer": answer, "lobe": lobe, "liked": bool(liked)}
        if _opinion(line) is None:
            raise ConfigError(f"The opinion cannot be kept: its texts have more than {LONGEST:,} characters.")
        self._append(line)

    def vote(self, prompt: str, answers: Sequence[Mapping[str, Any]], best: int | None) -> None:
        """Keep which of several answers is best.

        Args:
            answers: {"choice", "lobe", "text"} each, as in `Voted`. best: place in `answers`; None
                says that none is better.

        Raises:
            ConfigError: fewer than two answers, one that is not of that form, or a best that is none of them.
        """
        line = {"kind": "vote", "time": now(), "prompt": prompt, "answers": [dict(a) for a in answers], "best": best}
        if _opinion(line) is None:
            raise ConfigError(
                f"The vote for answer {best!r} of {len(answers)} cannot be kept: a vote is for one of 2 to {MOST_COLUMNS} "
                "answers, or for none. Compare again, then vote."
            )
        self._append(line)

    def opinions(self) -> list[Opinion]:
        """Everything that was said, oldest first."""
        return self._read()[0]

    def counts(self) -> Counts:
        opinions, damaged = self._read()
        votes = sum(isinstance(opinion, Vote) for opinion in opinions)
        return Counts(votes, len(opinions) - votes, damaged)

    def routing_rows(self, lobes: Collection[str] | None = None) -> list[dict[str, str | None]]:
        """{"input", "lobe"}: prompts, each with the lobe that answered best; lobe None where the
        base won a vote.

        A liked answer of a lobe and a won vote say who should answer; a later word on the same
        prompt takes the place of an earlier one, and a thumb down takes back what was said for that
        lobe. A mixture that won says nothing of one lobe, a liked answer of the base nothing of the
        lobes, and a tie nothing at all.

        Args:
            lobes: leave out the rows of others, which have been deleted or renamed since.
        """
        said: dict[str, tuple[str, str | None]] = {}
        for one in self.opinions():
            key = same_prompt(one.prompt)
            if isinstance(one, Thumb):
                told = one.lobe is not None
                if not one.liked and told and key in said and said[key][1] == one.lobe:
                    del said[key]
                favoured, told = one.lobe, told and one.liked
            else:
                told = one.winner is not None and one.winner.choice != MIX
                favoured = one.winner.lobe if one.winner else None
            if told and key:
                said.pop(key, None)  # so that the latest come last
                said[key] = (one.prompt, favoured)
        known = [(prompt, _known(lobe, lobes)) for prompt, lobe in said.values()]
        return [{"input": prompt, "lobe": lobe or None} for prompt, lobe in known if lobe != ""]

    def training_rows(self, lobe: str | None = None) -> list[dict[str, str]]:
        """{"input", "output"}: liked answers and winners of votes, each once; a later thumb down
        takes an answer out again.

        Args:
            lobe: only answers of that lobe; None is all, those of the base as well.
        """
        kept: dict[tuple[str, str], str | None] = {}
        for one in self.opinions():
            if isinstance(one, Vote):
                if one.winner is not None:
                    kept[one.prompt, one.winner.text] = one.winner.lobe
            elif one.liked:
                kept[one.prompt, one.answer] = one.lobe
            else:
                kept.pop((one.prompt, one.answer), None)
        return [
            {"input": prompt, "output": answer}
            for (prompt, answer), own in kept.items()
            if prompt.strip() and answer.strip() and (lobe is None or (own is not None and same_name(own, lobe)))
        ]

    def export(self, kind: str, target: Path, lobes: Collection[str] | None = None) -> int:
        """Write the rows as JSONL, "routing" or "training"; returns how many there are.

        Args:
            lobes: for "routing": see `routing_rows`.

        Raises:
            ConfigError: another kind. DataError: there is not one row.
        """
        if kind not in KINDS:
            raise ConfigError(f"The kind of export is {kind!r}: it must be one of {', '.join(KINDS)}.")
        rows: Sequence[Mapping[str, str | None]] = self.training_rows()
        if kind == ROUTING:
            rows = self.routing_rows(lobes)
        if not rows:
            raise DataError(
                "There is no feedback to export yet. Give thumbs to answers in Chat, or vote for the best column in Compare."
            )
        Journal(target).rewrite(rows)
        return len(rows)

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._lock:
            self._journal.append(line)

    def _read(self) -> tuple[list[Opinion], int]:
        """(opinions, damaged lines)."""
        with self._lock:
            another, lines = self._journal.news()
            if another:
                self._opinions, self._damaged = [], 0
            parsed = [_opinion(line) for line in lines]
            self._opinions += [opinion for opinion in parsed if opinion is not None]
            self._damaged += parsed.count(None)
            return self._opinions.copy(), self._damaged


def _known(lobe: str | None, lobes: Collection[str] | None) -> str | None:
    """The lobe as it is written now, None for the base, "" for a lobe that is not among `lobes`."""
    return lobe if lobe is None or lobes is None else next((name for name in lobes if same_name(name, lobe)), "")


def _opinion(line: Any) -> Opinion | None:
    """What a line says; None if it is not what it should be."""
    if not isinstance(line, Mapping) or not _is_text(line.get("prompt")):
        return None
    if line.get("kind") == "vote":
        return _vote(line)
    answer, lobe, liked = line.get("answer"), line.get("lobe"), line.get("liked")
    if line.get("kind") is not None or not _is_text(answer) or not _is_name(lobe) or not isinstance(liked, bool):
        return None
    return Thumb(line["prompt"], line["answer"], lobe, liked)


def _vote(line: Mapping[str, Any]) -> Vote | None:
    answers, best = line.get("answers"), line.get("best")
    if not isinstance(answers, list) or not 2 <= len(answers) <= MOST_COLUMNS:
        return None
    if not all(isinstance(a, Mapping) and _is_voted(a) for a in answers):
        return None
    if best is not None and (not isinstance(best, int) or isinstance(best, bool) or not 0 <= best < len(answers)):
        return None
    voted = tuple(Voted(answer["choice"], answer["lobe"], answer["text"]) for answer in answers)
    return Vote(line["prompt"], voted, best)


def _is_voted(answer: Mapping[str, Any]) -> bool:
    return isinstance(answer.get("choice"), str) and _is_name(answer.get("lobe")) and _is_text(answer.get("text"))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST


def _is_name(value: Any) -> bool:
    return value is None or isinstance(value, str)
