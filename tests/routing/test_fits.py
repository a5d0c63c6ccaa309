"""What routers have learned, on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from multilobe_ui.errors import RoutingError
from multilobe_ui.routing.fits import Fit, Key, read_fit, write_fit

KEY = Key("minilm", "None", (("law", "2025"), ("code", "2026")))


def a_fit() -> Fit:
    numbers = np.random.default_rng(0).normal(size=(3, 4))
    state = {
        "lobes": ["law", "code"],
        "by": {"law": [1, 2]},
        "weight": numbers.astype(np.float32),
        "bias": numbers[0].T,
    }
    return Fit("gate", KEY, state, {"embedding": "base"}, {"accuracy": 0.5}, "2026-01-01")


def test_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    fit = a_fit()
    write_fit(tmp_path / "gate", fit)
    write_fit(tmp_path / "gate", fit)
    again = read_fit(tmp_path / "gate")
    for name in ("weight", "bias"):
        assert again.state[name].dtype == fit.state[name].dtype
        assert again.state[name].tobytes() == fit.state[name].tobytes()
    assert {**again.__dict__, "state": 0} == {**fit.__dict__, "state": 0}
    assert again.state["by"] == {"law": [1, 2]}


def test_a_fit_without_arrays_is_one_file(tmp_path: Path) -> None:
    write_fit(tmp_path / "x", Fit("x", KEY, {"a": 1}))
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["fit.json"]
    assert read_fit(tmp_path / "x").state == {"a": 1}


def test_renamed_lobes_are_renamed_everywhere() -> None:
    fit = a_fit().renamed({"law": "Law / EU", "minilm": "no lobe"})
    assert fit.key == Key("minilm", "None", (("Law / EU", "2025"), ("code", "2026")))
    assert fit.key.to_json() == [["minilm", "None"], ["Law / EU", "2025"], ["code", "2026"]]
    assert fit.state["lobes"] == ["Law / EU", "code"] and fit.state["by"] == {"Law / EU": [1, 2]}
    assert np.array_equal(fit.state["weight"], a_fit().state["weight"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "fit.json").unlink(),
        lambda folder: (folder / "fit.json").write_text("{"),
        lambda folder: (folder / "fit.json").write_text("[]"),
        lambda folder: (folder / "fit.json").write_text(json.dumps({"router": "gate", "key": [], "state": {}})),
        lambda folder: (folder / "arrays.safetensors").write_bytes(b"broken"),
    ],
)
def test_damage_is_said_with_the_way_out(damage, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    write_fit(tmp_path / "gate", a_fit())
    damage(tmp_path / "gate")
    with pytest.raises(RoutingError, match=r"fit in gate cannot be read .*Fit the router again"):
        read_fit(tmp_path / "gate")


@pytest.mark.parametrize(
    "fit",
    [
        Fit("gate", KEY, {"weight": np.array([np.nan])}),
        Fit("gate", KEY, {"temperature": float("nan")}),
        Fit("gate", KEY, {"by": {"law": [1.0, float("-inf")]}}),
        Fit("gate", KEY, {}, settings={"steps": float("inf")}),
        Fit("gate", KEY, {}, report={"ece": float("nan")}),
    ],
)
def test_numbers_that_are_not_finite_are_refused(fit: Fit, tmp_path: Path) -> None:
    write_fit(tmp_path / "gate", fit)
    with pytest.raises(RoutingError, match="not finite"):
        read_fit(tmp_path / "gate")


def test_a_state_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    write_fit(tmp_path / "gate", Fit("gate", KEY, {"by": 0}))
    text = (tmp_path / "gate" / "fit.json").read_text()
    for depth in (50, 900):
        (tmp_path / "gate" / "fit.json").write_text(text.replace('"by": 0', f'"by": {"[" * depth}{"]" * depth}'))
        with pytest.raises(RoutingError, match="nested deeper than 20"):
            read_fit(tmp_path / "gate")


def test_a_text_by_itself_is_no_lobes_name(tmp_path: Path) -> None:
    fit = Fit("gate", KEY, {"embedding": "law", "lobes": ["law"]}).renamed({"law": "Law"})
    assert fit.state == {"embedding": "law", "lobes": ["Law"]}
