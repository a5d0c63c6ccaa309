"""How many prompts of a domain without a lobe go to the base model? Two domains are left out, in all ways.

    python tests/benchmarks/abstain.py DATA --home LOBES

LOBES is a home with a lobe for every domain of DATA (`routing.py --home LOBES` makes it). Told for every way: what goes to the base
when exactly 5 % of the other domains' prompts do, and at the thresholds that the router itself calibrates. The lobes are
independent of each other, so one forward a prompt gives the evidence of all ways.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from multilobe_ui import MultiLobeModel, dataset
from multilobe_ui.routers import RoutingContext
from multilobe_ui.routers.embedding import EmbeddingRouter
from multilobe_ui.routers.hybrid import HybridRouter

SHARES = (0.005, 0.05)
"""Shares of false abstention that are asked for; the first is the default."""


def remembering(ask: Callable[[list[str]], Sequence[Any]]) -> Callable[[Sequence[str]], list[Any]]:
    known: dict[str, Any] = {}

    def answer(texts: Sequence[str]) -> list[Any]:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, ask(new), strict=True))
        return [known[text] for text in texts]

    return answer


def sliced(whole: RoutingContext) -> Callable[[Sequence[str]], RoutingContext]:
    """The context with some of the lobes, every text read once for all of them."""
    names = list(whole.lobes)
    embed, words, hidden = (remembering(f) if f else None for f in (whole.embed, whole.words, whole.hidden))
    nll = remembering(lambda texts: whole.nll(texts, names))

    def context(lobes: Sequence[str]) -> RoutingContext:
        columns = [*(names.index(name) for name in lobes), len(names)]
        return replace(
            whole,
            lobes=list(lobes),
            rows={name: whole.rows[name] for name in lobes},
            embed=lambda texts: np.stack(embed(texts)),
            nll=lambda texts, wanted: np.stack(nll(texts))[:, [*(names.index(n) for n in wanted), columns[-1]]],
            words=words,
            hidden=(lambda texts: np.stack(hidden(texts))) if hidden else None,
        )

    return context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--home", type=Path, required=True)
    options = parser.parse_args()
    model = MultiLobeModel.from_pretrained("builtin", home=options.home)
    names = model.lobe_names
    tests = {name: [row.prompt for row in dataset.load(options.data / name / "test.jsonl")] for name in names}
    make = sliced(model.routing_context())
    table: dict[str, list[tuple[float, float]]] = {}
    for gone in itertools.combinations(names, 2):
        present = [name for name in names if name not in gone]
        context = make(present)
        own, foreign = ([p for name in part for p in tests[name]] for part in (present, gone))
        rows = np.concatenate([context.rows[name].train for name in present])
        nearest = [-np.sort(-(context.embed(part) @ rows.T), axis=1)[:, :3].mean(1) for part in (own, foreign)]
        bar = np.quantile(nearest[0], 0.05)
        table.setdefault("three nearest rows, at 5 %", []).append(tuple((part < bar).mean() for part in nearest))
        for share in SHARES:
            router = HybridRouter(context, EmbeddingRouter(context), false_abstention=share)
            router.fit()
            if share == SHARES[0]:
                values = [np.array([router.fitness(prompt) for prompt in part]) for part in (own, foreign)]
                bar = np.quantile(values[0], 0.05)
                table.setdefault("hybrid, at 5 %", []).append(tuple((part < bar).mean() for part in values))
            decided = [np.mean([router.route(p).abstained for p in part]) for part in (own, foreign)]
            table.setdefault(f"hybrid, asked for {share:.1%}", []).append((decided[0], decided[1]))
        told = "; ".join(f"{label}: {ways[-1][0]:.1%} {ways[-1][1]:.1%}" for label, ways in table.items())
        print(f"without {' and '.join(gone)}: {told}", flush=True)
    print(f"\n{'':30} {'false abstention (least, most)':>32} {'left out, sent to the base (least)':>36}")
    for label, ways in table.items():
        false, found = np.array(ways).T
        print(f"{label:30} {false.mean():14.1%} ({false.min():.1%}, {false.max():.1%}) {found.mean():18.1%} ({found.min():.1%})")


if __name__ == "__main__":
    main()
