"""The lobe bank: calls from many threads, memory, gradients, other dtypes and layers. (That it adds exactly what PEFT adds is
proved for every architecture in test_architectures.py.)"""

from __future__ import annotations

import gc
import itertools
import random
import shutil
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
import torch
from accelerate import cpu_offload
from torch import Tensor, nn

from multilobe_ui.base.backbone import Backbone
from multilobe_ui.errors import AdapterError, LobeError
from multilobe_ui.lobes.bank import LobeBank
from multilobe_ui.lobes.layouts import MANY_TOKENS, Groups
from multilobe_ui.lobes.memory import PLANS_KEPT
from multilobe_ui.lobes.weights import Mix

EXACT = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def bank(backbone: Backbone, adapters: dict[str, Path]) -> LobeBank:
    made = LobeBank(backbone)
    for lobe, path in adapters.items():
        made.register(lobe, path)
    return made


@torch.no_grad()
def logits(bank: LobeBank, mix: Mix | None, ids: Tensor) -> Tensor:
    return bank.run(mix, input_ids=ids).logits


# ---- isolation -------------------------------------------------------------------------------------------------------------


def test_the_backbone_and_other_banks_are_left_alone(
    backbone: Backbone, bank: LobeBank, adapters: dict[str, Path]
) -> None:
    ids, other = tiny.numbers(1, 8), LobeBank(backbone)
    other.register("plain", adapters["attention"])
    assert not torch.equal(logits(bank, Mix.of({"plain": 1.0}), ids), logits(other, Mix.of({"plain": 1.0}), ids))
    assert not [name for name, module in backbone.model.named_modules() if "forward" in vars(module)]
    shared = {p.data_ptr() for p in backbone.model.parameters()}
    assert {p.data_ptr() for p in bank.model.parameters()} == shared


def test_weights_that_are_only_there_during_the_forward(base_folder: Callable[..., Path], adapters: dict[str, Path]) -> None:
    """As accelerate's hooks have them, for bases that do not fit on the device."""
    plain = LobeBank(Backbone.from_pretrained(base_folder(), device="cpu"))
    hooked = Backbone.from_pretrained(base_folder(), device="cpu")
    cpu_offload(hooked.model, execution_device="cpu")
    assert any(parameter.is_meta for parameter in hooked.model.parameters())
    bank = LobeBank(hooked)
    for one in (plain, bank):
        one.register("lobe", adapters["plain"])
    for mix in (None, Mix.of({"lobe": 1.0})):
        with torch.inference_mode():
            logits = [one.run(mix, input_ids=tiny.numbers(2, 8)).logits for one in (plain, bank)]
        torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=1e-5)


def test_many_threads_at_once_each_get_their_own_answer(
    backbone: Backbone, bank: LobeBank, adapters: dict[str, Path]
) -> None:
    bank.memory.budget_bytes = int(1.5 * bank.register("plain", adapters["plain"]).nbytes)  # so that lobes come and go
    ids = tiny.numbers(2, 10)
    mixes = [
        None,
        Mix.of({"plain": 1.0}),
        Mix.of({"attention": 1.0}),
        Mix.of({"plain": 0.5, "patterns": -0.5}),
        Mix.rows([{"attention": 1.0}, {"patterns": 1.0}]),
        Mix.rows([{}, {"plain": 0.3, "attention": 0.7}]),
        Mix(("plain", "patterns"), torch.linspace(-1, 1, 40).reshape(2, 10, 2)),
    ]
    alone = [logits(bank, mix, ids) for mix in mixes]
    start, wrong, busy = threading.Barrier(len(mixes) + 1), [], threading.Event()

    def ask(mix: Mix | None, expected: Tensor) -> None:
        start.wait()
        for _ in range(25):
            try:
                if not torch.equal(logits(bank, mix, ids), expected):
                    wrong.append(mix)
            except Exception as error:
                wrong.append(error)

    def come_and_go() -> None:
        start.wait()
        for i in itertools.count():
            if busy.is_set():
                return
            bank.register(f"guest {i % 3}", adapters["patterns"])
            logits(bank, Mix.of({f"guest {i % 3}": 1.0, "plain": 1.0}), ids)
            bank.unregister(f"guest {(i + 1) % 3}")

    guest = threading.Thread(target=come_and_go)
    threads = [threading.Thread(target=ask, args=pair) for pair in zip(mixes, alone, strict=True)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in (guest, *threads):
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        busy.set()
        guest.join()
        sys.setswitchinterval(interval)
    assert wrong == []


@pytest.mark.parametrize("tokens", [1, MANY_TOKENS - 1, MANY_TOKENS, MANY_TOKENS + 5])
@pytest.mark.parametrize(
    "rows",
    [
        [{"attention": 0.5}, {"patterns": 1.0}, {}, {"plain": -1.0}, {"patterns": 1.0}],  # one lobe a row, out of their order
        [{"plain": 1.0}, {"attention": 1.0}, {"patterns": 1.0}],  # in their order, which needs no gathering
        [{"plain": 1.0, "patterns": 0.5}, {"attention": 2.0}, {}],
    ],
)
def test_rows_have_what_they_have_alone_however_many_tokens(
    bank: LobeBank, rows: list[dict[str, float]], tokens: int
) -> None:
    ids = tiny.numbers(len(rows), tokens)
    alone = torch.cat([logits(bank, Mix.of(row), ids[i : i + 1]) for i, row in enumerate(rows)])
    torch.testing.assert_close(logits(bank, Mix.rows(rows), ids), alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("whose", "grouped"),
    [
        ("aabbccdd", "in order"),  # four lobes with two rows each, next to each other
        ("abcdabcd", "gathered"),
        ("dca-bdca", "gathered"),  # the base's row runs with one of them, at weight zero
        ("aab", None),  # to gather costs more
        ("abcdeaaaaaa", None),  # mostly empty places
        ("bbbb", None),
    ],
)
@pytest.mark.parametrize("weight", [1.0, -0.5])
def test_rows_together_by_their_lobes_have_what_they_have_alone(
    bank: LobeBank, adapters: dict[str, Path], whose: str, grouped: str | None, weight: float
) -> None:
    for name, kind in zip("abcde", ("plain", "attention", "patterns", "plain", "patterns"), strict=True):
        bank.register(name, adapters[kind])
    mix = Mix.rows([{} if name == "-" else {name: weight} for name in whose])
    groups = Groups.of(mix.weights)
    if grouped is None:
        assert groups is None
    else:
        assert groups is not None and (groups.places is None) == (grouped == "in order")
    ids = tiny.numbers(len(whose), 1)
    alone = [logits(bank, Mix.of({} if n == "-" else {n: weight}), ids[i : i + 1]) for i, n in enumerate(whose)]
    for _ in range(2):  # the second time with what was kept of the first
        torch.testing.assert_close(logits(bank, mix, ids), torch.cat(alone), atol=2e-5, rtol=0)


def test_what_is_kept_of_a_call_serves_only_its_like(bank: LobeBank, adapters: dict[str, Path]) -> None:
    mix, ids = Mix.rows([{"plain": 1.0}, {"patterns": 0.5}]), tiny.numbers(2, 1)
    before = logits(bank, mix, ids)
    logits(bank, mix, tiny.numbers(2, 3))
    assert torch.equal(logits(bank, mix, ids), before)
    bank.register("plain", adapters["attention"])  # other weights under the same name
    fresh = logits(bank, Mix.rows([{"plain": 1.0}, {"patterns": 0.5}]), ids)
    assert torch.equal(logits(bank, mix, ids), fresh) and not torch.allclose(fresh, before, atol=1e-3)
    other = LobeBank(bank.backbone)
    for lobe in ("plain", "patterns"):
        other.register(lobe, adapters[lobe])
    assert torch.equal(logits(other, mix, ids), before)


def test_a_failed_call_leaves_no_weights_behind(bank: LobeBank) -> None:
    ids = tiny.numbers(1, 8)
    base = logits(bank, None, ids)
    with pytest.raises(RuntimeError):
        logits(bank, Mix(("plain",), torch.ones(5, 1)), ids.repeat(2, 1))
    assert torch.equal(logits(bank, None, ids), base)


# ---- registry --------------------------------------------------------------------------------------------------------------


def test_an_unknown_lobe_is_named(bank: LobeBank) -> None:
    with pytest.raises(LobeError, match="nobody"):
        logits(bank, Mix.of({"nobody": 1.0}), tiny.numbers(1, 4))
    bank.unregister("nobody")  # nothing to forget
    assert bank.lobes == ("plain", "attention", "patterns") and "nobody" not in bank and "plain" in bank


def test_registering_again_replaces(bank: LobeBank, adapters: dict[str, Path]) -> None:
    ids = tiny.numbers(1, 8)
    first, second = (logits(bank, Mix.of({lobe: 1.0}), ids) for lobe in ("plain", "attention"))
    logits(bank, Mix.of({"plain": 1.0, "patterns": 1.0}), ids)
    bank.register("plain", adapters["attention"])
    assert torch.equal(logits(bank, Mix.of({"plain": 1.0}), ids), second)
    bank.register("plain", adapters["plain"])
    assert torch.equal(logits(bank, Mix.of({"plain": 1.0}), ids), first)


def test_a_refused_adapter_does_not_replace_a_good_one(bank: LobeBank, tmp_path: Path) -> None:
    before = logits(bank, Mix.of({"plain": 1.0}), tiny.numbers(1, 8))
    with pytest.raises(AdapterError):
        bank.register("plain", tmp_path)
    assert torch.equal(logits(bank, Mix.of({"plain": 1.0}), tiny.numbers(1, 8)), before)


def test_files_that_vanish_matter_only_when_they_are_read(
    backbone: Backbone, adapters: dict[str, Path], tmp_path: Path
) -> None:
    bank, ids = LobeBank(backbone), tiny.numbers(1, 8)
    for name in ("read", "unread"):
        shutil.copytree(adapters["plain"], tmp_path / name)
        bank.register(name, tmp_path / name)
    before = logits(bank, Mix.of({"read": 1.0}), ids)
    shutil.rmtree(tmp_path / "read")
    shutil.rmtree(tmp_path / "unread")
    assert torch.equal(logits(bank, Mix.of({"read": 1.0}), ids), before)
    with pytest.raises(AdapterError, match="unread"):
        logits(bank, Mix.of({"unread": 1.0}), ids)


def test_weights_that_do_not_name_each_lobe_are_refused() -> None:
    for shape in ((2,), (3, 2), (1, 1, 1, 1, 1), ()):
        with pytest.raises(ValueError, match="weights have shape"):
            Mix(("a",), torch.ones(shape))


def test_mixes_from_plain_weights() -> None:
    mix = Mix.rows([{"a": 0.25}, {}, {"b": 1.0, "a": 0.5}])
    assert mix.lobes == ("a", "b") and mix.weights.tolist() == [[0.25, 0.0], [0.0, 0.0], [0.5, 1.0]]
    assert Mix.of({"b": 0.0, "a": 2.0}).active().lobes == ("a",)
    assert Mix.rows([{}, {}]).weights.shape == (2, 0)


# ---- memory ----------------------------------------------------------------------------------------------------------------


def test_within_a_budget_the_oldest_lobes_leave_and_come_back_the_same(
    backbone: Backbone, bank: LobeBank, adapters: dict[str, Path]
) -> None:
    ids = tiny.numbers(2, 8)
    mixture = Mix.of(dict.fromkeys(adapters, 0.5))
    alone = {lobe: logits(bank, Mix.of({lobe: 1.0}), ids) for lobe in adapters}
    mixed = logits(bank, mixture, ids)
    size = {lobe: bank.register(lobe, path).nbytes for lobe, path in adapters.items()}

    small = LobeBank(backbone, budget_bytes=size["plain"] + size["patterns"])
    for lobe, path in adapters.items():
        small.register(lobe, path)
    for lobe in random.Random(0).choices(list(adapters), k=12):
        assert torch.equal(logits(small, Mix.of({lobe: 1.0}), ids), alone[lobe])
        assert small.memory.resident_bytes <= size["plain"] + size["patterns"] and small.memory.resident[-1] == lobe
    assert torch.equal(logits(small, mixture, ids), mixed)  # larger than the budget
    small.memory.budget_bytes = 1
    small.unregister("attention")
    small.register("attention", adapters["attention"])
    logits(small, Mix.of({"attention": 1.0}), ids)
    assert small.memory.resident == ("attention",)


def test_a_mixture_over_the_budget_is_read_once(bank: LobeBank) -> None:
    bank.memory.budget_bytes = 1
    mix = Mix.of({"plain": 0.5, "patterns": 0.5})
    logits(bank, mix, tiny.numbers(1, 8))
    first = bank.memory.matrices("plain"), bank.memory.matrices("patterns")
    logits(bank, mix, tiny.numbers(1, 8))
    assert bank.memory.matrices("patterns") is first[1]


def test_unregistering_gives_all_memory_back(bank: LobeBank) -> None:
    ids = tiny.numbers(2, 8)
    for mix in (
        Mix.of({"plain": 1.0}),
        Mix.of({"plain": 0.5, "patterns": 0.5}),
        Mix.rows([{"plain": 1.0}, {"patterns": 1.0}]),
    ):
        logits(bank, mix, ids)
    tensors = [weakref.ref(t) for lobe in ("plain", "patterns") for pair in bank.memory.matrices(lobe).values() for t in pair]
    assert bank.memory.resident_bytes > 0 and all(t() is not None for t in tensors)
    bank.unregister("plain")
    bank.unregister("patterns")
    gc.collect()
    assert bank.memory.resident_bytes == 0 and all(t() is None for t in tensors)


def test_stacks_of_old_mixtures_are_forgotten(bank: LobeBank) -> None:
    ids, lobes = tiny.numbers(1, 4), ("plain", "attention", "patterns")
    own = sum(bank.register(lobe, bank._headers[lobe].path).nbytes for lobe in lobes)
    for copy in range(6):
        bank.register(f"copy {copy}", bank._headers["plain"].path)
        own += bank._headers["plain"].nbytes
    for mixture in itertools.permutations(bank.lobes, 2):
        logits(bank, Mix.of(dict.fromkeys(mixture, 0.5)), ids)
    most = 2 * max(header.nbytes for header in bank._headers.values())
    assert own < bank.memory.resident_bytes <= own + PLANS_KEPT * most


# ---- gradients -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3), (2, 6, 3)])
def test_gradients_reach_the_weights_also_after_chat_has_read_the_lobes(
    backbone: Backbone, bank: LobeBank, adapters: dict[str, Path], shape: tuple[int, ...]
) -> None:
    ids, lobes = tiny.numbers(2, 6), tuple(adapters)
    with torch.inference_mode():
        bank.run(Mix.rows([dict.fromkeys(lobes, 1.0), {}]), input_ids=ids)
        bank.run(Mix.rows([{"plain": 1.0}, {"attention": 1.0}]), input_ids=ids)
    weights = torch.full(shape, 0.3, requires_grad=True)
    (ours,) = torch.autograd.grad(bank.run(Mix(lobes, weights), input_ids=ids).logits.square().mean(), weights)
    spread = weights if weights.ndim == 3 else weights[:, None, :].expand(2, 6, 3)
    reference = tiny.steered(backbone.model, [tiny.deltas(backbone.model, adapters[lobe]) for lobe in lobes], spread)
    (theirs,) = torch.autograd.grad(reference(ids).logits.square().mean(), weights)
    torch.testing.assert_close(ours, theirs, **EXACT)
    assert ours.abs().min() > 1e-6


def test_gradients_pass_through_lobes_to_the_inputs(
    backbone: Backbone, bank: LobeBank, adapters: dict[str, Path]
) -> None:
    rows = [{"plain": 1.0}, {"patterns": 1.0}]
    with torch.inference_mode():
        bank.run(Mix.rows(rows), input_ids=tiny.numbers(2, 6))
    inputs = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (ours,) = torch.autograd.grad(bank.run(Mix.rows(rows), inputs_embeds=inputs).logits.square().mean(), inputs)
    for i, lobe in enumerate(("plain", "patterns")):
        reference = tiny.with_peft(backbone.model, adapters[lobe])
        (theirs,) = torch.autograd.grad(reference(inputs_embeds=inputs[i : i + 1]).logits.square().mean() / 2, inputs)
        torch.testing.assert_close(ours[i], theirs[i], **EXACT)


# ---- other dtypes and layers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_float32_lobes_on_a_half_precision_base(
    base_folder: Callable[..., Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    backbone = Backbone.from_pretrained(base_folder("llama"), device="cpu", dtype=dtype)
    ids, bank = tiny.numbers(2, 12), LobeBank(backbone)
    tiny.save_adapter(backbone.model, tmp_path / "one", seed=1, size=0.1)
    bank.register("one", tmp_path / "one")
    bank.register("two", tiny.save_adapter(backbone.model, tmp_path / "two", seed=2, size=0.1, r=2))
    ours, theirs = logits(bank, Mix.of({"one": 1.0}), ids), tiny.with_peft(backbone.model, tmp_path / "one")(ids).logits
    base = logits(bank, None, ids)
    assert ours.dtype == base.dtype == dtype and torch.equal(base, backbone.model(ids).logits)
    unit = torch.finfo(dtype).eps * theirs.abs().max()  # what one rounding of the largest logit may change
    assert (ours - theirs).abs().max() <= 2 * unit < (ours - base).abs().max() / 4
    by_row = logits(bank, Mix.rows([{"one": 1.0}, {"two": 1.0}]), ids)
    assert by_row.dtype == dtype and (by_row[0] - theirs[0]).abs().max() <= 2 * unit


class Int8Linear(nn.Module):
    """What quantisers put in a linear layer's place: integers, scales, and the same two attributes."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scales = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight.detach() / scales).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scales", scales)

    def dense(self) -> Tensor:
        return self.weight.float() * self.scales

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dense())


@torch.no_grad()
def test_lobes_on_quantised_layers(base_folder: Callable[..., Path], adapters: dict[str, Path]) -> None:
    backbone = Backbone.from_pretrained(base_folder("llama"), device="cpu")
    rounded = {}
    for name, module in list(backbone.model.model.named_modules()):
        if isinstance(module, nn.Linear):
            parent, leaf = name.rsplit(".", 1)
            setattr(backbone.model.model.get_submodule(parent), leaf, quantised := Int8Linear(module))
            rounded[f"model.{name}.weight"] = quantised.dense()
    plain = Backbone.from_pretrained(base_folder("llama"), device="cpu")  # the same numbers in ordinary layers
    plain.model.load_state_dict(rounded, strict=False)
    bank, ids = LobeBank(backbone), tiny.numbers(2, 9)
    for lobe, path in adapters.items():
        bank.register(lobe, path)
    deltas = {lobe: tiny.deltas(plain.model, path) for lobe, path in adapters.items()}
    weights = {"plain": 0.7, "patterns": 0.4}
    reference = tiny.merged(plain.model, [(deltas[lobe], w) for lobe, w in weights.items()])
    torch.testing.assert_close(logits(bank, Mix.of(weights), ids), reference(ids).logits, **EXACT)
    by_row = logits(bank, Mix.rows([{"attention": 1.0}, {"plain": 1.0}]), ids)
    torch.testing.assert_close(by_row[1], tiny.merged(plain.model, [(deltas["plain"], 1.0)])(ids).logits[1], **EXACT)


@pytest.fixture(params=["llama", "llama-tied"])
def headed(
    request: pytest.FixtureRequest, base_folder: Callable[..., Path], tmp_path: Path
) -> Iterator[tuple[Backbone, LobeBank, Path]]:
    backbone = Backbone.from_pretrained(base_folder(request.param), device="cpu")
    path = tiny.save_adapter(backbone.model, tmp_path / "head", target_modules=["lm_head", "q_proj"])
    bank = LobeBank(backbone)
    bank.register("head", path)
    yield backbone, bank, path


@torch.no_grad()
def test_a_lobe_on_the_output_head(headed: tuple[Backbone, LobeBank, Path]) -> None:
    backbone, bank, path = headed
    ids = tiny.numbers(2, 9)
    theirs = tiny.with_peft(backbone.model, path)(ids).logits
    torch.testing.assert_close(logits(bank, Mix.of({"head": 1.0}), ids), theirs, **EXACT)
    assert torch.equal(logits(bank, None, ids), backbone.model(ids).logits)


@pytest.mark.parametrize("kept", [1, 3, 0, torch.tensor([2, 5])])
@pytest.mark.parametrize("shape", [(1,), (2, 1), (2, 9, 1), (2, 9, 2, 1)])
@torch.no_grad()
def test_an_output_head_that_runs_on_some_tokens(
    headed: tuple[Backbone, LobeBank, Path], kept: int | Tensor, shape: tuple[int, ...]
) -> None:
    _, bank, _ = headed
    layers = len(bank._headers["head"].shapes)
    shape = (*shape[:2], layers, 1) if len(shape) == 4 else shape
    mix = Mix(("head",), torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    ids = tiny.numbers(2, 9)
    whole, some = logits(bank, mix, ids), bank.run(mix, input_ids=ids, logits_to_keep=kept).logits
    torch.testing.assert_close(some, whole[:, -kept:] if isinstance(kept, int) else whole[:, kept], **EXACT)
