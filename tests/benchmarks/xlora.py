"""Does X-LoRA find the right lobe, does mixing pay, and what does a token cost?

    python tests/benchmarks/xlora.py DATA --home HOME --rows 48 --out report.json

DATA has a folder for each domain with train.jsonl and test.jsonl; HOME has a lobe of the same name trained on each train.jsonl (it
is copied, not changed). The head is fitted on the lobes' own routing rows, with answers from train.jsonl where the lobe kept none.
Then, on `--rows` test rows of each domain: mean weights by domain and lobe, and the mean NLL per answer token of the base, the
hybrid router's top-1, every row's own lobe, X-LoRA and Arrow. Last, the time of a decoded token; `--peft` adds PEFT's X-LoRA.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multilobe_ui import MultiLobeModel
from multilobe_ui.data.examples import Example
from multilobe_ui.generation.decode import Request, generate_tokens
from multilobe_ui.lobes.mixers import Mixer, runner
from multilobe_ui.lobes.weights import Mix
from multilobe_ui.routers.arrow.router import ArrowRouter
from multilobe_ui.routers.xlora.router import XLoraRouter
from multilobe_ui.routing.decision import Mixing
from multilobe_ui.routing.router import FitOutcome, Router, RoutingContext
from multilobe_ui.settings import SamplingConfig
from multilobe_ui.training.batches import TokenRows

MODES = {"top-1": Mixing(), "top-2": Mixing("top_k", 2), "dense": Mixing("soft")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=48, help="test rows of each domain")
    parser.add_argument("--settings", type=json.loads, default={}, help="of the head, as JSON")
    parser.add_argument("--peft", action="store_true", help="time PEFT's X-LoRA as well")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(shutil.copytree(options.home, Path(folder) / "home"))
        model = MultiLobeModel.from_pretrained("builtin", home=home, device="cpu")
        names = [name for name in model.lobe_names if (options.data / name / "test.jsonl").is_file()]
        test = {name: read(options.data / name / "test.jsonl")[: options.rows] for name in names}
        context = with_answers(model.routers.context(), options.data, names)
        model.route("ready")
        xlora, arrow = XLoraRouter(context), ArrowRouter(context)
        result: dict[str, Any] = {"fit": fitted(xlora, options.settings), "arrow": fitted(arrow, {})}
        result["weights"] = {r.name: weights(r, names, test) for r in (xlora, arrow)}
        result["loss"] = losses(model, names, test, {"X-LoRA": xlora, "Arrow": arrow})
        result["decode"] = decode(model, names, {"X-LoRA": xlora, "Arrow": arrow}, options.peft)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1), encoding="utf-8")


def read(path: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["input"], row["output"]) for row in rows]


def with_answers(context: RoutingContext, data: Path, names: Sequence[str]) -> RoutingContext:
    rows = {}
    for name in names:
        own, answers = context.rows[name], dict(read(data / name / "train.jsonl"))
        kept = own.train_answers and own.validation_answers
        rows[name] = own if kept else replace(
            own,
            train_answers=[answers.get(prompt, "") for prompt in own.train_prompts],
            validation_answers=[answers.get(prompt, "") for prompt in own.validation_prompts],
        )  # fmt: skip
    return replace(context, lobes=list(names), rows=rows)


def fitted(router: Router, settings: Mapping[str, Any]) -> dict[str, Any]:
    run = router.learn(settings, threading.Event())
    while True:
        try:
            record = next(run)
        except StopIteration as end:
            outcome: FitOutcome = end.value
            print(f"\n{router.title}, fitted:", json.dumps(outcome.report, default=str))
            return dict(outcome.report)
        if "held_out_loss" in record.values:
            print(f"  step {record.step}: " + ", ".join(f"{k} {v:.4f}" for k, v in record.values.items()), flush=True)


def weights(router: Router, names: Sequence[str], test: Mapping[str, Sequence[tuple[str, str]]]) -> list[list[float]]:
    """Mean weight of every lobe (columns) over the prompts of every domain (rows), and how often the router chose right."""
    rows, right, abstained = [], [], []
    for name in names:
        decisions = [router.decide(prompt) for prompt, _ in test[name]]
        seen = [d for d in decisions if not d.abstained]
        rows.append([float(np.mean([d.weights.get(other, 0.0) for d in seen])) for other in names])
        right.append(float(np.mean([d.chosen == name for d in decisions])))
        abstained.append(float(np.mean([d.abstained for d in decisions])))
    print(f"\n{router.title}: mean weights, domain by lobe; chosen right; sent to the base")
    for name, row, share, none in zip(names, rows, right, abstained, strict=True):
        mark = "" if int(np.argmax(row)) == names.index(name) else "  <- not its own"
        print(f"  {name:12s}" + " ".join(f"{w:5.2f}" for w in row) + f"   {share:4.0%} {none:4.0%}{mark}")
    print(f"  right on average {np.mean(right):.1%}, sent to the base {np.mean(abstained):.1%}", flush=True)
    return rows


def losses(
    model: MultiLobeModel,
    names: Sequence[str],
    test: Mapping[str, Sequence[tuple[str, str]]],
    routers: Mapping[str, Router],
) -> dict[str, dict[str, float]]:
    """Mean NLL per answer token over all test rows, and for each domain."""
    bank, ids = model.bank, {name: model.lobes.named(name).id for name in names}
    hows: dict[str, Callable[[str, str], Callable[..., Any]]] = {
        "base": lambda name, prompt: under(model, {}),
        "hybrid top-1": lambda name, prompt: under(model, model.answers.weights(model.route(prompt))),
        "own lobe": lambda name, prompt: under(model, {ids[name]: 1.0}),
    }
    for title, router in routers.items():
        for mode, mixing in MODES.items():
            mixer = router.mixer(mixing)
            hows[f"{title} {mode}"] = lambda name, prompt, mixer=mixer: runner(bank, mixer)
    result: dict[str, dict[str, float]] = {}
    for how, make in hows.items():
        by_domain, total, count = {}, 0.0, 0
        for name in names:
            own_total, own_count = 0.0, 0
            for prompt, answer in test[name]:
                rows = TokenRows(model.backbone, [Example(({"role": "user", "content": prompt},), answer)], 512)
                tokens = rows.length(0) - int(rows.prompt_lengths[0])
                own_total += answer_nll(make(name, prompt), *rows.row(0))
                own_count += tokens
            by_domain[name] = own_total / own_count
            total, count = total + own_total, count + own_count
        result[how] = {"all": total / count, "domains": float(np.mean(list(by_domain.values()))), **by_domain}
        if how == "base":
            print("\nMean NLL per answer token: all tokens, mean of domains; " + ", ".join(names))
        values = " ".join(f"{by_domain[name]:6.3f}" for name in names)
        print(f"  {how:14s} {result[how]['all']:.4f} {result[how]['domains']:.4f}   {values}", flush=True)
    return result


def under(model: MultiLobeModel, weights: Mapping[str, float]) -> Callable[..., Any]:
    mix = Mix.of(weights)
    return lambda given, **inputs: model.bank.run(mix, **inputs)


@torch.inference_mode()
def answer_nll(run: Callable[..., Any], ids: np.ndarray[Any, Any], prompt: int) -> float:
    """Sum over the tokens of an answer, all read at once; the first `prompt` tokens are what the answer is given."""
    tokens = torch.from_numpy(ids.astype(np.int64))[None]
    logits = run(input_ids=tokens, given=torch.arange(len(ids))[None] < prompt, use_cache=False).logits[0]
    nll = torch.nn.functional.cross_entropy(logits[prompt - 1 : -1].float(), tokens[0, prompt:], reduction="sum")
    return float(nll)


def decode(
    model: MultiLobeModel, names: Sequence[str], routers: Mapping[str, Router], peft: bool, tokens: int = 64
) -> dict[str, float]:
    """Median milliseconds of a step after a prompt of 32 tokens, kinds taking turns so that the machine's moods hit all alike."""
    bank = model.bank
    ids = torch.randint(100, 4000, (32,), generator=torch.Generator().manual_seed(0)).tolist()
    one = {model.lobes.named(names[0]).id: 1.0}
    kinds: dict[str, tuple[Mapping[str, float], Mixer | None]] = {"base": ({}, None), "one LoRA": (one, None)}
    for title, router in routers.items():
        kinds |= {f"{title} {mode}": ({}, router.mixer(mixing)) for mode, mixing in MODES.items()}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    sampling = SamplingConfig(max_new_tokens=tokens, temperature=5.0, seed=0)  # so hot that no answer ends early
    for _ in range(5):
        for kind, (weights, mixer) in kinds.items():
            before = None
            for _ in generate_tokens(bank, [Request(ids, weights, sampling, mixer=mixer)]):
                now = time.perf_counter()
                if before is not None:  # not the prompt
                    times[kind].append(now - before)
                before = now
    result = {kind: 1000 * float(np.median(values)) for kind, values in times.items()}
    if peft:
        result |= peft_xlora(model, names, ids, tokens)
    print("\nOne decoded token, and against one LoRA")
    for kind, milliseconds in result.items():
        print(f"  {kind:16s} {milliseconds:6.2f} ms  {milliseconds / result['one LoRA']:.2f}")
    return result


def peft_xlora(model: MultiLobeModel, names: Sequence[str], ids: list[int], tokens: int) -> dict[str, float]:
    """PEFT's own, which cannot use the KV cache: every token reads the whole text anew, twice."""
    from peft import XLoraConfig, get_peft_model

    adapters = {str(i): str(model.lobes.named(name).path) for i, name in enumerate(names)}
    base = copy.deepcopy(model.backbone.model)
    base.config.use_cache = False
    config = XLoraConfig(
        task_type="CAUSAL_LM", hidden_size=model.backbone.hidden_size, adapters=adapters, layerwise_scalings=True
    )
    theirs: Any = get_peft_model(base, config).eval()
    text, times = torch.tensor([ids]), []
    for _ in range(tokens):
        start = time.perf_counter()
        with torch.inference_mode():
            token = theirs(input_ids=text, use_cache=False).logits[:, -1:].argmax(-1)
        times.append(time.perf_counter() - start)
        text = torch.cat([text, token], 1)
    return {"PEFT X-LoRA": 1000 * float(np.median(times))}


if __name__ == "__main__":
    main()
