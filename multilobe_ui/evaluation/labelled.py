"""Prompts of which it is known who should answer them: out of files, or rows that lobes have kept."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data import dataset
from ..data.examples import Example
from ..data.formats import MAX_ERRORS
from ..data.rows import RowError
from ..errors import DataError
from ..lobes.rows import KEPT_VALIDATION_ROWS
from ..lobes.store import same_name
from ..model import MultiLobeModel
from ..routers import RoutingRows
from ..routing.router import same_prompt

LABELS = ("lobe", "label", "domain")
"""Columns in which a file may say whose prompt a row is."""


@dataclass(frozen=True)
class LabelledRow:
    """A prompt, and who should answer it.

    Attributes:
        answer: the answer wanted; "" where none is known. lobe: a lobe's name; None where no lobe fits.
        source: file or lobe that it came from; `trained_source` of the lobe for a row that it was trained on.
    """

    prompt: str
    answer: str
    lobe: str | None
    source: str = ""

    @property
    def example(self) -> Example:
        return Example(({"role": "user", "content": self.prompt},), self.answer)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def held_out_rows(model: MultiLobeModel) -> list[LabelledRow]:
    """The rows that every lobe kept for routing and did not train on; a lobe without any is not
    among them."""
    return [row for name, rows in model.routers.context().rows.items() for row in _own(name, rows)[0]]


def own_rows(model: MultiLobeModel, *, answered: bool = False) -> list[LabelledRow]:
    """Rows of every lobe, to measure on where a person gives none.

    Those that it held out from training or, if it held out none, an even sample of those that it was trained
    on. `flattery` says of how many lobes that is so. Prompts that a person has corrected are not in such a
    sample: routers know them by heart, and no lobe was trained on them.

    Args:
        answered: only rows with an answer count.
    """
    context, found = model.routers.context(), []
    for name, rows in context.rows.items():
        held_out, trained = _own(name, rows)
        trained = [row for row in trained if same_prompt(row.prompt) not in context.labels]
        if answered:
            held_out, trained = ([row for row in part if row.answer.strip()] for part in (held_out, trained))
        count = min(len(trained), KEPT_VALIDATION_ROWS)
        found += held_out or [trained[i * len(trained) // count] for i in range(count)]
    return found


def _own(name: str, rows: RoutingRows) -> tuple[list[LabelledRow], list[LabelledRow]]:
    """(held out, trained): what a lobe has kept of its rows."""
    parts = []
    for prompts, answers, source in (
        (rows.validation_prompts, rows.validation_answers, name),
        (rows.train_prompts, rows.train_answers, trained_source(name)),
    ):
        known = answers if len(answers) == len(prompts) else [""] * len(prompts)
        parts.append([LabelledRow(p, a, name, source) for p, a in zip(prompts, known, strict=True)])
    return parts[0], parts[1]


def trained_source(lobe: str) -> str:
    """What stands as the source of a row that a lobe was trained on."""
    return f"{lobe}: training rows"


def flattery(rows: Sequence[LabelledRow], files: str = "a file of labelled prompts") -> str:
    """A sentence about `own_rows` of lobes that held nothing out; "" if there are none.

    Args:
        files: what a person can give for a fair test.
    """
    lobes = {row.lobe for row in rows}
    count = len({row.lobe for row in rows if row.lobe and row.source == trained_source(row.lobe)})
    if not count:
        return ""
    who, their = f"{count} of {len(lobes)} lobes", "its" if count == 1 else "their"
    if count == len(lobes):
        who = "The lobe" if count == 1 else f"All {count} lobes"
    return (
        f"{who} held nothing out: {their} prompts are training rows, so these numbers flatter; "
        f"give {files} for a fair test."
    )


def read_labelled(
    files: Sequence[tuple[str, Path]], lobes: Sequence[str], *, need_label: bool = True
) -> list[LabelledRow]:
    """Rows out of files of any kind that training accepts; files with prompts alone will do as well.

    A row's label is what its column "lobe", "label" or "domain" says (null or "" for none of the
    lobes); a file without such a column holds rows of the lobe that it is named after
    ("medical.jsonl", "medical_test.csv"). Of a conversation the last question is the prompt.

    Args:
        files: (what the person calls it, where it is). lobes: names that may be labels.
        need_label: else rows of files without labels get None.

    Raises:
        DataError: a file that cannot be read, a label that is no lobe, or no label to be found.
    """
    for name, path in files:
        try:
            path.open("rb").close()
        except OSError as error:
            raise DataError(f"{name} cannot be opened ({error.strerror}). Check the path and its permissions.") from None
    return [row for name, path in files for row in _rows_of(name, path, lobes, need_label)]


def named_after(name: str, lobes: Sequence[str]) -> str | None:
    """The lobe whose name a file has, or begins with ("medical_test.jsonl" of "medical"); the
    longest if there are several."""
    stem = _words(Path(name).stem)
    named = [lobe for lobe in lobes if f"{stem} ".startswith(f"{_words(lobe)} ")]
    return max(named, key=lambda lobe: (same_name(lobe, Path(name).stem), len(lobe)), default=None)


def _words(name: str) -> str:
    """A name as it may be spelled in a file's: without case, and with spaces for what stands
    between words there."""
    return " ".join(re.sub(r"[\s_.-]+", " ", unicodedata.normalize("NFC", name)).split()).casefold()


def _rows_of(name: str, path: Path, lobes: Sequence[str], need_label: bool) -> list[LabelledRow]:
    own, rows, bad = named_after(name, lobes), [], []
    for row in dataset.read_asked(path, LABELS):
        if isinstance(row, RowError):
            bad.append((row.line, row.reason))
            continue
        line, example, label = row
        if label is None and own is None and need_label:
            raise DataError(
                f"{name} does not say whose prompts it has. Add a column \"lobe\" (empty where no lobe fits), or name the "
                f"file after its lobe: {_listed(lobes)}."
            )
        lobe = own if label is None else _lobe(label, lobes, f"{name}, line {line}")
        rows.append(LabelledRow(example.prompt, example.answer, lobe, name))
    if bad:
        many = f"{len(bad)} bad row{'s' if len(bad) > 1 else ''}"
        raise DataError(
            f"{name} has {many}, the first in line {bad[0][0]}: {bad[0][1]}. Correct or remove them.",
            bad[: MAX_ERRORS],
        )
    if not rows:
        raise DataError(f"{name} has no rows. Add at least one.")
    return rows


def _lobe(label: str, lobes: Sequence[str], where: str) -> str | None:
    """The lobe that a label means; None for an empty one."""
    if not label:
        return None
    found = next((lobe for lobe in lobes if same_name(lobe, label)), None)
    if found is None:
        raise DataError(
            f"{where}: the label is {label[:80]!r}, and no lobe is called so. There are: {_listed(lobes)}. "
            "Leave it empty where no lobe fits."
        )
    return found


def _listed(lobes: Sequence[str]) -> str:
    return ", ".join(lobes) or "none yet"


def write_rows(path: Path, rows: Sequence[LabelledRow]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows)


def load_rows(path: Path) -> list[LabelledRow]:
    """What `write_rows` wrote."""
    with path.open(encoding="utf-8", newline="\n") as file:  # not splitlines, which splits texts at U+2028 too
        return [LabelledRow(**json.loads(line)) for line in file]
