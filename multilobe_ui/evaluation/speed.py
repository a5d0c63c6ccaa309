"""What this machine does with this base: training, routing, decoding, memory, beside what the
machine could do at all."""

from __future__ import annotations

import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..base.backbone import describe
from ..base.fast import Trick, for_training
from ..data.examples import Example
from ..generation.batch import RunningBatch
from ..generation.decode import Request
from ..model import MultiLobeModel
from ..progress import Progress, finish
from ..settings import SamplingConfig, TrainingConfig, check
from ..training.adapters import lora_twin
from ..training.lobe import train_lobe

PROMPTS = (
    "What does insulin do?",
    "How do I reverse a list in Python?",
    "Which remedies are there for a breach of contract, and when may a court refuse to enforce it?",
    "What is the derivative of x squared?",
)
ANSWER = "An answer of a dozen words, to see how fast it can be learned."
SQUARE = 1024
"""Side of the matrices whose product is timed."""
COPIED = 1 << 26
"""Bytes that are copied to time the memory."""
STEPS = 4
GIB = 2**30


@dataclass(frozen=True)
class SpeedSettings:
    """What may be set."""

    rounds: int = 5
    """Times that each thing is timed; the median counts."""
    tokens: int = 64
    """Longest answer."""
    chats: int = 8
    """Chats that are answered together."""

    def __post_init__(self) -> None:
        for name, most in (("rounds", 100), ("tokens", 4096), ("chats", 64)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            check(whole and 1 <= value <= most, name, value, f"a whole number from 1 to {most}")


@dataclass(frozen=True)
class Speed:
    """What was measured; every number is the median of some rounds, None where there was nothing to time.

    Attributes:
        machine: processor, cores, torch threads, device. base: as `backbone.describe` says.
        gflops: of a product of square float32 matrices. copy_gib_s: GiB/s of a copy in memory, read
            and written counted once.
        training: tokens per second of optimizer steps on batches of four rows.
        routing: router → ms of a decision on a prompt that it has not seen.
        decoding: tokens per second: "base" and "lobe" alone, "together" of all chats at once, "one
            after another" of the same.
        first_token_ms: from the request to the first token of a chat that is alone.
        fast: what was made faster in the base, for serving and then for training, and what was left
            alone for which reason.
        base_bytes: of the base's weights. lobe_bytes: mean of a lobe's in memory.
    """

    machine: Mapping[str, Any]
    base: Mapping[str, Any]
    gflops: float
    copy_gib_s: float
    training: float | None
    routing: Mapping[str, float]
    decoding: Mapping[str, float | None]
    first_token_ms: float | None
    base_bytes: int
    lobe_bytes: float | None
    chats: int
    stopped: bool
    seconds: float
    fast: tuple[Trick, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def timing(
    model: MultiLobeModel, settings: SpeedSettings, *, data: Path | None = None, made: Path, stop: threading.Event
) -> Generator[Progress, None, Speed]:
    """Time everything; nothing that serves is changed. `data` counts for nothing."""
    began, steps = time.perf_counter(), 5
    yield Progress(0, steps, "Timing the machine", {})
    gflops, copied = machine_rates(model.backbone.device, settings.rounds)
    yield Progress(1, steps, "Timing the training of a lobe", {})
    trained = _training_rate(model, made) if not stop.is_set() else None
    yield Progress(2, steps, "Timing the routers", {})
    routed: dict[str, float] = {}
    for name in model.routers.names:
        if not stop.is_set() and model.lobes and model.routers.named(name).is_fitted:
            routed[name] = _routing_ms(model, name, settings.rounds)
    decoded: dict[str, float | None] = dict.fromkeys(("base", "lobe", "one after another", "together"))
    first: float | None = None
    yield Progress(3, steps, "Timing answers, one at a time", {})
    if not stop.is_set():
        alone = [_alone(model, request, settings.rounds) for request in _requests(model, settings, 2)]
        decoded["base"], first = alone[0]
        decoded["lobe"] = alone[1][0] if model.lobes else None
    yield Progress(4, steps, f"Timing {settings.chats} answers together", {})
    if not stop.is_set():
        decoded["one after another"], decoded["together"] = _together(model, settings)
    sizes = [sum(a.nbytes + b.nbytes for a, b in model.bank.memory.matrices(lobe.id).values()) for lobe in model.lobes[:8]]
    return Speed(
        machine=machine(model.backbone.device),
        base=describe(model.backbone),
        gflops=gflops,
        copy_gib_s=copied,
        training=trained,
        routing=routed,
        decoding=decoded,
        first_token_ms=first,
        base_bytes=sum(parameter.nbytes for parameter in model.backbone.model.parameters()),
        lobe_bytes=sum(sizes) / len(sizes) if sizes else None,
        chats=settings.chats,
        stopped=stop.is_set(),
        seconds=time.perf_counter() - began,
        fast=(model.bank.fast + for_training(lora_twin(model.backbone, TrainingConfig()).eval())).tricks,
    )


def speed(
    model: MultiLobeModel, scratch: Path, *, progress: Callable[[Progress], None] | None = None, **settings: Any
) -> Speed:
    """`timing` to its end; `settings` are fields of SpeedSettings. `scratch` is a folder for a moment."""
    return finish(timing(model, SpeedSettings(**settings), made=scratch, stop=threading.Event()), progress)


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers belong to."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"processor": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "device": str(device)}


# ---- one thing each --------------------------------------------------------------------------------------------------------


def _timed(work: Callable[[], Any], rounds: int, device: torch.device) -> float:
    """Median seconds of a round, after one that warms up."""
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return median(taken[1:])


def machine_rates(device: torch.device, rounds: int) -> tuple[float, float]:
    """(GFLOP/s of a float32 product, GiB/s of a copy)."""
    a, b = torch.randn(2, SQUARE, SQUARE, device=device)
    source, target = torch.ones(2, COPIED, dtype=torch.uint8, device=device)  # a copy into new memory would time the system
    product = _timed(lambda: a @ b, rounds, device)
    return 2 * SQUARE**3 / product / 1e9, COPIED / GIB / _timed(lambda: target.copy_(source), rounds, device)


def _training_rate(model: MultiLobeModel, made: Path) -> float | None:
    """Tokens per second, the median of a few optimizer steps after the first."""
    rows = [
        Example(({"role": "user", "content": prompt},), answer)
        for own in model.routers.context().rows.values()
        for prompt, answer in zip(own.train_prompts, own.train_answers, strict=False)
    ]
    config = TrainingConfig(epochs=1, validation_fraction=0.0)
    rows = rows or [Example(({"role": "user", "content": prompt},), ANSWER) for prompt in PROMPTS]
    rows = (rows * config.batch_size * (STEPS + 1))[: config.batch_size * (STEPS + 1)]
    steps = train_lobe(model.backbone, rows, [], config, made / "adapter")
    rates = [record.tokens_per_second for record in steps if record.loss is not None]
    shutil.rmtree(made, ignore_errors=True)
    return median(rates[1:]) if len(rates) > 1 else None


def _routing_ms(model: MultiLobeModel, router: str, rounds: int) -> float:
    """Median milliseconds of a decision on prompts of which nothing is remembered."""
    model.route(PROMPTS[0], router)
    taken = []
    for number in range(rounds):
        for prompt in PROMPTS:
            taken.append(model.route(f"{prompt} ({number})", router).elapsed_ms)
        model.routers.contexts.forget([f"{prompt} ({number})" for prompt in PROMPTS])
    return median(taken)


def _requests(model: MultiLobeModel, settings: SpeedSettings, count: int) -> list[Request]:
    """Greedy requests; the first is the base's, the others go to at most four lobes in turn."""
    config = SamplingConfig(max_new_tokens=settings.tokens, do_sample=False)
    lobes = [lobe.id for lobe in model.lobes[:4]]
    return [
        Request(
            model.backbone.encode_chat([{"role": "user", "content": PROMPTS[i % len(PROMPTS)]}]),
            {lobes[i % len(lobes)]: 1.0} if i and lobes else {},
            config,
        )
        for i in range(count)
    ]


def _counted(tokens: Iterator[int]) -> int:
    return sum(1 for _ in tokens)


def _alone(model: MultiLobeModel, request: Request, rounds: int) -> tuple[float | None, float | None]:
    """(tokens per second, ms to the first token) of a chat that is alone; None for an answer
    without tokens."""
    batch, rates, firsts = RunningBatch(model.bank), [], []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        tokens = batch.tokens(request)
        if next(tokens, None) is None:
            return None, None
        firsts.append((time.perf_counter() - start) * 1000)
        count = 1 + _counted(tokens)
        rates.append(count / (time.perf_counter() - start))
    return median(rates[1:]), median(firsts[1:])


def _together(model: MultiLobeModel, settings: SpeedSettings) -> tuple[float | None, float | None]:
    """Tokens per second of the same chats (one after another, together), taken in turns."""
    requests = _requests(model, settings, settings.chats + 1)[1:]
    batch, apart, joined = RunningBatch(model.bank, len(requests)), [], []
    with ThreadPoolExecutor(len(requests)) as pool:
        for _ in range(settings.rounds + 1):
            apart.append(_rate(lambda: [_counted(batch.tokens(request)) for request in requests]))
            joined.append(_rate(lambda: list(pool.map(lambda request: _counted(batch.tokens(request)), requests))))
    return median(apart[1:]) or None, median(joined[1:]) or None


def _rate(work: Callable[[], Sequence[int]]) -> float:
    start = time.perf_counter()
    return sum(work()) / (time.perf_counter() - start)
