"""The demo bundle: six lobes trained from the sample data, by one command.

    python -m multilobe_ui.demo assets/demo_bundle

Prints what it measured: every lobe's loss on its own held-out rows beside the base's and the other lobes', and how many of the
reworded questions in sample_data/routing_test.jsonl are routed and answered right.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from . import dataset
from .assets import folder, sample_files
from .config import SamplingConfig, TrainingConfig, from_json, suggested_epochs
from .evaluation import loss_matrix, routing_report
from .generation import Request, generate_text, prepare
from .lobe import Lobe, write_card
from .model import MultiLobeModel
from .training import StepRecord


def build(target: Path) -> None:
    """Train all sample lobes and write the bundle to `target`."""
    with tempfile.TemporaryDirectory(prefix="multilobe-demo-") as home:
        model = MultiLobeModel.from_pretrained("builtin", home=home)
        for name, path in sample_files().items():
            epochs = suggested_epochs(len(dataset.load(path)))
            for event in model.train(name, path, TrainingConfig(epochs=epochs, evaluations_per_epoch=1)):
                if isinstance(event, StepRecord) and event.validation_loss is not None:
                    print(
                        f"{name}: step {event.step}/{event.steps}, held-out loss {event.validation_loss:.3f}",
                        flush=True,
                    )
        for lobe in model.lobes:
            write_card(lobe.path, replace(lobe.card, origin="demo"))
        report(model)
        model = MultiLobeModel.from_pretrained("builtin", home=home)  # with the cards as they now are
        model.prepare_routing()
        model.calibrate()
        model.save(target)


def held_out_rows(lobe: Lobe, path: Path) -> list[dataset.Example]:
    """The rows of its data file that a lobe was not trained on."""
    config = from_json(TrainingConfig, dict(lobe.card.config))
    return dataset.split(dataset.load(path), config.validation_fraction, config.seed)[1]


def report(model: MultiLobeModel) -> None:
    """Print the losses and the answers of a model that has the sample lobes."""
    files = sample_files()
    held_out = {lobe.name: held_out_rows(lobe, files[lobe.name]) for lobe in model.lobes}
    losses = loss_matrix(model.bank, [lobe.id for lobe in model.lobes], held_out)
    for i, name in enumerate(model.lobe_names):
        others = [losses[j + 1, i] for j in range(len(held_out)) if j != i]
        own, base = losses[i + 1, i], losses[0, i]
        print(
            f"{name}: held-out loss {own:.3f}, base {base:.3f} ({own / base - 1:+.0%}), best other lobe {min(others):.3f}"
        )
    tests = [json.loads(line) for line in (folder("sample_data") / "routing_test.jsonl").open(encoding="utf-8")]
    routed = routing_report(model.route, [t["input"] for t in tests], [t["lobe"] for t in tests])
    print(f"routing: {routed.accuracy:.1%} right, by label {routed.by_label}, stages {routed.stages}")
    sampling = SamplingConfig(do_sample=False, max_new_tokens=48)
    asked = [(t, d) for t, d in zip(tests, routed.decisions, strict=True) if t["lobe"]]
    requests = [
        Request(
            prepare(model.backbone, [{"role": "user", "content": test["input"]}], 48)[0],
            model.request_weights(decision),
            sampling,
        )
        for test, decision in asked
    ]
    answers = [text for i in range(0, len(requests), 16) for text in generate_text(model.bank, requests[i : i + 16])]
    right: dict[str, list[bool]] = {}
    for (test, decision), answer in zip(asked, answers, strict=True):
        good = test["contains"].lower() in answer.lower()
        right.setdefault(test["lobe"], []).append(good)
        if not good:
            print(f"  missed ({test['lobe']} -> {decision.chosen}): {test['input'][:80]!r} -> {answer[:100]!r}")
    for name, values in right.items():
        print(f"{name}: {sum(values)} of {len(values)} reworded questions answered right")


if __name__ == "__main__":
    build(Path(sys.argv[1]))
