"""The form of a training run: a component for every setting of `TrainingConfig`, and what it suggests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import gradio as gr

from ...settings import EMPTY_IS, TrainingConfig, about, kind_of

KEEP_WORDS = {"last": "Last", "best": "Best"}
SETTINGS = tuple(of for of in fields(TrainingConfig) if about(of).label)
"""What the form has."""


def build_settings() -> dict[str, Any]:
    """Name of a setting → its component. Call it inside gr.Blocks, where they belong."""
    defaults = TrainingConfig()
    return {setting.name: _component(setting, getattr(defaults, setting.name)) for setting in SETTINGS}


def _component(setting: Field[Any], value: Any) -> Any:
    name, shared = setting.name, _shared(setting)
    kind, words, optional = kind_of(TrainingConfig, name)
    if name == "target_modules":
        return gr.Textbox(placeholder="all linear layers", max_length=2000, **shared)
    if optional:  # a text box, because an empty number box turns into 0
        return gr.Textbox(placeholder=EMPTY_IS, max_length=20, **shared)
    if words:
        return gr.Dropdown([(KEEP_WORDS.get(word, word), word) for word in words], value=value, **shared)
    if kind is bool:
        return gr.Checkbox(value=value, **shared)
    if kind is int:
        return gr.Number(value=value, precision=0, **shared)
    return gr.Number(value=value, **shared)


def _shared(setting: Field[Any]) -> dict[str, Any]:
    description = about(setting)
    return {"label": description.label, "info": description.help, "min_width": 140, "elem_id": f"train-{setting.name}"}


def rate_hint(rate: float | None) -> str:
    if not rate:
        return "Empty: automatic."
    return f"Empty: automatic, {rate:g} for this base."


def free_name(label: str, taken: Sequence[str]) -> str:
    """A lobe's name from a file's: "my_recipes-v2.jsonl" becomes "My recipes v2", with a number if
    it is taken."""
    stem = " ".join(re.sub(r"[_\-.]+", " ", Path(label).stem).split())[:70] or "My lobe"
    name = stem[0].upper() + stem[1:]
    lower = {other.casefold() for other in taken}
    candidates = [name, *(f"{name} ({i})" for i in range(2, len(lower) + 2))]
    return next(candidate for candidate in candidates if candidate.casefold() not in lower)
