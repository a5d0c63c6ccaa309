"""Tokens: one lobe alone, eight chats together, X-LoRA's mixture, each beside what PEFT and transformers do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import contest
import torch
from contest import Result, race
from peft import PeftModel, XLoraConfig, get_peft_model
from settings import Settings
from world import BUILTIN, LARGE, LONG, SHORT, World

from multilobe_ui.generation.batch import RunningBatch
from multilobe_ui.generation.decode import Request, generate_tokens
from multilobe_ui.lobes.bank import LobeBank
from multilobe_ui.routers.xlora.mixer import ScalingHead, XLoraMixer
from multilobe_ui.settings import SamplingConfig

CHATS, CHAT_LOBES = 8, 4


def results(world: World, settings: Settings) -> Iterator[Result]:
    bases = ((BUILTIN, 64), (LARGE, 24)) if settings.large else ((BUILTIN, 64),)
    for base, tokens in bases:
        for prompt, length in ((SHORT, "short"), (LONG, "long")) if settings.full else ((SHORT, "short"),):
            yield from one_lobe(world, settings, base, prompt, length, tokens)
        yield together(world, settings, base, tokens)
    yield from xlora(world, settings, BUILTIN, 128 if settings.full else 48)


def rounds(settings: Settings, base: str) -> int:
    """Three times as many on the built-in base, where a run is over in half a second and a neighbour's work shows."""
    return settings.rounds * (3 if base == BUILTIN else 1)


def endless(bank: LobeBank) -> None:
    """Answers that end of themselves would be of different lengths."""
    bank.backbone.stop_ids = frozenset()


def alone(bank: LobeBank, request: Request) -> Callable[[], float]:
    """A run that gives milliseconds a token, the prompt with them."""
    tokens = request.sampling.max_new_tokens

    def run() -> float:
        start = contest.now()
        assert sum(1 for _ in generate_tokens(bank, [request])) == tokens
        return 1000 * (contest.now() - start) / tokens

    return run


def in_step(bank: LobeBank, rounds: int, requests: Mapping[str, Request]) -> dict[str, list[float]]:
    """Milliseconds a token of answers that take turns at every token: what differs by a tenth is lost in what this machine's
    neighbours do from one half second to the next."""
    times: dict[str, list[float]] = {name: [] for name in requests}
    for number in range(rounds + 1):
        spent = dict.fromkeys(requests, 0.0)
        streams = {name: generate_tokens(bank, [request]) for name, request in requests.items()}
        for _ in range(next(iter(requests.values())).sampling.max_new_tokens):
            for name, stream in streams.items():
                start = contest.now()
                next(stream)
                spent[name] += contest.now() - start
        for name, request in requests.items():
            if number:  # the first warms up
                times[name].append(1000 * spent[name] / request.sampling.max_new_tokens)
    return times


def one_lobe(world: World, settings: Settings, base: str, prompt: str, length: str, tokens: int) -> Iterator[Result]:
    backbone, adapter = world.backbone(base), world.adapters(base, 1)[0]
    bank = LobeBank(backbone)
    endless(bank)
    bank.register("lobe", adapter)
    ids = backbone.encode_chat([{"role": "user", "content": prompt}])
    wrapped: Any = PeftModel.from_pretrained(world.plain(base).twin(), str(adapter)).eval()  # type: ignore[arg-type]
    tensor = torch.tensor([ids])

    config = SamplingConfig(do_sample=False, max_new_tokens=tokens)
    requests = {name: Request(ids, weights, config) for name, weights in (("lobe", {"lobe": 1.0}), ("base", {}))}

    @torch.inference_mode()
    def theirs() -> float:
        start = contest.now()
        wrapped.generate(
            input_ids=tensor, attention_mask=torch.ones_like(tensor), do_sample=False, max_new_tokens=tokens,
            min_new_tokens=tokens, pad_token_id=0,
        )  # fmt: skip
        return 1000 * (contest.now() - start) / tokens

    times = race(rounds(settings, base), {"lobe": alone(bank, requests["lobe"]), "peft": theirs})
    turns = in_step(bank, rounds(settings, base), requests)
    work = f"decode {tokens} tokens with one lobe, {length} prompt"
    yield Result(work, base, "PEFT generate, unmerged", times["lobe"], times["peft"], "ms/token", 1.4)
    yield Result(work, base, "our base without lobe", turns["lobe"], turns["base"], "ms/token", 1.15, "at most")


def together(world: World, settings: Settings, base: str, tokens: int) -> Result:
    backbone = world.backbone(base)
    bank = LobeBank(backbone)
    endless(bank)
    for number, adapter in enumerate(world.adapters(base, CHAT_LOBES)):
        bank.register(f"lobe {number}", adapter)
    config = SamplingConfig(do_sample=False, max_new_tokens=tokens)
    requests = [
        Request(
            backbone.encode_chat([{"role": "user", "content": f"{SHORT} {i}"}]), {f"lobe {i % CHAT_LOBES}": 1.0}, config
        )
        for i in range(CHATS)
    ]
    batch = RunningBatch(bank)

    def counted(request: Request) -> int:
        return sum(1 for _ in batch.tokens(request))

    def per_token(work: Callable[[], Sequence[int]]) -> Callable[[], float]:
        def run() -> float:
            start = contest.now()
            made = sum(work())
            assert made == CHATS * tokens
            return 1000 * (contest.now() - start) / made

        return run

    with ThreadPoolExecutor(CHATS) as pool:
        runs = {
            "together": per_token(lambda: list(pool.map(counted, requests))),
            "apart": per_token(lambda: [counted(request) for request in requests]),
        }
        times = race(rounds(settings, base), runs)
    work = f"{CHATS} chats on {CHAT_LOBES} lobes together, {tokens} tokens each"
    return Result(work, base, "the same one after another", times["together"], times["apart"], "ms/token", 4.0)


def xlora(world: World, settings: Settings, base: str, tokens: int) -> Iterator[Result]:
    """X-LoRA over three lobes against PEFT's, which may not use a cache, and against one plain lobe."""
    backbone, adapters = world.backbone(base), world.adapters(base, 3)
    bank = LobeBank(backbone)
    endless(bank)
    names = tuple(f"lobe {i}" for i in range(3))
    for name, adapter in zip(names, adapters, strict=True):
        bank.register(name, adapter)
    ids = backbone.encode_chat([{"role": "user", "content": SHORT}])
    config = SamplingConfig(do_sample=False, max_new_tokens=tokens)
    mixed = Request(ids, {}, config, mixer=mixer(bank, names))
    plain = Request(ids, {names[0]: 1.0}, config)
    wrapped = peft_xlora(world, base, adapters)

    @torch.no_grad()
    def theirs() -> float:
        now = torch.tensor([ids])
        start = contest.now()
        for _ in range(tokens):  # as its `generate` does, which may keep no cache, without the rest of that
            logits = wrapped(input_ids=now, use_cache=False, logits_to_keep=1).logits
            now = torch.cat([now, logits[:, -1:].argmax(-1)], dim=1)
        return 1000 * (contest.now() - start) / tokens

    times = race(settings.rounds, {"ours": alone(bank, mixed), "peft": theirs})
    turns = in_step(bank, rounds(settings, base), {"ours": mixed, "lora": plain})
    work = f"X-LoRA over 3 lobes, {tokens} new tokens"
    yield Result(work, base, "PEFT X-LoRA", times["ours"], times["peft"], "ms/token", 3.0)
    yield Result(work, base, "our LoRA step", turns["ours"], turns["lora"], "ms/token", 2.0, "at most")


def mixer(bank: LobeBank, names: tuple[str, ...]) -> XLoraMixer:
    """A head as it comes from its initialisation: what it weighs does not change what a token costs."""
    torch.manual_seed(0)
    head = ScalingHead(bank.backbone.hidden_size, len(names), len(bank.layers(names)))
    return XLoraMixer(head.eval().requires_grad_(False), names)


def peft_xlora(world: World, base: str, adapters: Sequence[Path]) -> Any:
    model: Any = copy.deepcopy(world.plain(base).model)
    model.config.use_cache = False  # PEFT's X-LoRA refuses a cache
    config = XLoraConfig(
        task_type="CAUSAL_LM",
        hidden_size=world.backbone(base).hidden_size,
        adapters={str(i): str(folder) for i, folder in enumerate(adapters)},
        layerwise_scalings=True,
    )
    return get_peft_model(model, config).eval()
