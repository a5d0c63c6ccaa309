"""Which lobe? Stage 2 beside the peer's and PEFT's, and the whole router as lobes grow more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

import contest
import torch
from contest import Result, race
from peer import Peer
from peft import PeftModel
from settings import Settings
from world import BUILTIN, LARGE, LONG, QUESTIONS, SHORT, World, topic

from multilobe_ui import MultiLobeModel
from multilobe_ui.assets import packaged_minilm
from multilobe_ui.lobes.bank import LobeBank
from multilobe_ui.routers.hybrid import SHORTLIST
from multilobe_ui.routing.scores import prompt_nll

MAX_TOKENS = 30
NOTE = f"ours asks the {SHORTLIST} lobes that the first stage finds likeliest, in one batch; the others ask every lobe."


def results(world: World, settings: Settings) -> Iterator[Result]:
    yield from stage_two(world, settings, BUILTIN, (3, 10, 50) if settings.full else (10,))
    yield growing(world, settings, 10, 200 if settings.full else 50)
    if settings.large:
        yield from stage_two(world, settings, LARGE, (3, 10))


def stage_two(world: World, settings: Settings, base: str, sizes: tuple[int, ...]) -> Iterator[Result]:
    """The log-prob stage as hybrid runs it, of lobes that are in memory: the shortlist's lobes in one batch.
    (The base's score is known by then, from the pass that reads the prompt's hidden state.)

    The peer and PEFT ask every lobe, one after another; PEFT is also given all lobes in one batch, by `adapter_names`.
    """
    backbone = world.backbone(base)
    if settings.peer:
        settings.peer.ask(
            "prepare", base=str(world.base_folder(base)), encoder=str(packaged_minilm()), threads=settings.threads
        )
    for lobes in sizes:
        adapters = world.adapters(base, lobes)
        bank = LobeBank(backbone)
        for number, adapter in enumerate(adapters):
            bank.register(f"lobe {number}", adapter)
            bank.memory.matrices(f"lobe {number}")
        wrapped = all_in_peft(world, base, lobes)
        if settings.peer:
            settings.peer.ask("add_lobes", adapters=[str(folder) for folder in adapters])
        for prompt, length in ((SHORT, "short"), (LONG, "long")) if settings.full else ((LONG, "long"),):
            runs: dict[str, Callable[[], float | None]] = {
                "ours": shortlisted(bank, prompt, lobes),
                "batch": batched(wrapped, backbone, prompt, lobes),
                "switch": switched(wrapped, backbone, prompt, lobes),
            }
            if settings.peer:
                runs["peer"] = partial(by_the_peer, settings.peer, prompt)
            times = race(settings.rounds, runs)
            work = f"log-prob stage, {lobes} lobes, {length} prompt"
            if settings.peer:
                goal = {10: 5.0, 50: 25.0}.get(lobes) if base == BUILTIN else None
                note = NOTE if lobes > SHORTLIST else ""
                yield Result(work, base, "multilobe 0.1.0", times["ours"], times["peer"], "ms", goal, note=note)
            yield Result(work, base, "PEFT set_adapter, all lobes", times["ours"], times["switch"], "ms")
            yield Result(work, base, "PEFT adapter_names, all lobes", times["ours"], times["batch"], "ms")


def shortlisted(bank: LobeBank, prompt: str, lobes: int) -> Callable[[], float]:
    numbers = count()

    def run() -> float:
        first = 7 * next(numbers)  # another shortlist each time: what a set of lobes needs is kept between calls
        shortlist = [f"lobe {(first + i) % lobes}" for i in range(SHORTLIST)]
        start = contest.now()
        prompt_nll(bank, [prompt], shortlist, MAX_TOKENS, base=False)
        return 1000 * (contest.now() - start)

    return run


def by_the_peer(peer: Peer, prompt: str) -> float:
    return 1000 * float(peer.ask("logprob", prompt=prompt))


def all_in_peft(world: World, base: str, lobes: int) -> Any:
    wrapped: Any = None
    for number, folder in enumerate(world.adapters(base, lobes)):
        if wrapped is None:
            wrapped = PeftModel.from_pretrained(world.plain(base).twin(), str(folder), adapter_name=f"a{number}")  # type: ignore[arg-type]
        else:
            wrapped.load_adapter(str(folder), adapter_name=f"a{number}")
    return wrapped.eval()


def words_of(backbone: Any, prompt: str) -> tuple[torch.Tensor, int]:
    opening, words = backbone.encode_prompt(prompt)
    return torch.tensor([opening + words[:MAX_TOKENS]]), len(opening)


def switched(wrapped: Any, backbone: Any, prompt: str, lobes: int) -> Callable[[], float]:
    ids, _ = words_of(backbone, prompt)

    @torch.inference_mode()
    def run() -> float:
        start = contest.now()
        for number in range(lobes):
            wrapped.set_adapter(f"a{number}")
            logits = wrapped(input_ids=ids, use_cache=False).logits
            torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
        return 1000 * (contest.now() - start)

    return run


def batched(wrapped: Any, backbone: Any, prompt: str, lobes: int) -> Callable[[], float]:
    ids, _ = words_of(backbone, prompt)
    names = [f"a{number}" for number in range(lobes)]

    @torch.inference_mode()
    def run() -> float:
        start = contest.now()
        logits = wrapped(input_ids=ids.expand(lobes, -1), adapter_names=names, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[0, 1:].repeat(lobes))
        return 1000 * (contest.now() - start)

    return run


def growing(world: World, settings: Settings, few: int, many: int) -> Result:
    """A decision of the hybrid router on prompts that it has not seen, as a chat asks for it."""
    numbers = count()

    def decision(model: MultiLobeModel) -> Callable[[], float]:
        def run() -> float:
            taken = []
            for _ in range(4):
                number = next(numbers)
                taken.append(model.route(f"{QUESTIONS[number % 10].format(topic(number % few))} ({number})").elapsed_ms)
            return sum(taken) / len(taken)

        return run

    models = {lobes: world.model(BUILTIN, lobes) for lobes in (many, few)}
    for model in models.values():
        model.routers.prepare()
    times = race(3 * settings.rounds, {str(lobes): decision(model) for lobes, model in models.items()}, warm_up=2)
    work = f"hybrid routing, {many} lobes"
    return Result(work, BUILTIN, f"ourselves with {few}", times[str(many)], times[str(few)], "ms", 1.5, "at most")
