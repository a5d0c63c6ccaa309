"""What the controls of a comparison hold, and what is made of it: columns, mixtures, sampling. Pure.

Anyone can POST anything, so every value is checked here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ...errors import ConfigError, LobeError
from ...evaluation.compare import AUTOMATIC, BASE_ONLY, LOBE_PREFIX, MIX, MOST_COLUMNS, Column
from ...lobes.store import same_name
from ...settings import SamplingConfig
from ..kit import guard, text
from .compare_card import LETTERS

NOBODY = ""
LONGEST_ANSWER = 1024
REPETITION_PENALTY, TOP_P = 1.1, 0.9
"""As Chat begins with, so that Compare answers as Chat does."""


def offers(names: Sequence[str]) -> list[tuple[str, str]]:
    """(what it says, its value) of a column's dropdown."""
    fixed = [("Base model", BASE_ONLY), ("Routed (automatic)", AUTOMATIC)]
    lobes = [(name, f"{LOBE_PREFIX}{name}") for name in names]
    return [*fixed, *lobes, *([("A mixture", MIX)] if names else []), ("Nobody", NOBODY)]


def defaults(names: Sequence[str]) -> list[str]:
    """What the columns begin with."""
    lobes = [f"{LOBE_PREFIX}{name}" for name in names[: MOST_COLUMNS - 2]]
    return [BASE_ONLY, AUTOMATIC, *lobes, *[NOBODY] * (MOST_COLUMNS - 2 - len(lobes))]


def columns_of(choices: Sequence[Any], weights: Sequence[Any], names: Sequence[str]) -> dict[int, Column]:
    """Place → column, of those that are used.

    Raises:
        ConfigError: nobody answers, or a choice that is none. LobeError: a lobe that is gone.
    """
    found: dict[int, Column] = {}
    for place, (choice, said) in enumerate(zip(choices, weights, strict=True)):
        value = guard.a_text(
            choice if choice is not None else NOBODY, f"Column {LETTERS[place]}", 300, may_be_empty=True
        )
        if value == NOBODY:
            continue
        if value.startswith(LOBE_PREFIX) and value.removeprefix(LOBE_PREFIX) not in names:
            gone = value.removeprefix(LOBE_PREFIX)
            raise LobeError(f"There is no lobe {gone!r} any more. Choose somebody else for column {LETTERS[place]}.")
        if not value.startswith(LOBE_PREFIX):
            guard.a_choice(value, f"Column {LETTERS[place]}", (BASE_ONLY, AUTOMATIC, MIX))
        mixed = mixture_of(said, names, f"Column {LETTERS[place]}") if value == MIX else {}
        found[place] = Column(value, weights=mixed)
    if not found:
        raise ConfigError("Nobody answers in any column. Choose who should, such as the base model.")
    return found


def mixture_of(said: Any, names: Sequence[str], what: str) -> dict[str, float]:
    """Lobe's name → weight, out of "python=0.6, maths=40 %".

    Raises:
        ConfigError: it cannot be read, a weight out of 0 to 1, a lobe twice, or all weights zero.
        LobeError: no such lobe.
    """
    line = guard.a_text(said, f"The mixture of {what}", 2000)
    found: dict[str, float] = {}
    # names may hold commas: one that separates comes after a number
    for part in re.split(r"(?<=[\d.%])\s*[,;\n]\s*", line.strip(" ,;\n")):
        name, sign, number = (piece.strip() for piece in part.rpartition("="))
        share = number.endswith("%")
        try:
            weight = float(number.removesuffix("%").strip()) / (100 if share else 1)
        except ValueError:
            weight = -1.0
        if not sign or not name or not 0 <= weight <= 1:
            raise ConfigError(f"{what} has {text.short(part, 40)!r} in its mixture; write it as python=0.6, maths=0.4.")
        lobe = next((known for known in names if same_name(known, name)), None)
        if lobe is None:
            raise LobeError(
                f"There is no lobe {text.short(name, 40)!r} for the mixture of {what}. There are: "
                f"{', '.join(names)}."
            )
        if lobe in found:
            raise ConfigError(f"{what} has {lobe} twice in its mixture. Name each lobe once.")
        found[lobe] = weight
    if not any(found.values()):
        raise ConfigError(f"All weights of {what} are zero. Raise one, or choose the base model.")
    return found


def sampling_of(limit: Any, temperature: Any, seed: Any) -> SamplingConfig:
    """Raises ConfigError: a value that is no number, or out of its range."""
    said = guard.a_text(seed if seed is not None else "", "The seed", 20, may_be_empty=True)
    if said and not re.fullmatch(r"[0-9]{1,18}", said):
        raise ConfigError(f"The seed is {said!r}; it must be a whole number, or empty for a random one.")
    return SamplingConfig(
        max_new_tokens=guard.a_whole(limit, "The longest answer", 1, LONGEST_ANSWER),
        temperature=guard.a_number(temperature, "The temperature", 0, 2),
        top_p=TOP_P,
        repetition_penalty=REPETITION_PENALTY,
        seed=int(said) if said else None,
    )
