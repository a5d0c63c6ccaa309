"""Settings: types and ranges are checked, and one line is a setting everywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import pytest

from multilobe_ui.cli.commands import _parser
from multilobe_ui.errors import ConfigError
from multilobe_ui.settings import (
    SamplingConfig,
    TrainingConfig,
    XLoraSettings,
    about,
    check_all,
    rule,
    setting,
    settings_of,
)
from multilobe_ui.ui.kit.guard import training_config
from multilobe_ui.ui.train.form import SETTINGS


@dataclass(frozen=True)
class Scratch:
    count: int = setting(3, "Count", "How many.", low=1, high=20_000)
    share: float | None = setting(None, "Share", "Of all.", above=0, below=1)
    way: Literal["up", "down"] = setting("up", "Way", "Where to.")
    loud: bool = setting(False, "Loud", "Say it.")
    name: str = setting("", "Name", "What it is called.")

    def __post_init__(self) -> None:
        check_all(self)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 2.5}, "count is 2.5: it must be a whole number from 1 to 20,000."),
        ({"count": True}, "count is True: it must be a whole number"),
        ({"count": "3"}, "count is '3': it must be a whole number"),
        ({"count": 0}, "count is 0"),
        ({"count": None}, "count is None"),
        ({"share": 1}, r"share is 1: it must be a number above 0 and below 1, or empty \(automatic\)."),
        ({"share": math.nan}, "share is nan"),
        ({"way": "left"}, "way is 'left': it must be one of 'up', 'down'."),
        ({"loud": 1}, "loud is 1: it must be True or False."),
        ({"name": 7}, "name is 7: it must be a text."),
    ],
)
def test_what_does_not_fit_is_refused_by_name_with_the_way_out(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_of(Scratch, values)


def test_what_fits_is_taken() -> None:
    made = settings_of(Scratch, {"count": 20_000, "share": 0.5, "way": "down", "loud": True, "name": "x"})
    assert made == Scratch(20_000, 0.5, "down", True, "x") and Scratch(share=None).share is None


@pytest.mark.parametrize(("kind", "values"), [
    (TrainingConfig, {"epochs": 2.5}), (TrainingConfig, {"seed": "x"}), (TrainingConfig, {"lora_r": 0}),
    (TrainingConfig, {"keep": "first"}), (SamplingConfig, {"seed": 1.5}), (SamplingConfig, {"top_p": 0}),
    (XLoraSettings, {"granularity": "word"}), (XLoraSettings, {"layerwise": "yes"}),
])  # fmt: skip
def test_every_settings_class_checks_types_too(kind: type[Any], values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(ConfigError, match=f"^{name} is "):
        settings_of(kind, values)


def test_one_line_is_in_the_form_on_the_command_line_and_in_the_api(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _parser().parse_args(["train", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for of in fields(TrainingConfig):
        assert about(of).help and f"--{of.name.replace('_', '-')}" in told
        if of.name != "target_modules":
            assert training_config({of.name: of.default}) == TrainingConfig()
    assert rule(TrainingConfig, SETTINGS[0]) in told  # with its range
    assert {of.name for of in SETTINGS} == {of.name for of in fields(TrainingConfig) if about(of).label}
