"""The built-in base, the sample data and the demo lobes that ship: is what people meet first as good as we say?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from multilobe_ui import Mix, MultiLobeModel
from multilobe_ui.assets import MINILM_SHA256, demo_bundle, folder, packaged_minilm, sample_files
from multilobe_ui.base.backbone import Backbone
from multilobe_ui.bundles.load import verify_bundle
from multilobe_ui.data import dataset
from multilobe_ui.evaluation import loss_matrix, routing_report
from multilobe_ui.recipes.demo import answered, judging_rows
from multilobe_ui.routing.decision import Mixing
from multilobe_ui.settings import TrainingConfig

pytestmark = pytest.mark.builtin

SAMPLES = ["legal", "maths", "medical", "python", "sentiment", "summarisation"]


@pytest.fixture(scope="module")
def demo(builtin: Backbone) -> Iterator[MultiLobeModel]:
    model = MultiLobeModel(builtin)
    model.load_bundle(demo_bundle())
    yield model


@pytest.fixture(scope="module")
def tests() -> list[dict[str, str]]:
    lines = (folder("sample_data") / "routing_test.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_bundle_is_sound() -> None:
    assert verify_bundle(demo_bundle()) == []


def test_the_sentence_encoder_is_the_genuine_one() -> None:
    path = packaged_minilm()
    assert path is not None
    assert hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest() == MINILM_SHA256


def test_sample_data_is_as_described(tests: list[dict[str, str]]) -> None:
    assert sorted(sample_files()) == SAMPLES
    trained = set()
    for path in sample_files().values():
        report = dataset.inspect(path)
        assert report.rows >= 150 and report.bad_rows == 0 and report.duplicates == 0
        trained |= {row.prompt.casefold() for row in dataset.load(path)}
    assert len(tests) == 200 and sum(t["lobe"] is None for t in tests) == 40
    assert not {t["input"].casefold() for t in tests} & trained  # reworded, not repeated


def test_every_lobe_gains_on_its_own_rows_and_beats_every_other_lobe_there(demo: MultiLobeModel) -> None:
    judging = {lobe.name: judging_rows(lobe, sample_files()[lobe.name]) for lobe in demo.lobes}
    rows = {name: own[:: max(1, len(own) // 40)] if trained else own for name, (own, trained) in judging.items()}
    losses = loss_matrix(demo.bank, [lobe.id for lobe in demo.lobes], rows)
    base, lobes = losses[0], losses[1:]
    assert (np.diag(lobes) <= 0.75 * base).all(), losses
    assert (lobes.argmin(0) == np.arange(len(rows))).all(), losses
    for i, lobe in enumerate(demo.lobes):
        claimed, trained = lobe.card.training["validation_loss"], judging[lobe.name][1]
        assert (claimed is None) == trained  # what the cards claim is what is measured
        assert trained or lobes[i, i] == pytest.approx(claimed, rel=2e-3)


SEEDS = {
    "Customer message: I waited 3 days for delivery. The product quality is good but your support team never replied. Can you "
    "summarize my issue and note the overall sentiment?": (0.45, 0.55),
    "Summarize this app store review in one line: The UI looks beautiful and payments are smooth, but the app crashes frequently "
    "on Android 13 and notifications don't work.": (0.20, 0.80),
    "Classify the sentiment of this email: I'm extremely disappointed. I paid for premium but got basic features.": (0.92, 0.08),
    "Give a short summary and highlight the tone: The laptop performance is great, but battery lasts only 3 hours.": (0.50, 0.50),
}
"""MixLoRA's own examples, with the weights of sentiment and summarisation that its README gives."""


@pytest.mark.parametrize("router", ["hybrid", "gate"])
def test_prompts_that_want_two_skills_are_weighed_as_they_should_be(demo: MultiLobeModel, router: str) -> None:
    for prompt, wanted in SEEDS.items():
        weights = demo.route(prompt, router).weights
        found = [weights.get(name, 0.0) for name in ("sentiment", "summarisation")]
        assert found == pytest.approx(wanted, abs=0.25), (prompt, weights)


@pytest.mark.parametrize("router", ["hybrid", "gate", "keyword"])
def test_code_for_a_sum_is_python_first_and_maths_second(demo: MultiLobeModel, router: str) -> None:
    weights = demo.route("Write Python code to solve quadratic equations", router).weights
    assert list(weights)[:2] == ["python", "maths"] and weights["maths"] >= 0.25


def test_an_equation_is_for_maths_by_its_words(demo: MultiLobeModel) -> None:
    decision = demo.route("Solve x² + 5x + 6 = 0", "keyword")
    assert decision.chosen == "maths" and decision.confidence >= 0.8


def test_reworded_questions_reach_their_lobe_and_are_answered_right(
    demo: MultiLobeModel, tests: list[dict[str, str]]
) -> None:
    report = routing_report(demo.route, [t["input"] for t in tests], [t["lobe"] for t in tests])
    labelled = [d.chosen == t["lobe"] for d, t in zip(report.decisions, tests, strict=True) if t["lobe"]]
    assert np.mean(labelled) >= 0.94
    assert report.by_label[""] >= 0.95  # prompts that belong to no lobe go to the base
    asked = [(t, d) for t, d in zip(tests, report.decisions, strict=True) if t["lobe"]]
    answers = answered(demo, [(t["input"], d) for t, d in asked])
    right = [t["contains"].lower() in answer.lower() for (t, _), answer in zip(asked, answers, strict=True)]
    assert np.mean(right) >= 0.75


def test_two_wishes_in_one_prompt_get_two_lobes_and_one_answer(demo: MultiLobeModel) -> None:
    prompt = "Summarise this in one sentence and say if the sentiment is positive or negative: the new library is a delight."
    weights = demo.route(prompt, "gate", Mixing("soft")).weights
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["sentiment"] > 0.1 and weights["summarisation"] > 0.1
    assert set(demo.route("What does insulin do?", "gate").weights) == {"medical"}
    ids = torch.tensor([demo.backbone.encode_chat([{"role": "user", "content": prompt}])])

    def logits(mixture: dict[str, float]) -> torch.Tensor:
        with torch.inference_mode():
            return demo.bank.run(Mix.of({demo.lobes.named(n).id: w for n, w in mixture.items()}), input_ids=ids).logits

    half = logits({"sentiment": 0.5, "summarisation": 0.5})
    for alone in ("sentiment", "summarisation"):
        assert (half - logits({alone: 1.0})).abs().max() > 0.1


def test_the_routers_that_come_with_the_demo_are_fitted_and_right(demo: MultiLobeModel, tests: list[dict[str, str]]) -> None:
    some = [t for t in tests if t["lobe"]][::4]
    for router, least in (("gate", 0.9), ("embedding", 0.9), ("xlora", 0.8)):
        assert not demo.routers.is_stale(router)
        right = [demo.route(t["input"], router).chosen == t["lobe"] for t in some]
        assert np.mean(right) >= least, router


def test_demo_lobes_are_plain_peft_adapters(demo: MultiLobeModel) -> None:
    ids = torch.tensor([demo.backbone.encode_chat([{"role": "user", "content": "What does insulin do?"}])])
    for lobe in demo.lobes:
        theirs = PeftModel.from_pretrained(demo.backbone.twin(), str(lobe.path)).eval()
        with torch.inference_mode():
            expected = theirs(input_ids=ids).logits
            ours = demo.bank.run(Mix.of({lobe.id: 1.0}), input_ids=ids).logits
        torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-4)


def test_a_new_lobe_on_the_real_base_leaves_the_others_bit_identical(demo: MultiLobeModel, tmp_path: Path) -> None:
    ids = torch.tensor([demo.backbone.encode_chat([{"role": "user", "content": "Explain estoppel."}])])
    mixes = [None, *(Mix.of({lobe.id: 1.0}) for lobe in demo.lobes)]

    def logits() -> list[torch.Tensor]:
        with torch.inference_mode():
            return [demo.bank.run(mix, input_ids=ids).logits for mix in mixes]

    before = logits()
    rows = [{"input": f"colour {i}", "output": "blue"} for i in range(12)]
    lobe = demo.add_lobe("Colours", rows, epochs=2, validation_fraction=0.1)
    try:
        assert all(torch.equal(a, b) for a, b in zip(before, logits(), strict=True))
        training = lobe.card.training
        assert training["validation_loss"] < training["base_validation_loss"]
    finally:
        demo.remove_lobe("Colours")


def test_packed_batches_are_exact_on_the_real_base(builtin: Backbone) -> None:
    from multilobe_ui.training.batches import TokenRows, make_batch, token_losses

    rows = TokenRows(builtin, dataset.load(sample_files()["medical"])[:6], 512)
    pairs = [rows.row(i) for i in range(6)]
    with torch.inference_mode():
        packed, padded = (
            token_losses(builtin.model, builtin, make_batch(pairs, 0.1, pack, builtin)) for pack in (True, False)
        )
    torch.testing.assert_close(packed, padded, atol=1e-4, rtol=1e-4)
    assert TrainingConfig().prompt_weight == 0.1
