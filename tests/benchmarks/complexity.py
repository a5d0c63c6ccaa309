"""How well is complexity routed, and what do three experts gain from it?

    python tests/benchmarks/complexity.py DATA --rows 900 --rate 0 --out report.json

DATA has folders with train.jsonl and test.jsonl; all prompts are stratified by the analyser. The network is trained on every
training prompt and judged on every test prompt, with all its inputs and with one kind alone; then the three phases run on the
built-in base with `--rows` rows of them (0 leaves this part out). `--control` gives the joint phase's steps to the experts alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multilobe_ui.base.backbone import Backbone
from multilobe_ui.data import dataset
from multilobe_ui.data.examples import Example
from multilobe_ui.routers.complexity.experts import train_experts
from multilobe_ui.routers.complexity.features import TIERS, Analyser, parser_name, scaled, score, tier_of
from multilobe_ui.routers.complexity.network import ComplexitySettings, Scale
from multilobe_ui.routers.complexity.training import RouterMLP, TierRows, report, train_router
from multilobe_ui.routing.encoder import Embedder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=900, help="training rows of the language model; 0 leaves it out")
    parser.add_argument("--rate", type=float, default=0.0, help="of the experts; 0 for the suggested one")
    parser.add_argument("--expert-epochs", type=int, default=2)
    parser.add_argument("--joint-epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3, help="of the network")
    parser.add_argument("--control", action="store_true", help="also run the experts alone for as many steps")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    torch.set_num_threads(1)
    train, test = (load(options.data, part) for part in ("train", "test"))
    analyser, embed = Analyser(), Embedder(remember=100_000)
    print(f"{len(train)} prompts to learn from, {len(test)} held out; parser {parser_name(analyser.parser)}")
    result: dict[str, Any] = {"network": network(train, test, analyser, embed, options.seeds)}
    if options.rows:
        settings = ComplexitySettings(
            expert_learning_rate=options.rate or None,
            expert_epochs=options.expert_epochs,
            joint_epochs=options.joint_epochs,
        )
        some = evenly(train, options.rows)
        runs = {"three phases": settings}
        if options.control:
            more = settings.expert_epochs + settings.joint_epochs
            runs["experts alone, as many steps"] = replace(settings, expert_epochs=more, joint_epochs=0)
        for name, chosen in runs.items():
            result[name] = phases(some, test, analyser, embed, name, chosen)
    if options.out:
        options.out.write_text(json.dumps(result, indent=2))


def load(data: Path, part: str) -> list[Example]:
    return [row for path in sorted(data.glob(f"*/{part}.jsonl")) for row in dataset.load(path)]


def evenly(rows: Sequence[Example], most: int) -> list[Example]:
    return [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, most).astype(int))]


def network(
    train: Sequence[Example], test: Sequence[Example], analyser: Analyser, embed: Embedder, seeds: int
) -> dict[str, Any]:
    """Phase 1 alone, by kind of input; means over seeds. The last tenth of the rows, drawn at random, chooses the step."""
    settings = ComplexitySettings()
    prompts = [[row.prompt for row in part] for part in (train, test)]
    raw = [analyser.features(part) for part in prompts]
    features, scores = [scaled(part) for part in raw], [score(part) for part in raw]
    tiers = [np.array([TIERS.index(tier_of(value)) for value in part]) for part in scores]
    vectors = [embed(part) for part in prompts]
    counts = [np.bincount(part, minlength=len(TIERS)).tolist() for part in tiers]
    print(f"{' '.join(TIERS)}: {counts[0]} to learn from, {counts[1]} held out")
    found: dict[str, Any] = {"counts": dict(zip(("train", "test"), counts, strict=True))}
    print(f"{'inputs':12} {'accuracy':>9} {'lowest':>8} {'MSE':>8}  share of balanced traffic")
    for kind in ("both", "features", "embedding"):
        reports = []
        for seed in range(seeds):
            used = (
                [part * (kind != "embedding") for part in features],
                [part * (kind != "features") for part in vectors],
            )
            scale = Scale.of(used[0][0])
            seen = [TierRows.of(scale(f, v), t, s) for f, v, t, s in zip(*used, tiers, scores, strict=True)]
            order = np.random.default_rng(seed).permutation(len(train))
            held = torch.from_numpy(order[: len(train) // 10])
            rest = torch.from_numpy(order[len(train) // 10 :])
            torch.manual_seed(seed)
            router = RouterMLP(seen[0].x.shape[1], settings.hidden, settings.low, settings.high)
            training = train_router(
                router,
                seen[0][rest],
                seen[0][held],
                epochs=settings.router_epochs,
                learning_rate=settings.router_learning_rate,
                balance_weight=settings.balance_weight,
                seed=seed,
            )
            for _ in training:
                pass
            reports.append(report(router, seen[1], TIERS))
        accuracy = [r["routing_accuracy"] for r in reports]
        shares = {tier: float(np.mean([r["balanced_usage"][tier] for r in reports])) for tier in TIERS}
        mse = float(np.mean([r["complexity_mse"] for r in reports]))
        print(f"{kind:12} {np.mean(accuracy):9.1%} {min(accuracy):8.1%} {mse:8.5f}  ", end="")
        print(", ".join(f"{tier} {share:.1%}" for tier, share in shares.items()), flush=True)
        found[kind] = {"accuracy": accuracy, "complexity_mse": mse, "balanced_usage": shares}
    return found


def phases(
    train: Sequence[Example],
    test: Sequence[Example],
    analyser: Analyser,
    embed: Embedder,
    name: str,
    settings: ComplexitySettings,
) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        run = train_experts(Backbone.from_pretrained(), embed, analyser, train, settings, Path(folder), held_out=test)
        while True:
            try:
                record = next(run)
                if "held_out_loss" in record.values and record.phase != "Router":
                    values = " ".join(f"{k} {v:.3f}" for k, v in record.values.items())
                    print(f"  {record.step}/{record.steps} {record.phase}: {values}", flush=True)
            except StopIteration as end:
                found = end.value.report
                break
    print(f"{name}: {found['train_rows']} rows, {found['seconds']:.0f} s")
    print(f"  {'after':8} {'test loss':>9} {'soft':>7} {'perplexity':>10} {'accuracy':>9} {'MSE':>8}  balanced traffic")
    for phase, values in found["phases"].items():
        shares = ", ".join(f"{tier} {share:.1%}" for tier, share in values["balanced_usage"].items())
        soft = values.get("test_loss_soft", values["test_loss"])
        print(f"  {phase:8} {values['test_loss']:9.4f} {soft:7.4f} {values['perplexity']:10.2f} ", end="")
        print(f"{values['routing_accuracy']:9.1%} {values['complexity_mse']:8.5f}  {shares}")
    return found


if __name__ == "__main__":
    main()
