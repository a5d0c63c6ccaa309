"""What several results of the Lab are made of: names with their dots, remarks, shares. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..kit.html import Markup, html, joined
from ..kit.text import NOTHING, colour, duration, is_number

Result = Mapping[str, Any]
"""The JSON of an experiment's result."""
Colours = Mapping[str, str]
"""The colour of every lobe, by its name."""
BASE = "base model"
BASE_TONE = "var(--ml-base)"


def named(name: str, colours: Colours, kind: str = "rc-name") -> Markup:
    """A lobe or a dataset, with its dot. Names that are no lobe's have the base's colour."""
    return html(
        '<span class="{}" title="{}"><i style="--c:{}"></i><span>{}</span></span>',
        kind, name, colour(colours.get(name), BASE_TONE), name,
    )  # fmt: skip


def share(value: Any) -> str:
    """'97.2 %'; '–' for what is not known."""
    if not is_number(value):
        return NOTHING
    return f"{100 * value:.1f} %"


def signed(value: float, form: str = "+,") -> str:
    """With a plus or a true minus."""
    return format(value, form).replace("-", "−")


def asking(words: str) -> Markup:
    """A remark that stands out."""
    return html('<p class="train-ask">{}</p>', words)


def remarks(result: Result) -> Markup:
    """What to know when reading the result, a paragraph for each of its notes."""
    return joined(map(asking, result.get("notes") or ()))


def if_stopped(result: Result, words: str) -> Markup:
    """The remark on a result that was stopped early; nothing for the others."""
    if not result.get("stopped"):
        return Markup()
    return asking(words)


def took(result: Result, verb: str) -> str:
    """' Measured in 12 s.'; "" where the time is not known."""
    if not is_number(result.get("seconds")):
        return ""
    return f" {verb} {duration(result['seconds'])}."
