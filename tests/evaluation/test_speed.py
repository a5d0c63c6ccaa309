"""What the speed measurement counts and how it sums up; never how fast anything is."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_model import TOPICS, WordEmbedder, trained

from multilobe_ui import MultiLobeModel
from multilobe_ui.base.backbone import Backbone
from multilobe_ui.errors import ConfigError
from multilobe_ui.evaluation import speed
from multilobe_ui.evaluation.speed import SpeedSettings, timing
from multilobe_ui.progress import finish


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SQUARE", 64)
    monkeypatch.setattr(speed, "COPIED", 1 << 16)


class Clock:
    """Every look at it takes the next of some seconds."""

    def __init__(self, *steps: float) -> None:
        self.now, self._steps = 0.0, iter(steps)

    def perf_counter(self) -> float:
        self.now += next(self._steps)
        return self.now


def test_the_median_counts_and_the_first_round_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "time", Clock(0, 100, 0, 3, 0, 1, 0, 2))
    assert speed._timed(lambda: None, 3, torch.device("cpu")) == 2


def test_rates_are_what_was_done_over_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_timed", lambda work, rounds, device: 0.5)
    gflops, copied = speed.machine_rates(torch.device("cpu"), 1)
    assert gflops == pytest.approx(2 * 64**3 / 0.5 / 1e9) and copied == pytest.approx((1 << 16) / 2**30 / 0.5)


def test_memory_is_timed_and_not_its_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[torch.Tensor]] = []
    monkeypatch.setattr(speed, "_timed", lambda work, rounds, device: made.append([work(), work()]) or 1.0)
    speed.machine_rates(torch.device("cpu"), 1)
    first, second = made[1]
    assert first is second and first.all()


def test_answers_are_counted_by_their_tokens(monkeypatch: pytest.MonkeyPatch, backbone: Backbone) -> None:
    made = MultiLobeModel(backbone, embedder=WordEmbedder())  # type: ignore[arg-type]
    lengths: Iterator[int] = iter([9, 4, 6, 5])
    batch = SimpleNamespace(tokens=lambda request: iter(range(next(lengths))))
    monkeypatch.setattr(speed, "RunningBatch", lambda bank: batch)
    # start, first token, end of: a warm-up, then 4 tokens in 2 s, 6 in 2 s, 5 in 5 s
    monkeypatch.setattr(speed, "time", Clock(0, 1, 1, 0, 1, 1, 0, 0.5, 1.5, 0, 2, 3))
    assert speed._alone(made, None, 3) == (2.0, 1000.0)  # type: ignore[arg-type]


def test_everything_is_measured_and_nothing_is_left_behind(backbone: Backbone, tmp_path: Path) -> None:
    model = trained(backbone, tmp_path / "home")
    before, hidden = model.route("cat dog"), sorted(p.name for p in (tmp_path / "home").iterdir())
    records = []
    work = timing(model, SpeedSettings(rounds=1, tokens=4, chats=5), made=tmp_path / "made", stop=threading.Event())
    found = finish(work, records.append)
    json.dumps(found.to_json(), allow_nan=False)
    assert [record.step for record in records] == [0, 1, 2, 3, 4] and not found.stopped
    assert set(found.routing) == {name for name in model.routers.names if model.routers.named(name).is_fitted}
    assert None not in found.decoding.values() and found.training and found.first_token_ms
    assert found.base_bytes == sum(p.numel() * p.element_size() for p in backbone.model.parameters())
    lobes = [sum(a.nbytes + b.nbytes for a, b in model.bank.memory.matrices(lobe.id).values()) for lobe in model.lobes]
    assert found.lobe_bytes == sum(lobes) / len(TOPICS)
    assert model.route("cat dog").scores == before.scores and model.lobe_names == list(TOPICS)
    assert sorted(p.name for p in (tmp_path / "home").iterdir()) == hidden and not (tmp_path / "made").exists()


def test_without_lobes_and_stopped(backbone: Backbone, tmp_path: Path) -> None:
    model = MultiLobeModel(backbone, embedder=WordEmbedder())  # type: ignore[arg-type]
    found = speed.speed(model, tmp_path / "made", rounds=1, tokens=2, chats=2)
    assert found.routing == {} and found.decoding["lobe"] is None and found.decoding["base"] and found.lobe_bytes is None
    stop = threading.Event()
    stop.set()
    cut = finish(timing(model, SpeedSettings(rounds=1), made=tmp_path / "made", stop=stop))
    assert cut.stopped and cut.training is None and set(cut.decoding.values()) == {None}


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"tokens": 5000}, {"chats": 1.5}, {"rounds": True}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is"):
        SpeedSettings(**wrong)  # type: ignore[arg-type]
