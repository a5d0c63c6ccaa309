"""How many strangers go to the base model? Of three kinds: domains left out, the demo's own strangers, everyday prompts.

    python tests/benchmarks/abstain.py DATA --home LOBES

LOBES is a home with a lobe for every domain of DATA (`routing.py --home LOBES` makes it). Two of the domains are left out, in all
ways; the router is the default one with its default settings. `--no-reading` leaves the language model out, for comparison.
`everyday_prompts.txt` was written before anything was measured; none of its prompts is among those that teach what a stranger is.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from multilobe_ui import MultiLobeModel
from multilobe_ui.assets import demo_bundle, folder
from multilobe_ui.data import dataset
from multilobe_ui.routers import ROUTERS, RoutingContext
from multilobe_ui.routing.router import learn_now

EVERYDAY = Path(__file__).with_name("everyday_prompts.txt")


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
    embed, nll = remembering(whole.embed), remembering(lambda texts: whole.nll(texts, names))

    def context(lobes: Sequence[str]) -> RoutingContext:
        return replace(
            whole,
            lobes=list(lobes),
            rows={name: whole.rows[name] for name in lobes},
            embed=lambda texts: np.stack(embed(texts)),
            nll=lambda texts, wanted: np.stack(nll(texts))[:, [*(names.index(n) for n in wanted), len(names)]],
        )

    return context


def unread(context: RoutingContext) -> RoutingContext:
    """The context of a base that can tell nothing."""
    return replace(context, nll=lambda texts, wanted: np.full((len(texts), len(wanted) + 1), np.nan, np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--router", default="hybrid")
    parser.add_argument("--no-reading", action="store_true", help="decide without the language model")
    options = parser.parse_args()
    seen = unread if options.no_reading else lambda context: context
    everyday = EVERYDAY.read_text(encoding="utf-8").splitlines()
    tests = folder("sample_data") / "routing_test.jsonl"
    strangers = [row["input"] for row in map(json.loads, tests.open(encoding="utf-8")) if row["lobe"] is None]

    demo = MultiLobeModel.from_pretrained("builtin")
    demo.load_bundle(demo_bundle())
    taught = {prompt.casefold().strip() for prompt in demo.routers.context().generic_prompts}
    assert not taught & {prompt.casefold().strip() for prompt in [*everyday, *strangers]}
    asked = {f"demo's strangers ({len(strangers)})": strangers, f"everyday ({len(everyday)})": everyday}
    model = MultiLobeModel.from_pretrained("builtin", home=options.home)
    for title, context in (("demo lobes", demo.routers.context()), ("8 domains", model.routers.context())):
        router = ROUTERS[options.router](seen(context), None)
        learn_now(router)
        for kind, prompts in asked.items():
            missed = [(d.chosen, p) for p in prompts if not (d := router.route(p)).abstained]
            print(f"{title}: {kind}: {len(prompts) - len(missed)} go to the base; not: {missed}", flush=True)

    names = model.lobe_names
    own = {name: [row.prompt for row in dataset.load(options.data / name / "test.jsonl")] for name in names}
    make, ways = sliced(model.routers.context()), []
    for gone in itertools.combinations(names, 2):
        present = [name for name in names if name not in gone]
        router = ROUTERS[options.router](seen(make(present)), None)
        learn_now(router)
        decided = [[router.route(p).abstained for name in part for p in own[name]] for part in (present, gone)]
        ways.append((np.mean(decided[0]), np.mean(decided[1])))
        print(f"without {' and '.join(gone)}: false abstention {ways[-1][0]:.1%}, left out {ways[-1][1]:.1%}", flush=True)
    false, found = np.array(ways).T
    print(f"mean of {len(ways)} ways: false abstention {false.mean():.1%} ({false.min():.1%} to {false.max():.1%}), "
          f"left out sent to the base {found.mean():.1%} ({found.min():.1%} to {found.max():.1%})")  # fmt: skip


if __name__ == "__main__":
    main()
