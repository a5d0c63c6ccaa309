"""The Lab's report card and loss matrix on several domains; every number of the card is worked out once more by scikit-learn.

    python tests/benchmarks/lab.py DATA --home HOME --out lab.json

DATA has a folder for every domain with test.jsonl (rows with input and output); HOME has a lobe for each (`routing.py` makes one).
All routers that are fitted there are asked, each prompt cold: nothing is remembered of it from an earlier router.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.calibration
import sklearn.metrics as sk

from multilobe_ui import MultiLobeModel
from multilobe_ui.evaluation import LabelledRow, lobe_losses, read_labelled, report_card
from multilobe_ui.progress import Progress


def farthest(card: dict[str, Any]) -> float:
    """The largest difference between a number of the card and scikit-learn's from the same decisions."""
    labels, differences = card["labels"], [0.0]
    wanted = np.array([labels.index(row["lobe"]) for row in card["prompts"]])
    places = range(len(labels))
    for name, found in card["routers"].items():
        if found["error"]:
            print(f"{name}: {found['error']}")
            continue
        decided, right = np.array(found["decided"]), np.array(found["decided"]) == wanted
        shares = sk.precision_recall_fscore_support(wanted, decided, labels=places, zero_division=np.nan)[:3]
        for kind, theirs in zip(("precision", "recall", "f1"), shares, strict=True):
            ours = [math.nan if found[kind][label] is None else found[kind][label] for label in labels]
            assert np.array_equal(np.isnan(ours), np.isnan(theirs)), (name, kind)
            differences.append(float(np.nanmax(np.abs(np.array(ours) - theirs))))
        counts = sk.confusion_matrix(wanted, decided, labels=places)
        curve = sklearn.calibration.calibration_curve(right, np.clip(found["confidence"], 0, 1), n_bins=10)
        for kind, theirs in zip(("accuracy", "confidence"), curve, strict=True):
            differences.append(float(np.abs(np.array([b[kind] for b in found["calibration"]]) - theirs).max()))
        differences.append(abs(found["accuracy"] - sk.accuracy_score(wanted, decided)))
        differences.append(float(np.abs(np.array(found["confusion"]) - counts).max()))
    return max(differences)


def show_card(card: dict[str, Any]) -> None:
    print(f"\n{len(card['prompts'])} prompts, {card['seconds']:.0f} s")
    print(f"{'router':11} {'right':>6} {'F1':>6} {'ECE':>6} {'ms':>7} {'mean':>7}  half answered")
    for name, found in card["routers"].items():
        if found["error"]:
            continue
        scores = [value for label, value in found["f1"].items() if value is not None and label]
        half = next((p for p in reversed(found["abstention"]) if p["answered"] >= 0.5), None)
        print(f"{name:11} {found['accuracy']:6.1%} {np.mean(scores):6.3f} {found['ece']:6.3f} ", end="")
        print(f"{found['ms']:7.1f} {found['ms_mean']:7.1f}  ", end="")
        print(f"{half['accuracy']:.1%} right from {half['threshold']:.2f} on" if half else "never", found["note"])


def show_losses(matrix: dict[str, Any]) -> None:
    print(f"\nnats per answer token, {matrix['seconds']:.0f} s; router: {matrix['router']}")
    print(f"{'dataset':12} {'rows':>4} {'tokens':>6} {'base':>6} {'own':>6} {'routed':>6} {'best other':>10}  ", end="")
    print("exact base/routed/own")
    for j, name in enumerate(matrix["datasets"]):
        own = matrix["own"][j]
        others = [row[j] for lobe, row in zip(matrix["lobes"], matrix["losses"][1:], strict=True) if lobe != own]
        print(f"{name:12} {matrix['rows'][j]:4} {matrix['tokens'][j]:6} {matrix['losses'][0][j]:6.3f} ", end="")
        print(f"{matrix['oracle'][j]:6.3f} {matrix['routed'][j]:6.3f} {min(others):10.3f}  ", end="")
        marks = matrix["task"].get(name)
        print("/".join(f"{marks[way]['exact']:.0%}" for way in ("base", "routed", "oracle")) if marks else "long answers")
    print(f"idle: {', '.join(matrix['idle']) or 'none'}")
    print(f"share of the oracle's gain: {matrix['share_of_oracle']}; of its exact matches: {matrix['task_share']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--without", nargs="*", default=["instructions"], help="folders that are no domain")
    parser.add_argument("--most", type=int, default=800, help="prompts asked of every router")
    parser.add_argument("--rows", type=int, default=64, help="rows of each dataset in the loss matrix")
    parser.add_argument("--routers", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    model = MultiLobeModel.from_pretrained("builtin", home=options.home)
    model.routers.prepare()
    domains = [p for p in sorted(options.data.iterdir()) if p.name not in options.without and (p / "test.jsonl").is_file()]
    files = [(f"{p.name}.jsonl", p / "test.jsonl") for p in domains if p.name in model.lobe_names]
    rows: list[LabelledRow] = read_labelled(files, model.lobe_names)

    def progress(p: Progress) -> None:
        print(f"\r{p.step}/{p.steps} {p.phase:40}", end="", flush=True)

    card = report_card(model, options.routers, rows, most=options.most, progress=progress).to_json()
    show_card(card)
    print(f"largest difference to scikit-learn: {farthest(card):.1e}")
    matrix = lobe_losses(model, rows, most_rows=options.rows, progress=progress).to_json()
    show_losses(matrix)
    if options.out:
        options.out.write_text(json.dumps({"report": card, "losses": matrix}, indent=1, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    main()
