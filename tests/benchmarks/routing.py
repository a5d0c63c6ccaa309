"""How well are held-out prompts of several domains routed? One lobe is trained for each.

    python tests/benchmarks/routing.py DATA --epochs 3 --out report.json

DATA has a folder for every domain with train.jsonl and test.jsonl (rows with input and output).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from multilobe_ui import MultiLobeModel
from multilobe_ui.data import dataset
from multilobe_ui.evaluation import RoutingReport, loss_matrix, routing_report
from multilobe_ui.lobes.weights import Mix
from multilobe_ui.routers import ROUTERS
from multilobe_ui.routing.router import learn_now

CHOOSERS = ("hybrid", "chain", "embedding", "logprob", "keyword", "gate")
"""Routers that choose one lobe from a lobe's rows or words; the others have benchmarks of their own."""


@torch.inference_mode()
def peer_formula(model: MultiLobeModel, prompt: str, max_tokens: int = 30) -> str:
    """The log-prob router of `multilobe` 0.1.0 (`router/logprob.py`): mean log-probability of the bare prompt's first tokens under
    each adapter, argmax; no template, no base to compare with, a forward for every lobe."""
    ids = model.backbone.tokenizer(prompt, return_tensors="pt", truncation=True, max_length=max_tokens + 1)["input_ids"]
    scores = []
    for lobe in model.lobes:
        logits = model.bank.run(Mix.of({lobe.id: 1.0}), input_ids=ids.to(model.backbone.device), use_cache=False).logits
        own = torch.log_softmax(logits[:, :-1].float(), -1).gather(-1, ids[:, 1:, None].to(logits.device))
        scores.append(float(own.mean()))
    return model.lobe_names[int(np.argmax(scores))]


def measures(report: RoutingReport, labels: Sequence[str]) -> dict[str, float]:
    """Shares of the prompts: right among those that a lobe answers, sent to the base; and the mean confidence of wrong choices."""
    chosen = [(decision.chosen == label, decision.confidence) for decision, label in zip(report.decisions, labels, strict=True)
              if decision.chosen]  # fmt: skip
    wrong = [confidence for right, confidence in chosen if not right]
    return {
        "of_answered": float(np.mean([right for right, _ in chosen])),
        "abstained": 1 - len(chosen) / len(report.decisions),
        "wrong_confidence": float(np.mean(wrong)) if wrong else 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--without", nargs="*", default=["instructions"], help="folders that are no domain")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, help="default: chosen for the base")
    parser.add_argument("--prompt-weight", type=float, default=0.1)
    parser.add_argument("--home", type=Path, help="keep the lobes here, and take up those that are there")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    domains = sorted(p.name for p in options.data.iterdir() if (p / "train.jsonl").is_file() and p.name not in options.without)
    if options.home:
        options.home.mkdir(parents=True, exist_ok=True)
    model = MultiLobeModel.from_pretrained("builtin", home=options.home)
    for domain in domains:
        if domain not in model.lobe_names:
            lobe = model.add_lobe(
                domain,
                options.data / domain / "train.jsonl",
                epochs=options.epochs,
                learning_rate=options.learning_rate,
                prompt_weight=options.prompt_weight,
            )
            before, after = (lobe.card.training[key] for key in ("base_validation_loss", "validation_loss"))
            print(f"{domain}: held-out loss {before:.3f} -> {after:.3f}", flush=True)
    model.routers.prepare()

    tests = {domain: dataset.load(options.data / domain / "test.jsonl") for domain in domains}
    prompts = [row.prompt for rows in tests.values() for row in rows]
    labels = [domain for domain, rows in tests.items() for _ in rows]
    result: dict[str, object] = {"prompts": len(prompts)}
    print(f"{'router':10} {'right':>7} {'of answered':>11} {'abstained':>9} {'ECE':>6} {'sure, wrong':>11} {'ms':>6} {'fit s':>6}")
    for name in CHOOSERS:
        router = ROUTERS[name](model.routers.context(), None)
        start = time.perf_counter()
        learn_now(router)
        seconds = time.perf_counter() - start
        report = routing_report(router.route, prompts, labels)
        found = measures(report, labels)
        print(
            f"{name:10} {report.accuracy:7.1%} {found['of_answered']:11.1%} {found['abstained']:9.1%} {report.ece:6.3f} "
            f"{found['wrong_confidence']:11.2f} {report.milliseconds:6.1f} {seconds:6.1f}  "
            + ", ".join(f"{stage} {share:.0%}" for stage, share in report.stages.items()),
            flush=True,
        )
        result[name] = {"accuracy": report.accuracy, "ece": report.ece, "by_label": report.by_label, **found}
        if name == "hybrid":
            print("".join(f"\n  {label}: {share:.1%}" for label, share in report.by_label.items()).lstrip("\n"))
            edges = (0, 0.4, 0.6, 0.8, 0.9, 0.95, 1.01)
            sure = np.array([decision.confidence for decision in report.decisions])
            right = np.array([decision.chosen == label for decision, label in zip(report.decisions, labels, strict=True)])
            for low, high in pairwise(edges):
                inside = (sure >= low) & (sure < high)
                if inside.any():
                    told = f"mean {sure[inside].mean():.2f}, right {right[inside].mean():.2f}"
                    print(f"  said {low:.2f} to {high:.2f}: {inside.sum()} prompts, {told}")
    start = time.perf_counter()
    peer = np.mean([peer_formula(model, prompt) == label for prompt, label in zip(prompts, labels, strict=True)])
    print(f"peer's log-prob formula on the same lobes: {peer:.1%}, {(time.perf_counter() - start) / len(prompts) * 1000:.1f} ms")
    losses = loss_matrix(model.bank, [lobe.id for lobe in model.lobes], tests)
    print("test loss (nats per answer token): base, own lobe, best other lobe")
    for i, domain in enumerate(model.lobe_names):
        others = np.delete(losses[1:, i], i)
        print(f"  {domain:12} {losses[0, i]:.3f} {losses[i + 1, i]:.3f} {others.min():.3f}")
    if options.out:
        options.out.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
