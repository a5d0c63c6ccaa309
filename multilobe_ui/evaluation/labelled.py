"""Prompts of which it is known who should answer them: out of files, or the rows that lobes held out from training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import dataset
from ..errors import DataError
from ..lobe import same_name
from ..model import MultiLobeModel

LABELS = ("lobe", "label", "domain")
"""Columns in which a file may say whose prompt a row is."""


@dataclass(frozen=True)
class LabelledRow:
    """A prompt, and who should answer it.

    Attributes:
        answer: the answer wanted; "" where none is known. lobe: a lobe's name; None where no lobe fits.
        source: file or lobe that it came from.
    """

    prompt: str
    answer: str
    lobe: str | None
    source: str = ""

    @property
    def example(self) -> dataset.Example:
        return dataset.Example(({"role": "user", "content": self.prompt},), self.answer)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def held_out_rows(model: MultiLobeModel) -> list[LabelledRow]:
    """The rows that every lobe kept for routing and did not train on; a lobe without any is not among them."""
    found = []
    for name, rows in model.routing_context().rows.items():
        answers = rows.validation_answers or [""] * len(rows.validation_prompts)
        found += [LabelledRow(p, a, name, name) for p, a in zip(rows.validation_prompts, answers, strict=True)]
    return found


def read_labelled(
    files: Sequence[tuple[str, Path]], lobes: Sequence[str], *, need_label: bool = True
) -> list[LabelledRow]:
    """Rows out of files of any kind that training accepts.

    A row's label is what its column "lobe", "label" or "domain" says (null or "" for none of the lobes); a file without such a
    column holds rows of the lobe that it is named after ("medical.jsonl", "medical_test.csv").

    Args:
        files: (what the person calls it, where it is). lobes: names that may be labels.
        need_label: else rows without one get None.

    Raises:
        DataError: a file that cannot be read, a label that is no lobe, or no label to be found.
    """
    rows: list[LabelledRow] = []
    for name, path in files:
        own = _named_after(name, lobes)
        labels = _labels(path)
        for prompt, answer in _pairs(path):
            label = labels.get(prompt, ...)
            if label is ...:
                if own is None and need_label:
                    raise DataError(
                        f"{name} does not say whose prompts it has. Add a column \"lobe\", or name the file after its lobe: "
                        f"{', '.join(lobes) or 'there is none yet'}."
                    )
                label = own
            known = None if label in (None, "") else next((lobe for lobe in lobes if same_name(lobe, str(label))), "")
            if known == "":
                raise DataError(f"{name} has the label {label!r}, and no lobe is called so. There are: {', '.join(lobes)}.")
            rows.append(LabelledRow(prompt, answer, known, name))
    return rows


def write_rows(path: Path, rows: Sequence[LabelledRow]) -> None:
    path.write_text("".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def load_rows(path: Path) -> list[LabelledRow]:
    """What `write_rows` wrote."""
    return [LabelledRow(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
