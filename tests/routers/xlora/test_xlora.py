"""X-LoRA: PEFT's maths to the last digits, a head that learns to tell lobes apart, and a router that comes back as it was."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from peft import XLoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from multilobe_ui.assets import folder
from multilobe_ui.base.backbone import Backbone
from multilobe_ui.errors import ConfigError, RoutingError
from multilobe_ui.generation.decode import Request, generate_text, generate_tokens
from multilobe_ui.lobes.bank import LobeBank
from multilobe_ui.lobes.mixers import runner
from multilobe_ui.lobes.weights import Mix
from multilobe_ui.model import MultiLobeModel
from multilobe_ui.progress import Progress
from multilobe_ui.routers import RoutingRows
from multilobe_ui.routers.xlora.mixer import HeadShape, Reading, ScalingHead, XLoraMixer, last_hidden
from multilobe_ui.routers.xlora.router import XLoraRouter
from multilobe_ui.routers.xlora.rows import LabelledRow
from multilobe_ui.routers.xlora.training import HeadFit, train_head
from multilobe_ui.routing.decision import Mixing
from multilobe_ui.routing.router import BankContext, FitOutcome, State
from multilobe_ui.settings import SamplingConfig, XLoraSettings

EXACT = {"atol": 2e-5, "rtol": 1e-4}
QUICK = XLoraSettings(supervised_steps=60, language_steps=12, batch_size=4, rows_per_lobe=24)


# ---- PEFT ------------------------------------------------------------------------------------------------------------------


def peft_xlora(model: nn.Module, adapters: Sequence[Path], **options: Any) -> Any:
    copied = copy.deepcopy(model)
    copied.config.use_cache = False
    names = {str(i): str(path) for i, path in enumerate(adapters)}
    config = XLoraConfig(task_type="CAUSAL_LM", hidden_size=model.config.hidden_size, adapters=names, **options)
    return get_peft_model(copied, config).eval()


def same_head(theirs: Any, shape: HeadShape, lobes: int, layers: int, seed: int = 0) -> ScalingHead:
    """A head of random numbers, and PEFT's classifier with the same."""
    torch.manual_seed(seed)
    linear = [m for m in theirs.base_model.internal_xlora_classifier.layers if isinstance(m, nn.Linear)]
    head = ScalingHead(linear[0].in_features, lobes, layers, shape).eval()
    ours = [m for m in (*head.inner, head.last) if isinstance(m, nn.Linear)]
    with torch.no_grad():
        for mine, other in zip(ours, linear, strict=True):
            mine.weight.normal_(0, 0.4)
            mine.bias.normal_(0, 0.4)
            other.weight.copy_(mine.weight)
            other.bias.copy_(mine.bias)
    return head


PEFT_CASES = {
    "dense": ({}, {"layerwise": False}),
    "layerwise": ({"layerwise_scalings": True}, {}),
    "temperature": ({"layerwise_scalings": True, "softmax_temperature": 0.3}, {"temperature": 0.3}),
    "deep": (
        {"xlora_depth": 3, "xlora_size": 12, "xlora_dropout_p": 0.0, "layerwise_scalings": True},
        {"depth": 3, "size": 12},
    ),
    "top-k of softmax": ({"layerwise_scalings": True, "top_k_lora": 2}, {"top_k": 2}),
    "softmax of top-k": (
        {"enable_softmax": False, "enable_softmax_topk": True, "top_k_lora": 2, "layerwise_scalings": True},
        {"softmax": False, "softmax_topk": True, "top_k": 2},
    ),
    "no softmax": (
        {"enable_softmax": False, "global_scaling_weight": 0.7},
        {"softmax": False, "scale": 0.7, "layerwise": False},
    ),
}


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("case", PEFT_CASES)
@torch.no_grad()
def test_logits_are_those_of_peft(
    base_folder: Callable[..., Path], tmp_path: Path, architecture: str, case: str
) -> None:
    backbone = Backbone.from_pretrained(base_folder(architecture), device="cpu")
    bank = LobeBank(backbone)
    folders = []
    for i, rank in enumerate((4, 2, 6)):
        folders.append(tiny.save_adapter(backbone.model, tmp_path / f"{i}", seed=i, r=rank, lora_alpha=7))
        bank.register(f"lobe{i}", folders[-1])
    options, shape = PEFT_CASES[case]
    theirs = peft_xlora(backbone.model, folders, **options)
    head = same_head(theirs, HeadShape(**shape), 3, len(bank.layers(bank.lobes)))
    ids = tiny.numbers(2, 11)
    ours = runner(bank, XLoraMixer(head, bank.lobes))(input_ids=ids, use_cache=False).logits
    expected = theirs(input_ids=ids, use_cache=False).logits
    base = backbone.model(input_ids=ids).logits
    assert (expected - base).abs().max() > 0.05
    torch.testing.assert_close(ours, expected, **EXACT)


@torch.no_grad()
def test_lobes_on_other_layers_are_weighed_as_by_peft(backbone: Backbone, adapters: dict[str, Path]) -> None:
    bank = LobeBank(backbone)
    for name, path in adapters.items():
        bank.register(name, path)
    theirs = peft_xlora(backbone.model, list(adapters.values()), layerwise_scalings=True)
    head = same_head(theirs, HeadShape(), 3, len(bank.layers(bank.lobes)))
    ids = tiny.numbers(2, 9)
    ours = runner(bank, XLoraMixer(head, bank.lobes))(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(ours, theirs(input_ids=ids, use_cache=False).logits, **EXACT)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "opt", "falcon-alibi", "bloom", "gemma2"])
@torch.no_grad()
def test_architectures_that_peft_cannot_load_are_weighed_layer_by_layer(
    base_folder: Callable[..., Path], tmp_path: Path, architecture: str
) -> None:
    """The reference reads hidden states from transformers and adds every delta by a hook."""
    backbone = Backbone.from_pretrained(base_folder(architecture), device="cpu")
    bank = LobeBank(backbone)
    deltas = []
    for i in range(2):
        folder = tiny.save_adapter(backbone.model, tmp_path / f"{i}", seed=i, r=2 + i)
        deltas.append(tiny.deltas(backbone.model, folder))
        bank.register(f"lobe{i}", folder)
    torch.manual_seed(0)
    head = ScalingHead(32, 2, len(bank.layers(bank.lobes))).eval()
    head.last.weight.normal_(0, 0.4)
    ids = tiny.numbers(2, 9)
    hidden = backbone.model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    weights = torch.softmax((hidden @ head.last.weight.t() + head.last.bias).view(2, 9, -1, 2), -1)
    expected = tiny.steered(backbone.model, deltas, weights)(input_ids=ids).logits
    ours = runner(bank, XLoraMixer(head, bank.lobes))(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)
    prompt = ids[0, :5].tolist()
    tokens = list(prompt)
    for _ in range(6):
        output = runner(bank, XLoraMixer(head, bank.lobes))(input_ids=torch.tensor([tokens]), use_cache=False)
        tokens.append(int(output.logits[0, -1].argmax()))
    request = Request(prompt, {}, SamplingConfig(6, do_sample=False), mixer=XLoraMixer(head, bank.lobes))
    made = [token for (token,) in generate_tokens(bank, [request]) if token is not None]
    assert made == tokens[5 : 5 + len(made)] and len(made) >= 1


# ---- the head --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"depth": 0}, "depth"),
        ({"size": 0}, "size"),
        ({"dropout": 1.0}, "dropout"),
        ({"temperature": 0.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"reads": "words"}, "reads is 'words'"),
        ({"softmax_topk": True, "top_k": 1}, "softmax_topk"),
        ({"softmax": False, "softmax_topk": True}, "top_k"),
    ],
)
def test_shapes_out_of_range_are_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        HeadShape(**values)


def test_settings_out_of_range_are_named() -> None:
    for name, value in {"granularity": "layer", "rows_per_lobe": 1, "label_weight": 2, "seed": -1}.items():
        with pytest.raises(ConfigError, match=name):
            XLoraSettings(**{name: value})


@torch.no_grad()
def test_the_k_best_of_a_dense_head_keep_their_proportions() -> None:
    torch.manual_seed(0)
    head = ScalingHead(6, 4, 3, HeadShape(temperature=0.5)).eval()
    hidden = torch.randn(2, 5, 6)
    dense, sparse = head(hidden), head(hidden, 2)
    kept = dense * (dense >= dense.topk(2).values[..., -1:])
    torch.testing.assert_close(sparse, kept / kept.sum(-1, keepdim=True))
    assert head(hidden, 9).equal(dense) and (head(hidden, 1).max(-1).values == 1).all()
    assert (sparse > 0).sum(-1).eq(2).all()


@torch.no_grad()
def test_means_over_a_text_do_not_look_ahead_nor_at_padding() -> None:
    hidden = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    whole = Reading("sequence")(hidden, mask)
    for row, first in ((0, 2), (1, 0)):
        for t in range(first, 7):
            torch.testing.assert_close(whole[row, t], hidden[row, first : t + 1].mean(0))
    given = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0]]).bool()
    prompt = Reading("sequence")(hidden, mask, given=given)
    torch.testing.assert_close(prompt[0, 2:5], hidden[0, 2:5].mean(0).expand(3, -1))
    torch.testing.assert_close(prompt[1, :2], hidden[1, :2].mean(0).expand(2, -1))
    assert prompt[~given].equal(whole[~given])
    steps = Reading("sequence")
    parts = [steps(hidden[:, :4], mask[:, :4]), *(steps(hidden[:, t : t + 1], mask[:, : t + 1]) for t in (4, 5, 6))]
    torch.testing.assert_close(torch.cat(parts, 1)[:, 2:], whole[:, 2:])
    assert Reading("both")(hidden).shape == (2, 7, 8) and Reading("token")(hidden) is hidden


@torch.no_grad()
def test_the_scaling_pass_is_the_plain_base(bank: LobeBank) -> None:
    ids = tiny.numbers(2, 6)
    hidden = last_hidden(bank.backbone, None, input_ids=ids)
    expected = bank.backbone.model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(hidden, expected)


def test_a_head_for_other_lobes_is_refused(bank: LobeBank, adapters: dict[str, Path]) -> None:
    with pytest.raises(RoutingError, match="2 lobes, not 3"):
        XLoraMixer(ScalingHead(32, 2, 1), ("a", "b", "c"))
    head = ScalingHead(32, 1, 14)
    mixer = XLoraMixer(head, ("maths",))
    runner(bank, mixer)(input_ids=tiny.numbers(1, 3))
    bank.register("maths", adapters["attention"])
    with pytest.raises(RoutingError, match="made for 14 layers"):
        runner(bank, mixer)(input_ids=tiny.numbers(1, 3))


# ---- training --------------------------------------------------------------------------------------------------------------

TOPICS = {"maths": "add(1, 2)", "cats": "the cat sat on the mat", "lobes": "What is a lobe?"}


def rows(count: int, start: int = 0) -> list[LabelledRow]:
    """Three topics that a random model's hidden states can tell apart by their words."""
    words = [text.split() for text in TOPICS.values()]
    made = []
    for i in range(start, start + count):
        random = np.random.default_rng(i)
        for lobe, own in enumerate(words):
            made.append(LabelledRow(lobe, " ".join(random.choice(own, 5)), " ".join(random.choice(own, 3))))
    return made


@pytest.fixture
def bank(backbone: Backbone, tmp_path: Path) -> LobeBank:
    made = LobeBank(backbone)
    for i, topic in enumerate(TOPICS):
        made.register(topic, tiny.save_adapter(backbone.model, tmp_path / topic, seed=i, size=0.1))
    return made


def trained(bank: LobeBank, settings: XLoraSettings = QUICK, **more: Any) -> tuple[HeadFit, list[Progress]]:
    records = []
    run = train_head(bank, tuple(TOPICS), rows(24), rows(6, 100), settings, **more)
    while True:
        try:
            records.append(next(run))
        except StopIteration as end:
            return end.value, records


@pytest.fixture(scope="session")
def shared_fit(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> tuple[HeadFit, list[Progress]]:
    bank, folder = LobeBank(backbone), tmp_path_factory.mktemp("topics")
    for i, topic in enumerate(TOPICS):
        bank.register(topic, tiny.save_adapter(backbone.model, folder / topic, seed=i, size=0.1))
    return trained(bank)


def test_the_head_tells_the_lobes_apart_and_lowers_the_loss(
    bank: LobeBank, shared_fit: tuple[HeadFit, list[Progress]]
) -> None:
    fit, records = shared_fit
    assert fit.accuracy is not None and fit.accuracy >= 0.9 and not fit.stopped
    losses = [r.values["held_out_loss"] for r in records if "held_out_loss" in r.values]
    assert fit.loss is not None and fit.loss <= min(losses) + 1e-4 and 0.8 <= fit.head.shape.scale <= 1
    labels = [r.values["held_out_label_loss"] for r in records if "held_out_label_loss" in r.values]
    assert labels[-1] < labels[0] < 1.2
    assert {r.steps for r in records} == {72} and records[-1].step == 71
    assert all(np.isfinite(list(r.values.values())).all() for r in records)
    assert not any(p.requires_grad for p in bank.model.parameters())


def test_the_reported_loss_is_that_of_the_mixer(bank: LobeBank, shared_fit: tuple[HeadFit, list[Progress]]) -> None:
    fit, _ = shared_fit
    total = own = count = 0.0
    for row in rows(6, 100):
        prompt = bank.backbone.encode_chat([{"role": "user", "content": row.prompt}])
        answer = bank.backbone.encode_answer(row.answer)
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            given = torch.arange(ids.shape[1])[None] < len(prompt)
            mixed = runner(bank, XLoraMixer(fit.head, tuple(TOPICS)))(input_ids=ids, given=given).logits
            alone = bank.run(Mix.of({list(TOPICS)[row.lobe]: 1.0}), input_ids=ids).logits
        for name, logits in (("mixed", mixed), ("own", alone)):
            nll = nn.functional.cross_entropy(logits[0, len(prompt) - 1 : -1], ids[0, len(prompt) :], reduction="sum")
            total, own = (total + float(nll), own) if name == "mixed" else (total, own + float(nll))
        count += len(answer)
    assert fit.loss == pytest.approx(total / count, abs=1e-4) and fit.own_loss == pytest.approx(own / count, abs=1e-4)


def test_a_seed_gives_one_head_and_leaves_the_others_random_numbers_alone(bank: LobeBank) -> None:
    settings = XLoraSettings(supervised_steps=20, language_steps=3, rows_per_lobe=8, batch_size=2, depth=2, size=6)
    torch.manual_seed(5)
    first, _ = trained(bank, settings)
    after = torch.rand(1)
    second, _ = trained(bank, settings)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    ours, theirs = first.head.state_dict(), second.head.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("granularity", ["token", "sequence"])
def test_other_granularities_learn_too(bank: LobeBank, granularity: str) -> None:
    settings = XLoraSettings(
        granularity=granularity, layerwise=False, top_k=2, supervised_steps=60, language_steps=2, rows_per_lobe=16
    )
    fit, _ = trained(bank, settings)
    assert fit.accuracy is not None and fit.accuracy >= 0.7
    assert fit.head.shape.reads == granularity and fit.head.shape.top_k == 2


def test_rows_without_answers_teach_the_lobes_alone(bank: LobeBank) -> None:
    silent = [LabelledRow(row.lobe, row.prompt) for row in rows(16)]
    run = train_head(bank, tuple(TOPICS), silent, silent[:9], QUICK)
    records = []
    with pytest.raises(StopIteration) as end:
        while True:
            records.append(next(run))
    assert end.value.value.loss is None and end.value.value.accuracy >= 0.7
    assert records[-1].steps == QUICK.supervised_steps


def test_a_single_lobe_needs_no_training(bank: LobeBank) -> None:
    run = train_head(bank, ("maths",), [LabelledRow(0, "add", "3")], [], QUICK)
    with pytest.raises(StopIteration) as end:
        while True:
            next(run)
    with torch.no_grad():
        assert (end.value.value.head(torch.randn(1, 2, 64)) == 1).all()


def test_a_fit_that_is_stopped_keeps_what_it_learned(bank: LobeBank) -> None:
    stop, seen = threading.Event(), []
    run = train_head(bank, tuple(TOPICS), rows(24), rows(6, 100), QUICK, stop)
    with pytest.raises(StopIteration) as end:
        while True:
            seen.append(next(run))
            if "accuracy" in seen[-1].values and seen[-1].step >= 39:
                stop.set()
    fit = end.value.value
    assert fit.stopped and fit.accuracy == pytest.approx(max(r.values.get("accuracy", 0) for r in seen), abs=0.2)
    assert seen[-1].step < 50


def test_a_fit_that_is_stopped_at_once_is_none(bank: LobeBank) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(RoutingError, match="stopped before"):
        trained(bank, stop=stop)
    with pytest.raises(RoutingError, match="nothing to learn"):
        next(train_head(bank, (), [], [], QUICK))


# ---- the router ------------------------------------------------------------------------------------------------------------


def context(bank: LobeBank | None, names: Sequence[str] = tuple(TOPICS), generic: int = 0) -> BankContext:
    none = np.zeros((0, 0), np.float32)
    own, held = rows(24), rows(6, 100)
    known = {}
    for i, name in enumerate(TOPICS):
        train = [(r.prompt, r.answer) for r in own if r.lobe == i]
        validation = [(r.prompt, r.answer) for r in held if r.lobe == i]
        (asked, answered), (asked_held, answered_held) = (zip(*pairs, strict=True) for pairs in (train, validation))
        known[name] = RoutingRows(none, none, none, asked, asked_held, answered, answered_held)
    return BankContext(
        list(names),
        {name: known[name] for name in names if name in known},
        embed=lambda texts: none,
        nll=lambda texts, lobes: none,
        generic_prompts=[f"{i} zzz größer 中文字 {i * 7}" for i in range(generic)],
        bank=bank,
        ids={name: name for name in names},
    )


FAST = {"supervised_steps": 60, "language_steps": 4, "rows_per_lobe": 24, "batch_size": 4}


def fit(router: XLoraRouter, **settings: Any) -> tuple[FitOutcome, list[Progress]]:
    records, run = [], router.learn({**FAST, **settings}, threading.Event())
    while True:
        try:
            records.append(next(run))
        except StopIteration as end:
            return end.value, records


@pytest.fixture
def router(bank: LobeBank) -> XLoraRouter:
    made = XLoraRouter(context(bank, generic=40))
    fit(made)
    return made


def test_prompts_get_their_own_lobe(router: XLoraRouter) -> None:
    decisions = [(router.route(row.prompt), list(TOPICS)[row.lobe]) for row in rows(10, 300)]
    chosen = [d for d, _ in decisions if not d.abstained]
    assert np.mean([d.chosen == label for d, label in decisions]) >= 0.8 and len(chosen) >= 25
    for decision in chosen:
        assert decision.per_token and decision.chosen == max(decision.weights, key=decision.weights.__getitem__)
        assert sum(decision.weights.values()) == pytest.approx(1, abs=1e-5)
        assert sum(decision.probabilities.values()) == pytest.approx(1 - decision.evidence["none"], abs=1e-4)
        json.dumps(decision.to_json())


def test_the_decision_is_the_mean_of_what_the_answer_is_written_with(router: XLoraRouter, bank: LobeBank) -> None:
    prompt = "the cat sat"
    run = router.mixer(Mixing("soft")).start()
    ids = torch.tensor([bank.backbone.encode_chat([{"role": "user", "content": prompt}])])
    run(bank, input_ids=ids, use_cache=True)
    opening, words = bank.backbone.encode_prompt(prompt)
    mean = run.weights[0, len(opening) : len(opening) + len(words)].mean((0, 1))
    decision = router.decide(prompt)
    np.testing.assert_allclose([decision.scores[name] for name in TOPICS], mean.numpy(), atol=1e-5)
    assert "".join(t["text"] for t in decision.evidence["tokens"]) == prompt


def test_strange_prompts_go_to_the_base(router: XLoraRouter) -> None:
    strange = [router.route(f"{i} zzz größer 中文字") for i in range(200, 220)]
    assert np.mean([d.abstained for d in strange]) >= 0.7
    assert all(d.weights == {} and not d.per_token for d in strange if d.abstained)


def test_what_was_measured_is_reported(bank: LobeBank) -> None:
    outcome, records = fit(XLoraRouter(context(bank, generic=40)))
    report = outcome.report
    assert report["accuracy"] > 0.7 and report["mixture_loss"] > 0 and report["own_lobe_loss"] > 0
    assert report["false_abstention"] <= 0.12 and report["everyday_prompts_abstained"] >= 0.7
    assert report["rows"] == 72 and report["held_out_rows"] == 18
    json.dumps(report)
    assert {r.phase for r in records} == {
        "Reading the rows",
        "Learning which lobe a token belongs to",
        "Learning to answer with them",
    }


def without_held_out(found: BankContext) -> BankContext:
    """The same lobes as if they had held nothing out."""
    none: dict[str, Any] = {"validation_prompts": (), "validation_answers": ()}
    return replace(found, rows={name: replace(own, **none) for name, own in found.rows.items()})


def test_where_lobes_held_nothing_out_every_fifth_row_is_kept_from_the_head(bank: LobeBank) -> None:
    router = XLoraRouter(without_held_out(context(bank, generic=40)))
    report = fit(router)[0].report
    assert (report["rows"], report["held_out_rows"], report["known_to_lobes"]) == (60, 12, 12)
    assert report["accuracy"] > 0.7 and report["own_lobe_loss"] > 0
    train, held_out = router._labelled(list(TOPICS))
    asked, owner = router._unseen(list(TOPICS))  # what it is calibrated on
    assert asked == [row.prompt for row in held_out] and owner == [row.lobe for row in held_out]
    assert len(train) == 60
    assert fit(XLoraRouter(context(bank)))[0].report["known_to_lobes"] == 0


def test_lobes_with_too_few_rows_to_keep_any_are_calibrated_on_all(bank: LobeBank) -> None:
    found = without_held_out(context(bank))
    few = {
        name: replace(own, train_prompts=own.train_prompts[:3], train_answers=own.train_answers[:3])
        for name, own in found.rows.items()
    }
    router = XLoraRouter(replace(found, rows=few))
    assert router._unseen(list(TOPICS))[1] == [i for i in range(len(TOPICS)) for _ in range(3)]
    report = fit(router)[0].report
    assert (report["rows"], report["held_out_rows"], report["known_to_lobes"]) == (3 * len(TOPICS), 0, 0)
    assert router.route(few[next(iter(TOPICS))].train_prompts[0]).router == "xlora"


def reload(router: XLoraRouter, other: BankContext) -> XLoraRouter:
    """Through what survives on disk: JSON, and arrays on their own."""
    state = router.state()
    arrays = {key: value for key, value in state.items() if isinstance(value, np.ndarray)}
    assert all(a.dtype == np.float32 for a in arrays.values())
    plain = json.loads(json.dumps({key: value for key, value in state.items() if key not in arrays}))
    made = XLoraRouter(other)
    made.adapt(State({**plain, **arrays}))
    return made


@torch.no_grad()
def logits(router: XLoraRouter, bank: LobeBank, mode: str = "soft") -> Tensor:
    return runner(bank, router.mixer(Mixing(mode)))(input_ids=tiny.numbers(2, 9)).logits


def test_a_reloaded_router_is_the_same_to_the_last_bit(router: XLoraRouter, bank: LobeBank) -> None:
    other = reload(router, context(bank, generic=40))
    for mode in ("soft", "top_1", "top_k"):
        assert torch.equal(logits(other, bank, mode), logits(router, bank, mode))
    for row in rows(3, 400):
        ours, theirs = router.route(row.prompt).to_json(), other.route(row.prompt).to_json()
        assert {**ours, "elapsed_ms": 0} == {**theirs, "elapsed_ms": 0}
    answers = [
        generate_text(
            bank, [Request([8, 9, 10], {}, SamplingConfig(8, do_sample=False), mixer=r.mixer(Mixing("top_k", 2)))]
        )
        for r in (router, other)
    ]
    assert answers[0] == answers[1]


def test_lobes_that_went_lose_their_weight_and_lobes_that_came_have_none(
    router: XLoraRouter, bank: LobeBank, adapters: dict[str, Path]
) -> None:
    bank.register("new", adapters["plain"])
    other = reload(router, context(bank, ("lobes", "new", "maths")))
    decision = other.route("the cat sat on the mat")
    assert set(decision.scores) == {"maths", "lobes"} and decision.probabilities["new"] == 0
    assert "not learned new" in decision.reason
    assert other.mixer(Mixing("soft")).lobes == ("maths", "lobes")
    full, fewer = router.mixer(Mixing("soft")), other.mixer(Mixing("soft"))
    hidden = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0))
    kept = full.head.logits(hidden)[..., [0, 2]]
    torch.testing.assert_close(fewer.head.logits(hidden), kept, atol=1e-6, rtol=1e-6)
    with pytest.raises(RoutingError, match="gone"):
        reload(router, context(bank, ("new",)))


def test_layers_that_only_a_gone_lobe_had_are_dropped(backbone: Backbone, adapters: dict[str, Path]) -> None:
    bank = LobeBank(backbone)
    for topic, adapter in zip(TOPICS, ("plain", "attention", "attention"), strict=True):
        bank.register(topic, adapters[adapter])
    router = XLoraRouter(context(bank))
    fit(router)
    other = reload(router, context(bank, ("cats", "lobes")))
    assert other.mixer(Mixing()).head.n_layers == len(bank.layers(["cats"])) < len(bank.layers(["maths"]))
    generate_text(bank, [Request([8, 9], {}, SamplingConfig(4, do_sample=False), mixer=other.mixer(Mixing()))])
    bank.register("cats", adapters["plain"])
    bank.unregister("maths")
    reload(router, context(bank, ("cats", "lobes")))
    state = router.state()
    router = XLoraRouter(context(bank, ("cats", "lobes")))
    for damage, message in (
        ({"version": 9}, "version 9"),
        ({"layers": state["layers"][:1]}, "other layers"),
        ({"head.last.weight": state["head.last.weight"][:3]}, "damaged"),
    ):
        with pytest.raises(RoutingError, match=message):
            router.adapt(State({**state, **damage}))
    assert not router.is_fitted


@pytest.mark.parametrize("names", [(), ("maths",), tuple(TOPICS)])
def test_without_a_fit_the_base_answers_and_says_why(names: tuple[str, ...], bank: LobeBank) -> None:
    for found in (None, bank):
        router = XLoraRouter(context(found, names))
        decision = router.route("the cat")
        assert not router.is_fitted and decision.weights == {} and decision.chosen is None
        assert not names or (decision.stage == "not fitted" and "fit it under Routers" in decision.reason)
        with pytest.raises(RoutingError, match="not been trained"):
            router.mixer(Mixing())
        assert router.state() == {}
    router = XLoraRouter(context(None, names))
    with pytest.raises(RoutingError, match="none is loaded"):
        next(router.learn({}, threading.Event()))


def test_a_setting_that_does_not_exist_is_named(bank: LobeBank) -> None:
    with pytest.raises(ConfigError, match="layers"):
        next(XLoraRouter(context(bank)).learn({"layers": 3}, threading.Event()))


def test_two_hundred_lobes(backbone: Backbone, adapters: dict[str, Path]) -> None:
    bank = LobeBank(backbone)
    names = [f"lobe{i}" for i in range(200)]
    for name in names:
        bank.register(name, adapters["attention"])
    none = np.zeros((0, 0), np.float32)
    known = {n: RoutingRows(none, none, none, [f"What is {i}?"] * 4, (), ["It is."] * 4) for i, n in enumerate(names)}
    router = XLoraRouter(
        BankContext(
            names, known, lambda t: none, lambda t, n: none, bank=bank, ids=dict(zip(names, names, strict=True))
        )
    )
    fit(router, supervised_steps=10, language_steps=1, rows_per_lobe=4)
    decision = router.route("What is 7?")
    assert len(decision.scores) == 200 and sum(decision.weights.values()) == pytest.approx(1, abs=1e-4)


# ---- the real base ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(builtin: Backbone) -> MultiLobeModel:
    model = MultiLobeModel(builtin)
    model.load_bundle(folder("assets") / "demo_bundle")
    return model


@pytest.mark.builtin
def test_each_demo_lobe_has_the_largest_weight_on_its_own_prompts(demo: MultiLobeModel) -> None:
    context = demo.routers.context()
    router = XLoraRouter(context)
    fit(router, rows_per_lobe=32, supervised_steps=100, language_steps=0)
    for name in context.lobes:
        rows = context.rows[name]
        own = rows.validation_prompts or rows.train_prompts[4::5]  # what the head holds out of lobes that held nothing out
        decisions = [router.decide(prompt) for prompt in own[:16]]
        shares = {other: np.mean([d.scores[other] for d in decisions]) for other in context.lobes}
        assert max(shares, key=shares.__getitem__) == name and shares[name] > 0.35
        assert np.mean([d.abstained for d in decisions]) <= 0.15


class CountedAttention(TorchDispatchMode):
    """Counts torch's calls of attention while it is entered."""

    calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.calls += "attention" in function.__name__
        return function(*arguments, **(keywords or {}))


@pytest.mark.builtin
def test_a_token_costs_at_most_about_two_steps(demo: MultiLobeModel) -> None:
    """One pass that is read and one that answers: counted by their calls of attention, one for each layer of each pass."""
    bank, lobes = demo.bank, demo.bank.lobes
    head = ScalingHead(320, len(lobes), len(bank.layers(lobes)), HeadShape(reads="both")).eval()
    kinds: dict[str, dict[str, Any]] = {
        "one": {"weights": {lobes[0]: 1.0}},
        "xlora": {"weights": {}, "mixer": XLoraMixer(head.requires_grad_(False), lobes)},
    }
    counts = {}
    for kind, how in kinds.items():
        sampling = SamplingConfig(24, temperature=5.0, seed=0)
        with CountedAttention() as counted:
            tokens = list(generate_tokens(bank, [Request(list(range(100, 120)), sampling=sampling, **how)]))
        assert len(tokens) >= 24
        counts[kind] = counted.calls
    assert 0 < counts["one"] < counts["xlora"] <= 2 * counts["one"]
