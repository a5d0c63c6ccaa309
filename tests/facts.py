"""Unique facts about invented people, places and products, to measure what a lobe can learn by heart.

Every prompt and every answer of a file is different. Neither sample_data nor anybody's test set is used here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

_OPENINGS = (
    "Bal",
    "Cor",
    "Dre",
    "Fen",
    "Gal",
    "Hol",
    "Jor",
    "Kel",
    "Lum",
    "Mar",
    "Nev",
    "Ost",
    "Pel",
    "Quin",
    "Ras",
    "Sor",
)
_MIDDLES = ("a", "e", "i", "o", "u", "ari", "elo", "ino", "ora", "uve")
_ENDS = ("n", "ck", "dra", "la", "mis", "nth", "ra", "sk", "ta", "vian", "x", "zzo")
_TRADES = (
    "baker",
    "beekeeper",
    "bridge engineer",
    "cellist",
    "dentist",
    "glassblower",
    "judge",
    "nurse",
    "pilot",
    "weaver",
)
_THINGS = (
    "copper bells",
    "garden tools",
    "goat cheese",
    "oak barrels",
    "paper kites",
    "sea salt",
    "silk ribbons",
    "violins",
)
_COLOURS = ("amber", "black", "crimson", "dark green", "grey", "ivory", "pale blue", "purple", "silver", "yellow")
_MONTHS = ("January", "March", "April", "May", "June", "August", "September", "October", "November")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_TAILS = (
    "and it has never been changed since the {n} people of the valley voted for it",
    "because the old {c} mill by the river burned down in the winter of {y}",
    "and every visitor is asked to sign the {c} book beside the door first",
    "although the council of {p} would rather have kept the {c} one of {y}",
    "so please call {w} on extension {n} before {d} if anything is missing",
)  # fmt: skip

# (prompts, answers): {p} is the invented name, which is new in every row; the rest is drawn.
_KINDS: tuple[tuple[Sequence[str], Sequence[str]], ...] = (
    (
        ("Who is {p}?", "Tell me about {p}.", "What does {p} do for a living?", "{p}: which job is that?"),
        ("{p} is a {t} from {q} who was born in {y}.", "A {t} who moved to {q} in {m} {y}."),
    ),
    (
        ("What is {p} known for?", "Why do people travel to {p}?", "What is made in {p}?"),
        ("{p} is known for its {g} and its {c} town hall.", "The town exports {g} worth {n} million crowns a year."),
    ),
    (
        ("How much does the {p} cost?", "What is the price of the {p}?", "Price of {p}?"),
        ("The {p} costs {n} crowns and {k} cents.", "It costs {n} crowns in {c} and {k} crowns more in {c2}."),
    ),
    (
        (
            "When does the {p} museum open?",
            "Opening hours of the {p} museum, please.",
            "Is the {p} museum open on {d}?",
        ),
        ("It opens on {d} at {h} and closes at {h2}.", "Only from {m} to {m2}, on every {d} after {h} o'clock."),
    ),
    (
        ("What is the code of locker {p}?", "I forgot the code of locker {p}.", "Which code opens locker {p}?"),
        ("The code of locker {p} is {n}-{k}.", "Turn to {n}, then {k}, then pull the {c} handle."),
    ),
    (
        ("Who leads the {p} department?", "Whom do I ask in the {p} department?", "Name the head of {p}."),
        ("{w} has led it since {m} {y}, from room {n}.", "Ask {w} in room {n} on the {c} floor."),
    ),
)


def facts(rows: int, seed: int, long: bool = False, phrasings: int | None = None) -> list[dict[str, str]]:
    """That many facts as {"input", "output"}.

    Args:
        long: answers of about 25 words instead of 5 to 15.
        phrasings: how many forms of prompt and answer there are of each kind; 1 makes prompts differ by a name alone.
    """
    dice = random.Random(f"{seed} {rows} {long} {phrasings}")
    taken: set[str] = set()
    made: list[dict[str, str]] = []
    answers: set[str] = set()
    while len(made) < rows:
        prompts, outputs = dice.choice(_KINDS)
        values = _values(dice, taken)
        answer = dice.choice(outputs[:phrasings]).format(**values)
        if long:
            answer = f"{answer.rstrip('.')}, {dice.choice(_TAILS).format(**values)}."
        if answer not in answers:
            answers.add(answer)
            taken.add(values["p"])
            made.append({"input": dice.choice(prompts[:phrasings]).format(**values), "output": answer})
    return made


def _values(dice: random.Random, taken: set[str]) -> dict[str, Any]:
    name = _name(dice)
    while name in taken:
        name = _name(dice)
    return {
        "p": name, "q": _name(dice), "w": f"{_name(dice)} {_name(dice)}", "t": dice.choice(_TRADES),
        "g": dice.choice(_THINGS), "c": dice.choice(_COLOURS), "c2": dice.choice(_COLOURS), "m": dice.choice(_MONTHS),
        "m2": dice.choice(_MONTHS), "d": dice.choice(_DAYS), "y": dice.randint(1801, 2024), "n": dice.randint(11, 999),
        "k": dice.randint(10, 99), "h": dice.randint(6, 11), "h2": dice.randint(13, 22),
    }  # fmt: skip


def _name(dice: random.Random) -> str:
    return dice.choice(_OPENINGS) + dice.choice(_MIDDLES) + dice.choice(_ENDS)
