"""The running batch: the tokens are those of answers made alone, whoever comes and goes meanwhile."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from multilobe_ui.base.backbone import Backbone
from multilobe_ui.generation import batch as serving
from multilobe_ui.generation.batch import RunningBatch, can_batch, score_mask, takes_score_masks
from multilobe_ui.generation.decode import Request, generate_tokens
from multilobe_ui.lobes.bank import LobeBank
from multilobe_ui.settings import SamplingConfig

GREEDY = SamplingConfig(max_new_tokens=24, do_sample=False)
WEIGHTS: list[dict[str, float]] = [{}, {"plain": 1.0}, {"attention": 1.0}, {"patterns": 0.5, "plain": 0.5}, {"patterns": 1.0}]


@pytest.fixture(scope="module")
def bank(backbone: Backbone, adapters: dict[str, Path]) -> LobeBank:
    made = LobeBank(backbone)
    for name, path in adapters.items():
        made.register(name, path)
    return made


def prompt(backbone: Backbone, words: int) -> list[int]:
    return backbone.encode_chat([{"role": "user", "content": "the cat sat on the mat " * words}])


def alone(bank: LobeBank, request: Request) -> list[int]:
    return [token for (token,) in generate_tokens(bank, [request]) if token is not None]


def requests(bank: LobeBank, count: int, **sampling: Any) -> list[Request]:
    config = SamplingConfig(**{**GREEDY.__dict__, **sampling})
    return [Request(prompt(bank.backbone, 1 + i % 4), WEIGHTS[i % len(WEIGHTS)], config) for i in range(count)]


def test_ten_at_once_through_four_places_are_as_if_alone(bank: LobeBank) -> None:
    asked = requests(bank, 10)
    batch = RunningBatch(bank, most_rows=4)
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda request: list(batch.tokens(request)), asked))
    assert found == [alone(bank, request) for request in asked]
    assert max(map(len, found)) == 24 and batch._rows == [] and batch._cache is None


def test_when_all_have_left_the_batch_keeps_nothing_of_their_lobes(bank: LobeBank) -> None:
    batch = RunningBatch(bank)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda request: list(batch.tokens(request)), requests(bank, 4)))
    assert batch._mix.lobes == () and batch._rows == []


def test_a_request_joins_while_others_are_answered_and_leaves_them_alone(bank: LobeBank) -> None:
    first, second, third = requests(bank, 3)
    batch = RunningBatch(bank)
    streams = [batch.tokens(first)]
    tokens = [[next(streams[0])]]
    for request in (second, third):
        streams.append(batch.tokens(request))
        tokens.append([next(streams[-1])])
        tokens[0].append(next(streams[0]))
    for own, stream in zip(tokens, streams, strict=True):
        own.extend(stream)
    assert tokens == [alone(bank, request) for request in (first, second, third)]


def test_a_seed_draws_what_it_draws_alone(bank: LobeBank) -> None:
    asked = requests(bank, 5, do_sample=True, temperature=0.8, seed=7)
    batch = RunningBatch(bank)
    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(lambda r: list(batch.tokens(r)), asked)) == [alone(bank, r) for r in asked]


def test_a_long_prompt_is_read_in_pieces_and_means_the_same(bank: LobeBank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "CHUNK", 7)
    talking = Request(prompt(bank.backbone, 1), {"plain": 1.0}, SamplingConfig(max_new_tokens=60, do_sample=False))
    long = Request(prompt(bank.backbone, 5), {"attention": 1.0}, GREEDY)
    wanted = alone(bank, long)
    batch = RunningBatch(bank)
    stream = batch.tokens(talking)
    reads: list[int] = []
    run, asked = bank.run, threading.Event()

    def watched(mix: Any, **inputs: Any) -> Any:
        asked.wait(10)  # else the one who talks could have ended by then
        reads.append(inputs["input_ids"].shape[1])
        return run(mix, **inputs)

    next(stream)
    monkeypatch.setattr(bank, "run", watched)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: list(batch.tokens(long)))
        while not (batch._waiting or batch._reading):
            time.sleep(0.001)
        asked.set()
        assert found.result() == wanted and len(wanted) == 24
    list(stream)
    pieces = [i for i, size in enumerate(reads) if size > 1]
    assert len(pieces) == -(-len(long.ids) // 7) and max(reads) == 7
    assert all(b - a > 1 for a, b in pairwise(pieces)), "those being answered get a token in between"


def test_whoever_goes_away_or_stops_leaves_the_batch(bank: LobeBank) -> None:
    stop = threading.Event()
    long = SamplingConfig(max_new_tokens=200, do_sample=False)
    stopped = Request(prompt(bank.backbone, 2), {"plain": 1.0}, long, stop)
    gone, stays = Request(prompt(bank.backbone, 3), {}, long), requests(bank, 1)[0]
    batch = RunningBatch(bank)
    streams = [batch.tokens(stopped), batch.tokens(gone)]
    assert all(isinstance(next(stream), int) for stream in streams)
    streams[1].close()
    stop.set()
    assert list(batch.tokens(stays)) == alone(bank, stays)
    assert len(list(streams[0])) < 200
    end = time.monotonic() + 30
    while batch._rows:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_error_reaches_those_who_were_in_and_nobody_after(bank: LobeBank, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = RunningBatch(bank)
    request = requests(bank, 2)[1]
    monkeypatch.setattr(bank, "run", lambda *a, **k: (_ for _ in ()).throw(MemoryError("no room")))
    with pytest.raises(MemoryError, match="no room"):
        list(batch.tokens(request))
    monkeypatch.undo()
    assert list(batch.tokens(request)) == alone(bank, request)


def test_a_program_may_end_in_mid_answer(base_folder: Callable[..., Path]) -> None:
    program = f"""
from multilobe_ui.base.backbone import Backbone
from multilobe_ui.lobes.bank import LobeBank
from multilobe_ui.settings import SamplingConfig
from multilobe_ui.generation.decode import Request
from multilobe_ui.generation.batch import RunningBatch
bank = LobeBank(Backbone.from_pretrained({str(base_folder("llama"))!r}, device="cpu"))
bank.backbone.stop_ids = frozenset()
batch = RunningBatch(bank)
streams = [batch.tokens(Request([5, 6, 7], {{}}, SamplingConfig(max_new_tokens=90))) for _ in range(4)]
print(*[next(stream) is not None for stream in streams])
"""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (0, "True True True True\n"), done.stderr


def test_the_thread_ends_when_nobody_asks_and_comes_back(bank: LobeBank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "IDLE_SECONDS", 0.05)
    batch, request = RunningBatch(bank), requests(bank, 1)[0]
    wanted = alone(bank, request)
    for _ in range(2):
        assert list(batch.tokens(request)) == wanted
        end = time.monotonic() + 30
        while batch._thread is not None:
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "mistral"])
def test_other_architectures(architecture: str, base_folder: Callable[..., Path]) -> None:
    backbone = Backbone.from_pretrained(base_folder(architecture), device="cpu")
    bank = LobeBank(backbone)
    asked = [Request(prompt(backbone, n), {}, GREEDY) for n in (1, 4, 2)]
    batch = RunningBatch(bank)
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda r: list(batch.tokens(r)), asked)) == [alone(bank, r) for r in asked]


@pytest.mark.parametrize(("architecture", "takes"), [("llama", True), ("gpt2", True), ("bloom", False)])
def test_masks_that_the_base_takes_are_made_once(
    architecture: str, takes: bool, base_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone.from_pretrained(base_folder(architecture), device="cpu")
    made: list[int] = []
    monkeypatch.setattr(serving, "score_mask", lambda *a: made.append(1) or score_mask(*a))
    batch = RunningBatch(LobeBank(backbone))
    asked = [Request(prompt(backbone, n), {}, GREEDY) for n in (1, 4, 2)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda r: list(batch.tokens(r)), asked))
    assert batch._takes_scores == takes_score_masks(LobeBank(backbone)) == takes
    assert len(made) <= 6  # those of two trials, and one whenever somebody joins or leaves; not one for each of 24 tokens


def test_a_base_with_windows_runs_its_requests_alone(bank: LobeBank, monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_batch(bank)
    monkeypatch.setattr(bank.backbone.config, "layer_types", ["sliding_attention", "full_attention"], raising=False)
    monkeypatch.setattr(bank.backbone.config, "sliding_window", 4, raising=False)
    assert not can_batch(bank)


def test_a_request_with_a_mixer_runs_alone(bank: LobeBank) -> None:
    class Even:
        lobes = ("plain",)

        def start(self) -> Any:
            return self

        weights = None

        def __call__(self, bank: LobeBank, **inputs: Any) -> Any:
            from multilobe_ui.lobes.weights import Mix

            return bank.run(Mix(("plain",), torch.ones(1)), **inputs)

    mixed = Request(prompt(bank.backbone, 2), {}, GREEDY, mixer=Even())  # type: ignore[arg-type]
    batch = RunningBatch(bank)
    stream: Iterator[int] = batch.tokens(mixed)
    assert list(stream) == alone(bank, Request(mixed.ids, {"plain": 1.0}, GREEDY)) and batch._thread is None
