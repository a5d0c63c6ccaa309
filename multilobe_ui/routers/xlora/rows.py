"""The rows that an X-LoRA head learns from: as token ids, with what the head reads of every token,
and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...base.backbone import Backbone
from ...data.examples import Example
from ...evenly import evenly
from ...training.batches import TokenRows, make_batch, packs_exactly
from .mixer import Reading, last_hidden


class LabelledRow(NamedTuple):
    """A row and the lobe that it belongs to. lobe: its place among the lobes. answer: "" where it
    was not kept."""

    lobe: int
    prompt: str
    answer: str = ""


class HeadRows:
    """Labelled rows as token ids, and what the head reads of every token.

    Attributes:
        ids: (token ids, how many of them are prompt) of every row. answered: numbers of the rows
            with an answer.
        hidden: (all tokens, what the head reads), float32, once `read` has run through. owner: (all
            tokens,) place of the row's lobe. weight: (all tokens,), summing to 1, a lobe's tokens
            together as much as any other lobe's.
        own: (all tokens,) whether it is a word of the prompt itself.
    """

    def __init__(self, backbone: Backbone, rows: Sequence[LabelledRow], max_length: int) -> None:
        examples = [Example(({"role": "user", "content": row.prompt},), row.answer) for row in rows]
        tokens = TokenRows(backbone, examples, min(max_length, backbone.context_length))
        self.ids: list[tuple[np.ndarray[Any, Any], int]] = []
        for i, row in enumerate(rows):
            ids, prompt = tokens.row(i)
            self.ids.append((ids if row.answer else ids[:prompt], prompt))
        self.lobes = [row.lobe for row in rows]
        self.answered = [i for i, row in enumerate(rows) if row.answer]
        self.lengths = [len(ids) for ids, _ in self.ids]
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(int) if rows else np.zeros(0, int)
        self.hidden = torch.zeros(0)
        device = backbone.device
        counts = torch.tensor(self.lengths, device=device, dtype=torch.long)
        self.owner = torch.tensor(self.lobes, device=device, dtype=torch.long).repeat_interleave(counts)
        of_lobe = torch.bincount(self.owner).clamp(min=1).float() if rows else torch.zeros(0)
        self.weight = 1 / (of_lobe[self.owner] * len(set(self.lobes))) if rows else torch.zeros(0)
        self.own = torch.zeros(len(self.owner), dtype=torch.bool, device=device)
        for i, row in enumerate(rows):
            opening, words = backbone.encode_prompt(row.prompt)
            first = min(len(opening), self.ids[i][1] - 1)
            last = max(first + 1, min(first + len(words), self.ids[i][1]))
            self.own[self.starts[i] + first : self.starts[i] + last] = True

    def __len__(self) -> int:
        return len(self.ids)

    @torch.no_grad()
    def read(self, backbone: Backbone, reads: str) -> Iterator[None]:
        """Work out `hidden`, some rows at a time."""
        packs = packs_exactly(backbone)
        found: dict[int, Tensor] = {}
        order = sorted(range(len(self)), key=lambda i: self.lengths[i])
        for group in (order[start : start + 16] for start in range(0, len(order), 16)):
            batch = make_batch([self.ids[i] for i in group], 1.0, packs, backbone)
            hidden = last_hidden(backbone, None, **batch.inputs)
            lengths = [self.lengths[i] for i in group]
            parts = torch.split(hidden[0], lengths) if batch.packed else [hidden[j, :n] for j, n in enumerate(lengths)]
            # a copy, or every row would keep its whole batch in memory
            for i, part in zip(group, parts, strict=True):
                given = torch.arange(len(part), device=part.device)[None] < self.ids[i][1]
                found[i] = Reading(reads)(part[None].float(), given=given)[0].clone()
            yield
        if found:
            self.hidden = torch.cat([found[i] for i in range(len(self))])

    def tokens_of(self, rows: Sequence[int]) -> Tensor:
        """Places of these rows' tokens among all tokens."""
        places = [np.arange(self.starts[i], self.starts[i] + self.lengths[i]) for i in rows]
        return torch.from_numpy(np.concatenate(places)).to(self.hidden.device)


def evenly_by_lobe(rows: Sequence[LabelledRow], most: int) -> list[LabelledRow]:
    """At most `most` rows of each lobe, from the first to the last."""
    kept: list[LabelledRow] = []
    for lobe in sorted({row.lobe for row in rows}):
        own = [row for row in rows if row.lobe == lobe]
        kept += evenly(own, most)
    return kept


def taking_turns(random: np.random.Generator, rows: HeadRows) -> list[int]:
    """All rows with answers, shuffled within each lobe, one lobe after the other; lobes of few rows
    come again."""
    by_lobe: dict[int, list[int]] = {}
    for i in rows.answered:
        by_lobe.setdefault(rows.lobes[i], []).append(i)
    longest = max(map(len, by_lobe.values()))
    shuffled = []
    for own in by_lobe.values():
        times = -(-longest // len(own))
        shuffled.append(np.concatenate([random.permutation(own) for _ in range(times)])[:longest])
    order = [random.permutation([column[i] for column in shuffled]) for i in range(longest)]
    return [int(i) for i in np.concatenate(order)]


def spread_over_lobes(rows: HeadRows, most: int) -> list[int]:
    """At most `most` rows with answers, as many of each lobe."""
    by_lobe: dict[int, list[int]] = {}
    for i in rows.answered:
        by_lobe.setdefault(rows.lobes[i], []).append(i)
    each = max(1, most // max(1, len(by_lobe)))
    return [i for own in by_lobe.values() for i in own[:each]]


def groups_of_rows(rows: HeadRows, numbers: Sequence[int], by_lobe: bool) -> Iterator[list[int]]:
    """Eight rows at a time, similar lengths together; of one lobe each if `by_lobe`."""
    order = sorted(numbers, key=lambda i: (rows.lobes[i] if by_lobe else 0, rows.lengths[i]))
    group: list[int] = []
    for i in order:
        if group and (len(group) == 8 or (by_lobe and rows.lobes[i] != rows.lobes[group[0]])):
            yield group
            group = []
        group.append(i)
    if group:
        yield group
