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

from multilobe_ui import Mix, MultiLobeModel, dataset
from multilobe_ui.assets import MINILM_SHA256, demo_bundle, folder, packaged_minilm, sample_files
from multilobe_ui.backbone import Backbone
from multilobe_ui.bundle import verify_bundle
from multilobe_ui.config import TrainingConfig
from multilobe_ui.demo import answered, held_out_rows
from multilobe_ui.evaluation import loss_matrix, routing_report
from multilobe_ui.routers.base import Mixing

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
    held_out = {lobe.name: held_out_rows(lobe, sample_files()[lobe.name]) for lobe in demo.lobes}
    losses = loss_matrix(demo.bank, [lobe.id for lobe in demo.lobes], held_out)
    base, lobes = losses[0], losses[1:]
    assert (np.diag(lobes) <= 0.75 * base).all(), losses
    assert (lobes.argmin(0) == np.arange(len(held_out))).all(), losses
    # what the cards claim is what is measured
    claimed = [lobe.card.training["validation_loss"] for lobe in demo.lobes]
    np.testing.assert_allclose(np.diag(lobes), claimed, rtol=2e-3)


def test_reworded_questions_reach_their_lobe_and_are_answered_right(
    demo: MultiLobeModel, tests: list[dict[str, str]]
) -> None:
    report = routing_report(demo.route, [t["input"] for t in tests], [t["lobe"] for t in tests])
    labelled = [d.chosen == t["lobe"] for d, t in zip(report.decisions, tests, strict=True) if t["lobe"]]
    assert np.mean(labelled) >= 0.94
    assert report.by_label[""] >= 0.75  # prompts that belong to no lobe go to the base
    asked = [(t, d) for t, d in zip(tests, report.decisions, strict=True) if t["lobe"]]
    answers = answered(demo, [(t["input"], d) for t, d in asked])
    right = [t["contains"].lower() in answer.lower() for (t, _), answer in zip(asked, answers, strict=True)]
    assert np.mean(right) >= 0.75


def test_two_wishes_in_one_prompt_get_two_lobes_and_one_answer(demo: MultiLobeModel) -> None:
    prompt = "Summarise this in one sentence and say if the sentiment is positive or negative: the new library is a delight."
    weights = demo.route(prompt, "gate", Mixing("soft")).weights
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["sentiment"] > 0.1 and weights["summarisation"] > 0.1
    assert set(demo.route("What does insulin do?", "gate", Mixing("soft")).weights) == {"medical"}
    ids = torch.tensor([demo.backbone.encode_chat([{"role": "user", "content": prompt}])])

    def logits(mixture: dict[str, float]) -> torch.Tensor:
        with torch.inference_mode():
            return demo.bank.run(Mix.of({demo.store.by_name(n).id: w for n, w in mixture.items()}), input_ids=ids).logits

    half = logits({"sentiment": 0.5, "summarisation": 0.5})
    for alone in ("sentiment", "summarisation"):
        assert (half - logits({alone: 1.0})).abs().max() > 0.1


def test_the_routers_that_come_with_the_demo_are_fitted_and_right(demo: MultiLobeModel, tests: list[dict[str, str]]) -> None:
    some = [t for t in tests if t["lobe"]][::4]
    for router, least in (("gate", 0.9), ("embedding", 0.9), ("xlora", 0.8)):
        assert not demo.routing.is_stale(router)
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
    from multilobe_ui.training import TokenRows, make_batch, token_losses

    rows = TokenRows(builtin, dataset.load(sample_files()["medical"])[:6], 512)
    pairs = [rows.row(i) for i in range(6)]
    with torch.inference_mode():
        packed, padded = (
            token_losses(builtin.model, builtin, make_batch(pairs, 0.1, pack, builtin)) for pack in (True, False)
        )
    torch.testing.assert_close(packed, padded, atol=1e-4, rtol=1e-4)
    assert TrainingConfig().prompt_weight == 0.1
