"""The demo bundle: six lobes trained from the sample data, and routers fitted to them, by one command.

    python -m multilobe_ui.recipes.demo assets/demo_bundle
    python -m multilobe_ui.recipes.demo assets/demo_bundle --lobes assets/demo_bundle      keep the lobes, fit the routers anew

Prints what it measured: every lobe's loss on its own rows (held out where it held any out) beside
the others', and how many of the reworded questions in sample_data/routing_test.jsonl are routed and
answered right.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..assets import folder, sample_files
from ..data import dataset
from ..data.examples import Example
from ..evaluation import loss_matrix, routing_report
from ..generation.decode import generate_text
from ..lobes.card import write_card
from ..lobes.rows import rows_to_keep, write_routing_rows
from ..lobes.store import Lobe
from ..model import MultiLobeModel
from ..routers import RoutingDecision
from ..settings import SamplingConfig, TrainingConfig, from_json
from ..training.lobe import StepRecord

ROUTERS = ("gate", "xlora")
"""What is fitted; the others need no fit. Complexity is left to the person: its three experts would
double the bundle."""


def build(target: Path, lobes: Path | None = None) -> None:
    """Write the bundle to `target`, with newly trained lobes or those of the bundle `lobes`."""
    with tempfile.TemporaryDirectory(prefix="multilobe-demo-") as home:
        model = MultiLobeModel.from_pretrained("builtin", home=home)
        if lobes is None:
            train(model)
        else:
            model.load_bundle(lobes)
        for lobe in model.lobes:
            write_card(lobe.path, replace(lobe.card, origin="demo"))
            examples = dataset.load(sample_files()[lobe.name])
            config = from_json(TrainingConfig, dict(lobe.card.config))
            parts = dataset.split(examples, config.validation_fraction, config.seed)
            write_routing_rows(lobe.path, rows_to_keep(model.embedder, *parts))
        model = MultiLobeModel.from_pretrained("builtin", home=home)  # with the cards and rows as they now are
        model.routers.prepare()
        for name in ROUTERS:
            print(f"{name}: {dict(model.fit_router(name).report)}", flush=True)
        report(model)
        model.save(target)


def train(model: MultiLobeModel) -> None:
    """A lobe from every file of the sample data."""
    for name, path in sample_files().items():
        for event in model.train(name, path, TrainingConfig(evaluations_per_epoch=1)):
            if isinstance(event, StepRecord) and event.validation_loss is not None:
                print(f"{name}: step {event.step}/{event.steps}, held-out loss {event.validation_loss:.3f}", flush=True)


def judging_rows(lobe: Lobe, path: Path) -> tuple[list[Example], bool]:
    """The rows of its data file that a lobe was not trained on; all of them, and True, where it was
    trained on all."""
    config = from_json(TrainingConfig, dict(lobe.card.config))
    train, held_out = dataset.split(dataset.load(path), config.validation_fraction, config.seed)
    return (held_out, False) if held_out else (train, True)


def report(model: MultiLobeModel) -> None:
    """Print the losses and the answers of a model that has the sample lobes."""
    files = sample_files()
    judging = {lobe.name: judging_rows(lobe, files[lobe.name]) for lobe in model.lobes}
    losses = loss_matrix(model.bank, [lobe.id for lobe in model.lobes], {name: rows for name, (rows, _) in judging.items()})
    for i, name in enumerate(model.lobe_names):
        others = [losses[j + 1, i] for j in range(len(judging)) if j != i]
        own, base = losses[i + 1, i], losses[0, i]
        kind = "trained" if judging[name][1] else "held-out"
        beside = f"base {base:.3f} ({own / base - 1:+.0%}), best other lobe {min(others):.3f}"
        print(f"{name}: loss {own:.3f} on {kind} rows, {beside}")
    tests = [json.loads(line) for line in (folder("sample_data") / "routing_test.jsonl").open(encoding="utf-8")]
    routed = routing_report(model.route, [t["input"] for t in tests], [t["lobe"] for t in tests])
    print(f"routing: {routed.accuracy:.1%} right, by label {routed.by_label}, stages {routed.stages}")
    asked = [(t, d) for t, d in zip(tests, routed.decisions, strict=True) if t["lobe"]]
    answers = answered(model, [(test["input"], decision) for test, decision in asked])
    right: dict[str, list[bool]] = {}
    for (test, decision), answer in zip(asked, answers, strict=True):
        good = test["contains"].lower() in answer.lower()
        right.setdefault(test["lobe"], []).append(good)
        if not good:
            print(f"  missed ({test['lobe']} -> {decision.chosen}): {test['input'][:80]!r} -> {answer[:100]!r}")
    for name, values in right.items():
        print(f"{name}: {sum(values)} of {len(values)} reworded questions answered right")


def answered(model: MultiLobeModel, asked: Sequence[tuple[str, RoutingDecision]], at_once: int = 16) -> list[str]:
    """Greedy answers to prompts that have been routed."""
    sampling = SamplingConfig(do_sample=False, max_new_tokens=48)
    requests = [model.answers.request([{"role": "user", "content": text}], decision, sampling) for text, decision in asked]
    batches = (requests[i : i + at_once] for i in range(0, len(requests), at_once))
    return [text for batch in batches for text in generate_text(model.bank, batch)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--lobes", type=Path, help="a bundle whose lobes are kept instead of training new ones")
    options = parser.parse_args()
    build(options.target, options.lobes)
