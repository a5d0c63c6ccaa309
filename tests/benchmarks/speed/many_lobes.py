"""Many lobes: opening them, what they take in memory, and what a budget costs."""

from __future__ import annotations

import copy
import ctypes
import gc
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from contest import Result, race
from peft import PeftModel
from settings import Settings
from world import BUILTIN, LARGE, SHORT, World

from multilobe_ui import MultiLobeModel
from multilobe_ui.base.backbone import Backbone
from multilobe_ui.lobes.bank import LobeBank
from multilobe_ui.lobes.weights import Mix

IN_A_BUNDLE, FEW, IN_MEMORY, MERGED = 100, 30, 50, 4
MIB = 1 << 20


def results(world: World, settings: Settings) -> Iterator[Result]:
    yield from opening(world, settings)
    yield memory(world, settings, BUILTIN)
    yield eviction(world, settings)
    if settings.large:
        yield memory(world, settings, LARGE)
    if settings.full:
        yield from a_thousand(world, settings)


# ---- opening ---------------------------------------------------------------------------------------------------------------


def opening(world: World, settings: Settings) -> Iterator[Result]:
    """A saved bundle into an empty home, with its router as it was fitted; PEFT gets the same adapters' folders."""
    count = IN_A_BUNDLE if settings.full else FEW
    backbone, model = world.backbone(BUILTIN), world.model(BUILTIN, count)
    model.route(SHORT)  # so that the bundle has the router's fit
    bundles = {"folder": world.scratch / "bundle", "zip": world.scratch / "bundle.zip"}
    for path in bundles.values():
        model.save(path)

    def ours(path: Path) -> Callable[[], float]:
        def run() -> float:
            home = world.scratch / "opened"
            start = time.perf_counter()
            opened = MultiLobeModel(backbone, home=home, embedder=world.embedder)
            opened.load_bundle(path)
            took = time.perf_counter() - start
            assert len(opened.lobes) == count and opened.routers.named("hybrid").is_fitted
            shutil.rmtree(home)
            return took

        return run

    def theirs() -> float:
        twin, adapters = world.plain(BUILTIN).twin(), world.adapters(BUILTIN, count)
        start = time.perf_counter()
        wrapped = PeftModel.from_pretrained(twin, str(adapters[0]), adapter_name="lobe_0")  # type: ignore[arg-type]
        for number, adapter in enumerate(adapters[1:], 1):
            wrapped.load_adapter(str(adapter), adapter_name=f"lobe_{number}")
        return time.perf_counter() - start

    for run in map(ours, bundles.values()):
        run()  # what is imported at first use
    taken = race(
        3 if settings.full else 1, {**{kind: ours(path) for kind, path in bundles.items()}, "PEFT": theirs}, warm_up=0
    )
    note = "PEFT's load_adapter takes longer with every adapter there is. Ours copies files, reads headers and routing rows"
    for kind in bundles:
        work = f"open a bundle of {count} lobes ({kind}), ready to route"
        against = f"PEFT load_adapter × {count}"
        goal = 20 if kind == "folder" and settings.full else None
        yield Result(
            work, BUILTIN, against, taken[kind], taken["PEFT"], "s", goal, note=f"{note}; weights at first use."
        )


# ---- memory ----------------------------------------------------------------------------------------------------------------


def memory(world: World, settings: Settings, base: str) -> Result:
    """Memory of processes of their own, beyond the base that both have: lobes that have each answered, and whole models."""
    folder, adapters = world.base_folder(base), world.adapters(base, IN_MEMORY)

    def grown(kind: str, count: int) -> float:
        return in_own_process(kind, folder, settings, *adapters[:count])

    rounds = 3 if settings.full else 1
    runs: Mapping[str, Callable[[], float]] = {
        "ours": lambda: grown("bank", IN_MEMORY),
        "theirs": lambda: grown("merged", MERGED) / MERGED * IN_MEMORY,
    }
    taken = race(rounds, runs, warm_up=0)
    note = (
        f"growth of resident memory in a process of its own, float32, rank 16 on every linear layer; each lobe has answered once. "
        f"{MERGED} copies are merged (PEFT merge_and_unload) and the number scaled, which is exact: a copy is a whole model"
    )
    against = f"{IN_MEMORY} merged copies"
    return Result(
        f"{IN_MEMORY} lobes in memory",
        base,
        against,
        taken["ours"],
        taken["theirs"],
        "MiB",
        0.10,
        "at most",
        f"{note}.",
    )


def in_own_process(kind: str, base: Path, settings: Settings, *paths: Path) -> float:
    """`measure`, where nothing else has left memory to be used again."""
    command = [sys.executable, __file__, kind, str(base), str(settings.threads), *map(str, paths)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def resident_bytes() -> int:
    """Memory of this process. What was freed goes back to the system first: else the next who asks for memory takes no more."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("This system does not tell VmRSS: memory is measured on Linux.")


def measure(kind: str, base: str, threads: str, *paths: str) -> float:
    """MiB by which this process grows: adapters in the "bank", as many "merged" copies of the base, or an open "home"."""
    torch.set_num_threads(int(threads))
    backbone = Backbone.from_pretrained(base, device="cpu")
    ids = torch.tensor([backbone.encode_chat([{"role": "user", "content": SHORT}])])
    bank = LobeBank(backbone)
    kept: list[torch.nn.Module] = []

    def answer(mix: Mix | None) -> None:
        with torch.inference_mode():
            bank.run(mix, input_ids=ids, use_cache=False)

    answer(None)
    if kind == "home":
        before = resident_bytes()
        opened = MultiLobeModel(backbone, home=Path(paths[0]))
        assert opened.lobes and opened.bank.memory.resident == ()
        return (resident_bytes() - before) / MIB
    merged_copy(backbone, paths[0])  # what is imported at first use is nobody's
    before = resident_bytes()
    for number, adapter in enumerate(paths):
        if kind == "merged":
            kept.append(merged_copy(backbone, adapter))
        else:
            bank.register(str(number), Path(adapter))
            answer(Mix.of({str(number): 1.0}))
    return (resident_bytes() - before) / MIB


def merged_copy(backbone: Backbone, adapter: str) -> torch.nn.Module:
    """The base with an adapter merged into its weights."""
    wrapped = PeftModel.from_pretrained(copy.deepcopy(backbone.model), adapter)  # type: ignore[arg-type]
    merged: torch.nn.Module = wrapped.merge_and_unload()  # type: ignore[operator,assignment]
    return merged


# ---- a budget --------------------------------------------------------------------------------------------------------------


def eviction(world: World, settings: Settings, lobes: int = 20, room: int = 5) -> Result:
    """A step of one token on the next lobe in turn: with room for a quarter of them every step reads a lobe from the disk."""
    banks = {"ours": LobeBank(world.backbone(BUILTIN)), "theirs": LobeBank(world.backbone(BUILTIN))}
    for bank in banks.values():
        for number, adapter in enumerate(world.adapters(BUILTIN, lobes)):
            bank.register(str(number), adapter)
    banks["theirs"].memory.matrices("0")
    banks["ours"].memory.budget_bytes = room * banks["theirs"].memory.resident_bytes
    token = torch.tensor([[7]])

    def cycle(bank: LobeBank) -> Callable[[], float]:
        def run() -> float:
            start = time.perf_counter()
            with torch.inference_mode():
                for number in range(lobes):
                    bank.run(Mix.of({str(number): 1.0}), input_ids=token, use_cache=False)
            return 1000 * (time.perf_counter() - start) / lobes

        return run

    taken = race(2 * settings.rounds, {name: cycle(bank) for name, bank in banks.items()})
    work = f"a token on each of {lobes} lobes in turn, memory for {room}"
    note = "the worst case: every token needs a lobe that has just left; an answer of many tokens reads its lobe once"
    return Result(work, BUILTIN, "all in memory", taken["ours"], taken["theirs"], "ms", None, "at most", f"{note}.")


# ---- a thousand ------------------------------------------------------------------------------------------------------------


def a_thousand(world: World, settings: Settings, few: int = 100, many: int = 1000) -> Iterator[Result]:
    """What a home of 1,000 lobes costs beside one of 100, both with a router that was calibrated before."""
    backbone, homes = world.backbone(BUILTIN), dict[int, Path]()
    for lobes in (few, many):
        world.model(BUILTIN, lobes).route(SHORT)
        homes[lobes] = Path(shutil.copytree(world.home(BUILTIN, lobes), world.scratch / f"copy-{lobes}"))
    opened: dict[int, MultiLobeModel] = {}

    def open_home(lobes: int) -> Callable[[], float]:
        def run() -> float:
            start = time.perf_counter()
            opened[lobes] = MultiLobeModel(backbone, home=homes[lobes], embedder=world.embedder)
            return time.perf_counter() - start

        return run

    def first_route(lobes: int) -> Callable[[], float]:
        def run() -> float:
            model = MultiLobeModel(backbone, home=homes[lobes], embedder=world.embedder)
            start = time.perf_counter()
            model.route(SHORT)
            return time.perf_counter() - start

        return run

    def come_and_go(lobes: int) -> Callable[[], float]:
        def run() -> float:
            start = time.perf_counter()
            opened[lobes].import_adapter("a newcomer", world.adapters(BUILTIN, 1)[0])
            opened[lobes].remove_lobe("a newcomer")
            return time.perf_counter() - start

        return run

    def held(lobes: int) -> Callable[[], float]:
        return lambda: in_own_process("home", world.base_folder(BUILTIN), settings, homes[lobes])

    works = {
        "open the home": (open_home, "s"), "the first decision": (first_route, "s"),
        "add a lobe and delete it": (come_and_go, "s"), "memory of the open home": (held, "MiB"),
    }  # fmt: skip
    for work, (run, unit) in works.items():
        taken = race(settings.rounds, {str(lobes): run(lobes) for lobes in (few, many)})
        note = "ten times as many lobes; no weights are in memory."
        yield Result(
            f"{many:,} lobes: {work}",
            BUILTIN,
            f"{few} lobes",
            taken[str(many)],
            taken[str(few)],
            unit,
            None,
            "at most",
            note,
        )


if __name__ == "__main__":
    print(measure(*sys.argv[1:]))
