"""The Lab of a FakeStudio: experiments that end at once with a result the test gives, and results to draw.

lab = FakeLab(studio)                                  # sets studio.lab
job = lab.ran("report", report_result(["a", "b"]))     # a finished run
job = lab.start("report", {"routers": ["gate"]})       # a run at work; lab.finish(job.id, result) ends it
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from fake_studio import ROUTERS, FakeStudio, JobView

from multilobe_ui.app.feedback import Counts, Feedback
from multilobe_ui.app.ledger import Cost, Ledger
from multilobe_ui.errors import ConfigError, JobError
from multilobe_ui.evaluation.compare import Answer, Column, Comparison, difference
from multilobe_ui.routing.map import PromptMap
from multilobe_ui.settings import SamplingConfig

CREATED = "2026-07-01T09:30:00+00:00"


class FakeLab:
    """See the module."""

    def __init__(self, studio: FakeStudio) -> None:
        self.studio = studio
        self.results: dict[str, Any] = {}
        self.told: list[dict[str, Any]] = []
        self.kept: list[str] = []
        self.fail_next: Exception | None = None
        self.ledger = Ledger(studio.home / "ledger.jsonl")
        studio.lab = self

    def start(
        self, name: str, settings: Mapping[str, Any] | None = None, files: Sequence[tuple[str, Path]] = (), owner: str = "",
        *, rows_of: str = "",
    ) -> JobView:  # fmt: skip
        self._log("lab.start", name, dict(settings or {}), list(files), owner, rows_of)
        return self.studio._queue(JobView("", name, steps=100, config=dict(settings or {}), kind="lab"), owner, "Measuring")

    def finish(self, job_id: str, result: Mapping[str, Any] | None, state: str = "finished", error: str = "") -> JobView:
        self.results[job_id] = result
        self.studio._changed()
        return self.studio._put(job_id, state=state, finished="2026-07-01T09:40:00+00:00", phase="", error=error)

    def ran(self, name: str, result: Mapping[str, Any], settings: Mapping[str, Any] | None = None, owner: str = "") -> JobView:
        return self.finish(self.start(name, settings, (), owner).id, result)

    def runs(self, name: str, owner: str = "") -> list[JobView]:
        return [job for job in self.studio.jobs(owner) if job.kind == "lab" and job.name == name]

    def result(self, job_id: str) -> Mapping[str, Any] | None:
        if job_id not in self.studio._jobs:
            raise JobError(f"There is no job {job_id!r}.")
        return self.results.get(job_id)

    # corrections

    def corrections(self) -> list[dict[str, Any]]:
        return [dict(one) for one in self.told]

    def correct(self, prompt: str, lobe: str | None, was: str = "") -> None:
        self._log("lab.correct", prompt, lobe, was)
        self.told = [one for one in self.told if one["prompt"] != prompt]
        made = {"id": f"c{len(self.studio.calls)}", "prompt": prompt, "lobe": lobe, "was": was, "created": CREATED, "kept": False}
        self.told.append(made)

    def forget_corrections(self, ids: Sequence[str] | None = None) -> None:
        self._log("lab.forget_corrections", ids)
        self.told = [one for one in self.told if ids is not None and one["id"] not in ids]

    def keep_refit(self, job_id: str) -> None:
        self._log("lab.keep_refit", job_id)
        self.kept.append(job_id)
        self.results[job_id] = {**self.results[job_id], "kept": True}
        self.told = [{**one, "kept": True} for one in self.told]

    # overlap and ledger

    def overlap(
        self, path: Path, mapping: Mapping[str, str] | None = None, validation_fraction: float = 0.1, seed: int = 0
    ) -> FakeOverlap:
        self._log("lab.overlap", path, mapping, validation_fraction, seed)
        return FakeOverlap(overlap_result([lobe.name for lobe in self.studio.lobes()]))

    def overlap_map(self, report: FakeOverlap, name: str) -> PromptMap:
        found = self.studio.prompt_map("")
        random = np.random.default_rng(3)
        new, centres = 0.3 * random.normal(size=(40, 2)) + 0.4, 0.1 * random.normal(size=(4, 2)) + 0.4
        texts = {**found.texts, name: [f"new row {i} <b>" for i in range(40)]}
        return PromptMap({**found.lobes, name: new}, {**found.prototypes, name: centres}, None, texts, 0.4)

    def ledger_totals(self) -> dict[str, dict[str, Any]]:
        return self.ledger.totals()

    def ledger_recent(self, most: int = 20) -> list[Cost]:
        return self.ledger.recent(most)

    def clear_ledger(self, owner: str = "") -> None:
        self._log("lab.clear_ledger", owner)
        if self.studio.shared:
            raise ConfigError("This server is shared, so its ledger stays.")
        self.ledger.clear()

    def _log(self, verb: str, *arguments: Any) -> None:
        error, self.fail_next = self.fail_next, None
        self.studio._log(verb, *arguments)
        if error is not None:
            raise error


# ---- overlap and ledger ----------------------------------------------------------------------------------------------


class FakeOverlap:
    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told

    def to_json(self) -> dict[str, Any]:
        return self.told


def overlap_result(lobes: Sequence[str], **more: Any) -> dict[str, Any]:
    """The JSON of an overlap report: much of it lies inside the first lobe, which has some of the rows too."""

    def pair(row: str, other: str, cosine: float | None, words: float = 0.4) -> dict[str, Any]:
        return {"row": row, "other": other, "cosine": cosine, "words": words}

    found = []
    for i, name in enumerate(lobes):
        asked, far = "How does a vaccine protect", 0.11 * i
        nearest = [pair(f"{asked} {k} children?", f"What does {name} say <b>of</b> {k}?", 0.83 - far - k / 50) for k in range(5)]
        same = [pair("What is angina?", "What is  ANGINA?", 1.0, 1.0), pair("What is a fever?", "What's a fever?", 0.96, 0.8)]
        found.append({
            "lobe": name, "rows": 261, "overlap": [0.62, 0.04][i] if i < 2 else 0.0, "threshold": 0.55, "own": 0.75,
            "exact": 3 * (i == 0), "near": 2 * (i == 0), "held_out": int(i == 0), "nearest": nearest,
            "duplicates": same if i == 0 else [],
        })  # fmt: skip
    coffee = "coffee was first drunk in the Arab world."
    twins = [pair(f"TL;DR: {coffee}", f"In short: {coffee}", 0.99, 0.76)]
    return {
        "rows": 261, "prompts": 255, "compared": 255, "embedded": 255, "lobes": found, "twins": 14, "pairs": twins,
        "training_rows": 235, "held_out_rows": 26, "leaking": 12, "leaks": twins, "stopped": False, "truncated": False, **more,
    }  # fmt: skip


def some_costs(lobes: Sequence[str], count: int = 60) -> list[Cost]:
    """Answers by several routers, the last one stopped."""
    random = np.random.default_rng(2)
    costs = []
    for i in range(count):
        stage = ("embedding", "logprob", "gate", "manual", "xlora")[i % 5]
        router = stage if stage in ("gate", "manual", "xlora") else "hybrid"
        names = () if i % 7 == 6 else tuple(lobes[:2]) if router == "xlora" else (lobes[int(random.integers(len(lobes)))],)
        tokens, seconds = int(random.integers(8, 200)), float(random.uniform(0.4, 2.5))
        costs.append(Cost(
            f"2026-07-01T09:{i:02d}:00+00:00", router, stage, names, None if router == "manual" else float(random.uniform(4, 60)),
            float(random.uniform(15, 90)), int(random.integers(12, 300)), tokens, seconds, tokens / seconds, tuple(lobes[:3]),
            4_200_000, i == count - 1,
        ))  # fmt: skip
    return costs


# ---- report card -----------------------------------------------------------------------------------------------------

QUALITY = {
    "hybrid": (0.965, 0.9), "embedding": (0.94, 0.84), "keyword": (0.83, 0.7), "logprob": (0.91, 0.97), "gate": (0.97, 0.95),
    "complexity": (0.4, 0.5), "xlora": (0.9, 0.88), "arrow": (0.7, 0.6), "chain": (0.95, 0.91),
}  # fmt: skip
MS = {"hybrid": 9.3, "embedding": 6.1, "keyword": 0.31, "logprob": 61.0, "gate": 6.4, "xlora": 48.0, "arrow": 33.0, "chain": 7.7}


def report_result(
    lobes: Sequence[str], routers: Sequence[str] = ("hybrid", "embedding", "keyword", "gate"), each: int = 40, strangers: int = 20,
    seed: int = 1,
) -> dict[str, Any]:
    """The JSON of experiment "report" for made-up decisions; all its numbers follow from them, as the core's do."""  # fmt: skip
    random = np.random.default_rng(seed)
    labels = [*lobes, ""]
    wanted = [i for i in range(len(lobes)) for _ in range(each)] + [len(lobes)] * strangers
    prompts = [
        {"prompt": f"Question {n} about {labels[w] or 'the weather'}?", "lobe": labels[w], "source": f"{labels[w] or 'none'}.jsonl"}
        for n, w in enumerate(wanted)
    ]
    found = {}
    for router in routers:
        right, sure = QUALITY.get(router, (0.9, 0.9))
        decided, confidence = [], []
        for w in wanted:
            hit = random.random() < (right if w < len(lobes) else 0.7 * right)
            near = [(w + 1) % len(lobes), len(lobes), int(random.integers(len(labels)))] if lobes else [0]
            decided.append(w if hit else int(near[int(random.integers(len(near)))]))
            value = random.beta(12 * sure, 12 * (1 - sure) + 0.4) if hit else random.beta(6 * sure, 5)
            confidence.append(float(round(0.15 + 0.85 * value, 4)))
        title = ROUTERS.get(router, (router, ""))[0]
        found[router] = router_result(labels, wanted, decided, confidence, title, MS.get(router, 5.0))
    return {
        "labels": labels, "prompts": prompts, "routers": found, "stopped": False, "seconds": 12.5,
        "notes": [],
    }  # fmt: skip


def router_result(
    labels: Sequence[str], wanted: Sequence[int], decided: Sequence[int], confidence: Sequence[float], title: str, ms: float = 5.0
) -> dict[str, Any]:
    """One router's part of it."""
    size, n = len(labels), len(wanted)
    confusion = np.zeros((size, size), int)
    np.add.at(confusion, (np.array(wanted, int), np.array(decided, int)), 1)
    hits = confusion.diagonal()
    precision = [_share(hits[i], confusion[:, i].sum()) for i in range(size)]
    recall = [_share(hits[i], confusion[i].sum()) for i in range(size)]
    f1 = [_share(2 * hits[i], confusion[i].sum() + confusion[:, i].sum()) for i in range(size)]
    sure, right = np.array(confidence), np.array(wanted) == np.array(decided)
    bins = [(low / 10, low / 10 + 0.1, (sure > low / 10) & (sure <= low / 10 + 0.1)) for low in range(10)]
    calibration = [
        {"low": low, "high": high, "confidence": _mean(sure[at]), "accuracy": _mean(right[at]), "count": int(at.sum())}
        for low, high, at in bins
        if at.any()
    ]
    at_most = [(sure >= t / 20) & (np.array(decided) < size - 1) for t in range(21)]
    abstention = [{"threshold": t / 20, "answered": _mean(at), "accuracy": _mean(right[at])} for t, at in enumerate(at_most)]
    gaps = [b["count"] * abs(b["confidence"] - b["accuracy"]) for b in calibration if b["count"]]
    return {
        "title": title, "accuracy": _share(int(right.sum()), n), "right": int(right.sum()), "of": n,
        "precision": dict(zip(labels, precision, strict=True)), "recall": dict(zip(labels, recall, strict=True)),
        "f1": dict(zip(labels, f1, strict=True)), "confusion": confusion.tolist(), "ece": sum(gaps) / n if n else None,
        "calibration": calibration, "abstention": abstention, "strangers": recall[labels.index("")] if "" in labels else None,
        "ms": ms, "ms_mean": 1.1 * ms, "decided": list(decided), "confidence": list(confidence), "error": "",
        "note": "", "unfinished": False,
    }  # fmt: skip


def failed_router(title: str, error: str) -> dict[str, Any]:
    """A router that could not be asked."""
    return {
        "title": title, "accuracy": None, "right": 0, "of": 0, "precision": {}, "recall": {}, "f1": {}, "confusion": [],
        "ece": None, "calibration": [], "abstention": [], "strangers": None, "ms": None, "ms_mean": None, "decided": [],
        "confidence": [], "error": error, "note": "", "unfinished": False,
    }  # fmt: skip


def refit_result(report: Mapping[str, Any], corrections: Sequence[Mapping[str, Any]], kept: bool = False) -> dict[str, Any]:
    """The JSON of experiment "refit": every correction is learned, and a few other prompts follow."""
    labels = report["labels"]
    first = next(iter(report["routers"].values()))
    wrong = [i for i, p in enumerate(report["prompts"]) if labels[first["decided"][i]] != (p["lobe"] or "")]
    changed = [
        {"prompt": report["prompts"][i]["prompt"], "wanted": report["prompts"][i]["lobe"],
         "before": labels[first["decided"][i]] or None, "after": report["prompts"][i]["lobe"]}
        for i in wrong[:6]
    ]  # fmt: skip
    changed += [{"prompt": "Is this a rule?", "wanted": labels[0], "before": labels[0], "after": None}]
    routers = {
        name: {"title": own["title"], "now": own["right"], "added": [], "gone": [], "before": own["right"],
               "after": own["right"] + gain, "of": own["of"], "seconds": 1.4, "error": ""}
        for (name, own), gain in zip(report["routers"].items(), (6, 3, 0, -2, 1, 4, 0, 0, 0), strict=False)
        if not own["error"]
    }  # fmt: skip
    told = [{"prompt": c["prompt"], "lobe": c["lobe"], "before": c["was"] or None, "after": c["lobe"]} for c in corrections]
    return {
        "routers": routers, "corrections": told, "changed": changed, "kept": kept, "stopped": False,
        "seconds": 9.0, "notes": [],
    }  # fmt: skip


# ---- losses ----------------------------------------------------------------------------------------------------------


def losses_result(lobes: Sequence[str], idle: Sequence[str] = (), task: bool = True, seed: int = 1) -> dict[str, Any]:
    """The JSON of experiment "losses": every lobe wins on its own rows, but for the idle ones."""
    random = np.random.default_rng(seed)
    n = len(lobes)
    base = 2.2 + random.random(n)
    losses = base + 0.12 * random.normal(size=(n + 1, n))
    losses[0] = base
    for i, name in enumerate(lobes):
        losses[i + 1, i] = base[i] + (0.01 if name in idle else -0.9 - 0.6 * random.random())
    oracle = np.array([losses[i + 1, i] for i in range(n)])
    routed = oracle + 0.02 * random.random(n)
    kept = {name: float(base[i] - losses[i + 1, i]) for i, name in enumerate(lobes)}
    saved = float((base - oracle).sum())
    scores = {
        name: {"rows": 24, "base": {"exact": 0.04, "f1": 0.21}, "routed": {"exact": 0.58, "f1": 0.71},
               "oracle": {"exact": 0.62, "f1": 0.74}}
        for name in list(lobes)[:2]
    }  # fmt: skip
    return {
        "lobes": list(lobes), "datasets": list(lobes), "rows": [60 + i for i in range(n)],
        "tokens": [4200 + 10 * i for i in range(n)], "left_out": [],
        "own": list(lobes), "losses": losses.tolist(), "router": "hybrid",
        "routed": routed.tolist(), "oracle": oracle.tolist(),
        "gain": kept, "idle": list(idle), "share_of_oracle": float((base - routed).sum()) / saved if saved else None,
        "task": scores if task else {}, "task_share": 0.947 if task and scores else None, "stopped": False, "seconds": 31.0,
        "notes": [],
    }  # fmt: skip


def _share(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def job_of(job: JobView, **values: Any) -> JobView:
    return replace(job, **values)


# ---- compare ---------------------------------------------------------------------------------------------------------


class FakeCompareLab(FakeLab):
    """A lab whose columns answer as FakeStudio.chat does, word by word together; votes and thumbs go to a real Feedback file.

    lab = FakeCompareLab(studio)            # sets studio.lab; `lab.closed` counts comparisons that were closed early
    """

    def __init__(self, studio: FakeStudio) -> None:
        super().__init__(studio)
        self.feedback = Feedback(studio.home / "feedback.jsonl")
        self.closed = 0

    def compare(
        self, prompt: str, columns: Sequence[Column], sampling: SamplingConfig | None = None, stop: threading.Event | None = None
    ) -> Iterator[Comparison]:
        self._log("lab.compare", prompt, list(columns), sampling, stop)
        return self._compared(prompt, columns, sampling or SamplingConfig(), stop or threading.Event())

    def _compared(
        self, prompt: str, columns: Sequence[Column], sampling: SamplingConfig, stop: threading.Event
    ) -> Iterator[Comparison]:
        messages = [{"role": "user", "content": prompt}]
        chats = [self.studio.chat(messages, c.choice, sampling, stop, weights=c.weights) for c in columns]
        decided = [next(chat) for chat in chats]
        words = [[event.text for event in chat if not event.done] for chat in chats]
        answers = [Answer(column, event.decision) for column, event in zip(columns, decided, strict=True)]
        seed = None if sampling.greedy else sampling.seed or 7
        try:
            yield Comparison(tuple(answers), False, False, seed, 14, 0, 0.0)
            for i in range(max(map(len, words))):
                if stop.is_set():
                    break
                time.sleep(self.studio.delay)
                for place, own in enumerate(words):
                    answer, ids = answers[place], tuple(range(min(i + 1, len(own))))
                    text = own[min(i, len(own) - 1)]
                    answers[place] = replace(answer, text=text, ids=ids, done=i + 1 > len(own), seconds=max(0.025 * len(ids), 1e-9))
                yield Comparison(tuple(answers), False, False, seed, 14, 0, 0.1 * i)
            ended = tuple(replace(answer, done=True) for answer in answers)
            agreement = tuple(difference(ended[0].text, answer.text) for answer in ended)
            yield Comparison(ended, True, stop.is_set(), seed, 14, 0, 1.4, agreement)
        except GeneratorExit:
            self.closed += 1
            raise

    def vote(self, prompt: str, answers: Sequence[Mapping[str, Any]], best: int | None) -> None:
        self._log("lab.vote", prompt, list(answers), best)
        self.feedback.vote(prompt, answers, best)

    def feedback_counts(self) -> Counts:
        return self.feedback.counts()

    def export_feedback(self, kind: str) -> Path:
        self._log("lab.export_feedback", kind)
        if self.studio.shared:
            raise ConfigError("This server is shared, so its feedback is not handed out.")
        target = Path(mkdtemp()) / f"feedback-{kind}.jsonl"
        self.feedback.export(kind, target)
        return target


# ---- merge -----------------------------------------------------------------------------------------------------------


class FakeMerges(FakeLab):
    """Merges and searches. `ranks`: name → rank, where a lobe has another than 16."""

    ranks: Mapping[str, int] = {}

    def merge_options(self, names: Sequence[str]) -> dict[str, str]:
        from multilobe_ui.merging.kinds import COMBINATIONS

        self._log("lab.merge_options", list(names))
        for name in names:
            self.studio._lobe(name)
        ranks = {name: self.ranks.get(name, 16) for name in names}
        other = next((name for name in names if ranks[name] != ranks[names[0]]), "")
        reasons = {}
        for kind, combination in COMBINATIONS.items():
            alone = len(names) == 1 and kind not in ("cat", "linear")
            reasons[kind] = "with a single lobe PEFT would scale it and do nothing else; choose at least two" if alone else ""
            if combination.equal_ranks and other and not alone:
                said = f"{names[0]} has rank {ranks[names[0]]} where {other} has {ranks[other]}"
                reasons[kind] = f"it needs one rank for all lobes, and {said}"
        return reasons

    def keep_merge(self, job_id: str, name: str, routed: bool = True, owner: str = "") -> str:
        self._log("lab.keep_merge", job_id, name, owner, routed)
        if self.results[job_id]["kept"]:
            raise JobError("This merge is kept already.")
        self.studio._add(name, "merged")
        self.results[job_id] = {**self.results[job_id], "kept": name}
        return name


def merge_result(weights: Mapping[str, float], combination: str = "ties_svd", error: float = 0.42, seed: int = 1) -> dict[str, Any]:
    """The JSON of experiment "merge"."""
    from multilobe_ui.merging.kinds import COMBINATIONS

    random, about = np.random.default_rng(seed), COMBINATIONS[combination]
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    layers = {
        f"model.layers.{i}.{'self_attn' if kind[0] in 'qkvo' else 'mlp'}.{kind}": float(error * (0.4 + random.random()))
        for i in range(12) for kind in kinds
    }  # fmt: skip
    names = list(weights)
    losses = []
    for i, name in enumerate(names):
        base = 2.2 + random.random()
        alone = [base + 0.1 * random.normal() if j != i else 0.7 + 0.3 * random.random() for j in range(len(names))]
        mixture = alone[i] + 0.5
        losses.append({"dataset": name, "rows": 24, "held_out": True, "base": base, "parents": alone, "mixture": mixture,
                       "merged": mixture + error * random.random()})  # fmt: skip
    return {
        "combination": combination, "says": about.says, "parents": [[n, w] for n, w in weights.items()], "rank": 16,
        "parameters": 352_000, "nbytes": 1_408_000, "error": error, "layer_errors": layers,
        "density": 0.5 if about.prunes else None, "seed": seed, "seconds": 1.2, "losses": losses, "without_rows": [],
        "advice": "It averages where lobes agree and does not aim at their sum, so judge it by the losses and not by the error.",
        "base": {"name": "builtin", "fingerprint": "f"}, "kept": "", "stopped": False,
    }  # fmt: skip


def search_result(names: Sequence[str], budget: int = 40, seed: int = 1) -> dict[str, Any]:
    """The JSON of experiment "search"."""
    random, trials, best = np.random.default_rng(seed), [], float("inf")
    for i in range(budget):
        weights = {name: float(random.uniform(-1.5, 1.5)) if i else 0.0 for name in names}
        value = 2.9 if i == 0 else float(0.9 + 3.5 * random.random() ** 2 * (1.2 - i / budget))
        trials.append({"number": i + 1, "weights": weights, "loss": value, "penalty": 0.0, "best": value < best})
        best = min(best, value)
    won = min(trials, key=lambda trial: trial["loss"])
    return {"weights": won["weights"], "trials": trials, "base": 2.9, "loss": best, "rows": 16, "given": False, "stopped": False}


# ---- forgetting ------------------------------------------------------------------------------------------------------


def forgetting_result(lobes: Sequence[str], contrast: bool = True) -> dict[str, Any]:
    """The JSON of experiment "forgetting" that has passed: one adapter forgets the first lobe's domain for the second's."""
    curve = [
        {"step": 16 * i, "first": 3.4 - 0.275 * i if i <= 8 else 3.6 - 0.4 * 0.5 ** (i - 8),
         "second": 4.1 - 0.02 * i if i <= 8 else 0.11 + 0.5 ** (i - 8)}
        for i in range(17)
    ]  # fmt: skip
    first, second = (curve[-1][which] for which in ("first", "second"))
    losses = {
        "first": {"base": 3.4, "after_first": 1.2, "after_second": first, "lobe": 0.16},
        "second": {"base": 4.1, "after_first": 3.94, "after_second": second, "lobe": 0.03},
    }
    shown = {
        "first": lobes[0], "second": lobes[1], "rows": [96, 90], "held_out": [24, 20], "losses": losses, "forgotten": first - 1.2,
        "kept": (3.4 - first) / 2.2, "curve": curve, "switch": 128, "trained": [],
    } if contrast and len(lobes) > 1 else None  # fmt: skip
    why = "" if shown else "The contrast needs two lobes that have kept rows with answers."
    return {
        "passed": True,
        "base": {"hash_before": "20" * 32, "hash_after": "20" * 32, "same": True, "logits_same": True, "max_difference": 0.0,
                 "mean_kl": 0.0, "probes": 16, "source_same": True, "fingerprint": "2d356ae1ecde6694", "tensors": 58,
                 "seconds": 4.5},
        "lobes": [{"name": name, "same": True, "max_difference": 0.0, "mean_kl": 0.0, "files_same": True, "fingerprint_same": True}
                  for name in lobes],
        "newest": lobes[-1] if lobes else None,
        "trained": {"rows": 96, "steps": 96, "loss_before": 3.18, "loss_after": 1.42, "held_out": 24},
        "contrast": shown, "contrast_why": why, "reasons": [], "stopped": False, "seconds": 61.0,
    }  # fmt: skip


class WholeFakeLab(FakeCompareLab, FakeMerges):
    """Everything, for the whole page."""
