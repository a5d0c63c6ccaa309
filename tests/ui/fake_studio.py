"""A Studio without a model: the whole seam, scripted. Used by the UI tests and for looking at the page.

studio = FakeStudio(lobes=6)                # ready at once, six demo lobes
studio = FakeStudio(state="loading")        # studio.become_ready() ends it
studio.fail_next = JobError("…")            # the next call of any verb raises it
job = studio.train("Cooking", path)         # `studio.advance(job.id, 10)` moves it on; live=True moves with the clock
job = studio.fit_router("gate")             # the same; its last step makes the router fitted, until lobes come or go
"""

from __future__ import annotations

import inspect
import math
import re
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np

from multilobe_ui.app.ledger import Cost
from multilobe_ui.app.views import MemoryView, RouterView, TokenTrace
from multilobe_ui.app.visitors import Visitor
from multilobe_ui.assets import folder
from multilobe_ui.data import dataset
from multilobe_ui.errors import BusyError, ConfigError, JobError, LobeError, RoutingError
from multilobe_ui.routing.decision import AUTO, Mixing, RoutingDecision, base_decision, manual_decision
from multilobe_ui.routing.map import PromptMap
from multilobe_ui.settings import SamplingConfig, TrainingConfig

AUTOMATIC = "automatic"
BASE_ONLY = "base"
MIX = "mix"

PALETTE = (
    "#e5484d", "#c9880b", "#2f8fe0", "#8e5bd9", "#1f9d6b", "#d6498f",
    "#6d8f1f", "#c2632d", "#16a0a0", "#5966e0", "#a3752c", "#b14fc0",
)  # fmt: skip
DEMO = ("medical", "legal", "python", "maths", "sentiment", "summarisation")
ANSWERS = {
    "medical": "A vaccine trains the immune system to recognize and fight a disease.",
    "legal": "Duress is the use of threats or force to make someone act or agree.",
    "python": 'Use `Path("out").mkdir(parents=True, exist_ok=True)` to create a folder.',
    "maths": "The quotient rule says the derivative of u / v is (u' * v - u * v') / v^2.",
    "sentiment": "The sentiment is positive.",
    "summarisation": "The town will plant ten thousand trees to clean the air and give shade.",
}
CUES = {
    "medical": "vaccine fever blood disease doctor heart muscle wound rabies tetanus angina",
    "legal": "law legal contract court duress copyright sue trademark bail land trespass",
    "python": "python list dict function folder string code file class uppercase",
    "maths": "rule derivative matrix number angle triangle sum root prime equation equations quadratic",
    "sentiment": "review feel writer sentiment pleased upset",
    "summarisation": "summarise summary condense tl;dr sentence main point",
}


@dataclass(frozen=True)
class LobeView:
    id: str
    name: str
    colour: str
    rows: int | None = 261
    r: int = 16
    nbytes: int = 1_400_000
    base_validation_loss: float | None = 2.91
    validation_loss: float | None = 0.84
    train_loss: float | None = 0.61
    created: str = "2026-07-01T09:30:00+00:00"
    base: str = "builtin"
    usable: bool = True
    origin: str = "demo"
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    protected: bool = False
    fault: str = ""
    pinned: bool = False


@dataclass(frozen=True)
class StudioStatus:
    state: str
    message: str
    base: dict[str, Any] | None
    lobes: int
    version: int


@dataclass(frozen=True)
class ChatEvent:
    text: str
    decision: RoutingDecision | None
    done: bool = False
    stopped: bool = False
    prompt_tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    first_token_ms: float | None = None
    dropped_messages: int = 0
    trace: Sequence[TokenTrace] = ()
    cost: Cost | None = None


@dataclass(frozen=True)
class JobView:
    id: str
    name: str
    state: str = "queued"
    created: str = "2026-07-01T09:30:00+00:00"
    started: str | None = None
    finished: str | None = None
    rows: int | None = None
    step: int = 0
    steps: int = 0
    epoch: float = 0.0
    loss: float | None = None
    validation_loss: float | None = None
    best_validation_loss: float | None = None
    base_validation_loss: float | None = None
    tokens_per_second: float = 0.0
    seconds_left: float | None = None
    seconds: float = 0.0
    error: str = ""
    place: int | None = None
    mine: bool = True
    config: dict[str, Any] | None = None
    phase: str = ""
    kind: str = "lobe"

FEATURES = ("words", "sentences", "depth", "distance", "clauses", "entities", "vocabulary", "readability")
TIERS = ("simple", "medium", "complex")
PROFILES = {
    "simple": (0.12, 0.2, 0.25, 0.3, 0.1, 0.1, 0.3, 0.15), "medium": (0.5, 0.35, 0.55, 0.5, 0.45, 0.35, 0.6, 0.45),
    "complex": (0.88, 0.7, 0.85, 0.75, 0.85, 0.5, 0.85, 0.8),
}  # fmt: skip
STOPPED_WELL = ("finished", "stopped")
ROUTERS = {
    "hybrid": ("Hybrid", "Embedding first; where that is close, the language model's own surprise decides."),
    "embedding": ("Embedding", "The lobe whose training prompts lie nearest in meaning."),
    "keyword": ("Keywords", "The lobe whose typical words the prompt uses. You can edit them."),
    "logprob": ("Log-prob", "The lobe under which the prompt is least surprising."),
    "gate": ("Gate", "A small network that learned which lobe a prompt belongs to."),
    "complexity": ("Complexity", "Simple, medium or complex? Three experts of its own, one for each."),
    "xlora": ("X-LoRA", "A trained head weighs every lobe anew for each token and layer."),
    "arrow": ("Arrow", "Weighs lobes for each token and layer by their own directions; nothing is trained."),
    "chain": ("Chain", "Asks several routers in turn, until one is sure enough."),
}
FITTED = {
    "gate": {"embedding": "sentence", "steps": 400, "learning_rate": 0.1, "weight_decay": 0.0003},
    "complexity": {"low": 0.3, "high": 0.7, "lora_r": 16, "expert_epochs": 2, "joint_epochs": 1, "batch_size": 8},
    "xlora": {"depth": 1, "layerwise": True, "granularity": "token", "top_k": 0, "supervised_steps": 300, "language_steps": 100},
}  # fmt: skip
PHASES = {
    "gate": ("Learning the gate",),
    "complexity": ("Router", "Experts", "Router and experts together"),
    "xlora": ("Learning which lobe a token belongs to", "Learning to answer with them"),
}
REPORTS: dict[str, dict[str, Any]] = {
    "gate": {"accuracy": 0.953, "held_out_loss": 0.184, "ece": 0.031, "rows": 1566, "held_out_rows": 312, "seconds": 3.2},
    "complexity": {
        "counts": {"simple": 402, "medium": 911, "complex": 253}, "train_rows": 1566, "held_out_rows": 300, "seconds": 48.0,
        "phases": {
            "router": {"routing_accuracy": 0.87, "ece": 0.05, "test_loss": 2.91},
            "experts": {"routing_accuracy": 0.87, "ece": 0.05, "test_loss": 1.42, "test_loss_soft": 1.4},
            "joint": {"routing_accuracy": 0.89, "ece": 0.04, "test_loss": 1.31, "test_loss_soft": 1.27},
        },
    },
    "xlora": {"accuracy": 0.91, "held_out_loss": 1.12, "base_loss": 2.87, "best_lobe_loss": 1.31, "seconds": 71.0},
}  # fmt: skip


class FakeDesk:
    """The verbs of a fake for one visitor: their name goes where a verb asks for the owner."""

    def __init__(self, fake: Any, visitor: str, shared: bool) -> None:
        self._fake, self.visitor = fake, Visitor(visitor, shared)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._fake, name)
        if name == "lab":
            return FakeDesk(found, self.visitor.id, self.visitor.shared)
        if "owner" in inspect.signature(found).parameters:
            return partial(found, owner=self.visitor.id)
        return found


class FakeStudio:
    """See the module. `calls` logs (verb, arguments) so that a test can say "one call on the studio"."""

    def __init__(
        self,
        lobes: int | Sequence[str] = 6,
        *,
        state: str = "ready",
        shared: bool = False,
        delay: float = 0.0,
        live: bool = False,
        steps: int = 60,
        home: Path | None = None,
    ) -> None:
        names = [_name(i) for i in range(lobes)] if isinstance(lobes, int) else list(lobes)
        self.home = home or Path(mkdtemp(prefix="fake_studio_"))
        self.shared, self.delay, self.live, self.steps = shared, delay, live, steps
        self.fail_next: Exception | None = None
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self._lobes = [LobeView(f"lobe_{i + 1:04d}", name, PALETTE[i % 12]) for i, name in enumerate(names)]
        self.resident: list[str] = []
        self.budget_mib: float | None = None
        self._jobs: dict[str, JobView] = {}
        self._metrics: dict[str, list[dict[str, Any]]] = {}
        self._owners: dict[str, str] = {}
        self._begun: dict[str, float] = {}
        self._fits: dict[str, tuple[list[str], dict[str, Any]]] = {}
        self._terms: dict[str, list[str]] = {}
        self._stages: list[list[Any]] = [["keyword", 0.8], ["gate", 0.7], ["logprob", 0.0]]
        self._state, self._version, self._ready = state, 1, threading.Event()
        if state == "ready":
            self._ready.set()
        from fake_lab import WholeFakeLab  # it knows this class

        self.lab: Any = WholeFakeLab(self)

    # life

    def start(self) -> None:
        self._log("start")

    def become_ready(self) -> None:
        self._state = "ready"
        self._changed()
        self._ready.set()

    def status(self) -> StudioStatus:
        self._tick()
        said = {
            "loading": "Loading the built-in base model…",
            "ready": "Ready.",
            "failed": "The base could not be loaded.",
        }
        base = {
            "name": "builtin", "fingerprint": "a1b2c3d4", "architecture": "LlamaForCausalLM", "parameters": 12_500_000,
            "context_length": 1024, "device": "cpu", "dtype": "float32",
        }  # fmt: skip
        return StudioStatus(
            self._state, said[self._state], base if self._state == "ready" else None, len(self._lobes), self._version
        )

    def desk(self, visitor: str = "") -> FakeDesk:
        return FakeDesk(self, visitor, self.shared)

    def ready(self, timeout: float | None = None) -> None:
        if not self._ready.wait(timeout):
            raise BusyError("The base model is still loading. Try again in a moment.")

    # chat

    def route(self, prompt: str, router: str | None = None, mixing: Mixing | None = None) -> RoutingDecision:
        self._log("route", prompt, router, mixing)
        return self._route(prompt, router or "hybrid", mixing or AUTO)

    def compare_routers(self, prompt: str) -> list[RoutingDecision]:
        self._log("compare_routers", prompt)
        self.ready()
        return [self._route(prompt, view.name, AUTO) for view in self.routers() if view.fitted]

    def _route(self, prompt: str, router: str, mixing: Mixing) -> RoutingDecision:
        if router not in ROUTERS:
            raise ConfigError(f"There is no router {router!r}. There are: {', '.join(ROUTERS)}.")
        if router in FITTED and router not in self._fits:
            return base_decision(router, "not fitted", f"{ROUTERS[router][0]} has not been fitted yet; fit it under Routers.")
        if not self._lobes:
            return base_decision(router, "no lobes", "There is no lobe yet, so the base model answers.", elapsed_ms=0.1)
        if router == "complexity":
            return self._complexity(prompt)
        stage = {"hybrid": "embedding", "chain": "keyword"}.get(router, router)
        words = set(re.findall(r"[\w;]+", prompt.lower()))
        usable = [l for l in self._lobes if l.usable and l.origin != "complexity expert"]
        scores = {l.name: _score(l.name, prompt if router == "hybrid" else prompt + router, words) for l in usable}
        best = max(scores, key=lambda n: scores[n])
        shared: dict[str, Any] = {"scores": scores, "threshold": 0.35, "elapsed_ms": 7.4}
        total = sum(math.exp(8 * s) for s in scores.values()) + math.exp(8 * 0.35)
        odds = {n: math.exp(8 * s) / total for n, s in scores.items()}
        shared["evidence"] = self._evidence(router, prompt, best, odds)
        if scores[best] < 0.35 and router not in ("xlora", "arrow"):
            said = "No lobe was trained on anything like this."
            return base_decision(router, stage, said, **shared, probabilities=odds, confidence=1 - odds[best])
        decision = RoutingDecision(
            router, stage, probabilities=odds, weights={best: 1.0}, chosen=best, confidence=odds[best],
            reason=f"The prompt is closest to what {best} was trained on.", per_token=router in ("xlora", "arrow"), **shared,
        )  # fmt: skip
        if decision.per_token:
            return replace(decision, weights={n: round(p / sum(odds.values()), 4) for n, p in odds.items()}, threshold=None)
        return decision if mixing.mode == "top_1" else replace(decision, weights=mixing.weights(odds))

    def _evidence(self, router: str, prompt: str, best: str, odds: Mapping[str, float]) -> dict[str, Any]:
        if router in ("hybrid", "embedding"):
            questions = [f"How does a {w} work?" for w in ("vaccine", "fever", "<b>x</b>")]
            return {"nearest": [{"prompt": q, "lobe": best, "score": 0.81 - i / 9} for i, q in enumerate(questions)]}
        if router == "gate":
            return {"none": 1 - sum(odds.values())}
        if router in ("keyword", "chain"):
            found = [
                {"term": m[0].lower(), "lobe": name, "weight": 2.5, "start": m.start(), "end": m.end()}
                for m in re.finditer(r"\w+", prompt)
                for name in (l.name for l in self._lobes)
                if m[0].lower() in CUES.get(name, "").split()
            ]
            asked = [{"router": "keyword", "chosen": best, "confidence": odds[best], "threshold": 0.8}]
            return {"matches": found, "none": 1 - sum(odds.values()), **({"stages": asked} if router == "chain" else {})}
        if router in ("xlora", "arrow"):
            pieces = re.findall(r"\s*\S+", prompt)[:50]
            return {"tokens": [{"text": t, "weights": _trace(t, list(odds), best, i).weights} for i, t in enumerate(pieces)]}
        return {"base_logprob": -3.1} if router == "logprob" else {}

    def _complexity(self, prompt: str) -> RoutingDecision:
        value = min(0.97, len(prompt.split()) / 40)
        tier = TIERS[(value >= 0.3) + (value >= 0.7)]
        tiers = {t: 0.8 if t == tier else 0.1 for t in TIERS}
        row = [min(1.0, p * (0.6 + value)) for p in PROFILES[tier]]
        evidence = {
            "features": {f: round(20 * v, 2) for f, v in zip(FEATURES, row, strict=True)},
            "profile": dict(zip(FEATURES, row, strict=True)),
            "tier_profiles": {t: dict(zip(FEATURES, PROFILES[t], strict=True)) for t in TIERS},
            "score": value, "tier": tier, "thresholds": [0.3, 0.7], "estimated_score": max(0.0, value - 0.04), "tiers": tiers,
        }  # fmt: skip
        return RoutingDecision(
            "complexity", "complexity", tiers, tiers, {tier: 1.0}, tier, 0.8, elapsed_ms=5.1, evidence=evidence,
            reason=f"Complexity {value:.2f}: {tier} (80%), so {tier} answers.",
        )  # fmt: skip

    def prompt_map(self, prompt: str = "") -> PromptMap:
        self._log("prompt_map", prompt)
        self.ready()
        random = np.random.default_rng(7)
        lobes, prototypes, texts = {}, {}, {}
        own = [lobe for lobe in self._lobes if lobe.origin != "complexity expert"]
        for i, lobe in enumerate(own):
            angle = 2 * math.pi * i / len(own)
            centre = (0.5 + 0.4 * (i % 2)) * np.array([1.7 * math.cos(angle), math.sin(angle)])
            lobes[lobe.name] = centre + 0.16 * random.normal(size=(40, 2))
            prototypes[lobe.name] = centre + 0.12 * random.normal(size=(4, 2))
            texts[lobe.name] = [f"{lobe.name} question {k} <b>" for k in range(40)]
        best = self._route(prompt, "hybrid", AUTO).chosen if prompt and self._lobes else None
        place = np.array([0.06, -0.04]) if best is None else prototypes[best].mean(0) * 0.9
        return PromptMap(lobes, prototypes, place if prompt else None, texts, 0.41)

    def chat(
        self,
        messages: Sequence[dict[str, str]],
        choice: str = AUTOMATIC,
        sampling: SamplingConfig | None = None,
        stop: threading.Event | None = None,
        *,
        router: str = "hybrid",
        mixing: Mixing = AUTO,
        weights: Mapping[str, float] | None = None,
    ) -> Iterator[ChatEvent]:
        self._log("chat", list(messages), choice, sampling, router, mixing, dict(weights or {}))
        self.ready()
        stop = stop or threading.Event()
        if not messages or not messages[-1]["content"].strip():
            raise ConfigError(
                "There is nothing to answer: the last message must be a question with at least one character."
            )
        names = [l.name for l in self._lobes]
        if choice == AUTOMATIC:
            decision = self._route(messages[-1]["content"], router, mixing)
        elif choice == MIX:
            decision = manual_decision(weights or {}, names)
        else:
            decision = manual_decision({} if choice == BASE_ONLY else {choice.removeprefix("lobe:"): 1.0}, names)
        yield ChatEvent("", decision)
        answer = ANSWERS.get(decision.chosen or "", "Good morning! I am well, thank you. What can I do for you today?")
        begun, text = time.perf_counter(), ""
        words = answer.split(" ")
        trace: list[TokenTrace] = []
        for i, word in enumerate(words):
            if stop.is_set():
                yield ChatEvent(text, decision, True, True, 14, i, 0.2, 40.0, 21.0, cost=_cost(decision, names, i, 0.2, True))
                return
            time.sleep(self.delay)
            piece = (" " if i else "") + word
            text += piece
            if decision.per_token:
                trace.append(_trace(piece, list(decision.weights), decision.chosen, i))
            yield ChatEvent(
                text, decision, False, False, 14, i + 1, time.perf_counter() - begun, 41.0, 21.0, trace=tuple(trace)
            )
        seconds = time.perf_counter() - begun
        cost = _cost(decision, names, len(words), seconds)
        yield ChatEvent(text, decision, True, False, 14, len(words), seconds, 41.0, 21.0, trace=tuple(trace), cost=cost)

    # routers

    def routers(self, owner: str = "") -> list[RouterView]:
        names = [l.name for l in self._lobes if l.origin != "complexity expert"]
        working = {j.name: j.id for j in self._jobs.values() if j.kind == "router" and j.state in ("queued", "running", "stopping")}
        views = []
        for name, (title, sentence) in ROUTERS.items():
            asks, known = name in FITTED, name in self._fits
            stale = known and self._fits[name][0] != names
            missing = "It has not been fitted yet." if asks and not known else ""
            why = "Lobes have come or gone since it was fitted." if stale else missing
            settings = FITTED.get(name, {}) if name != "chain" else {"stages": [list(s) for s in self._stages]}
            views.append(RouterView(
                name, title, sentence, asks, known or not asks, stale, why, name in ("xlora", "arrow"), settings,
                self._fits[name][1] if known else {}, "2026-07-01T09:40:00+00:00" if known else "", working.get(name, ""),
            ))  # fmt: skip
        return views

    def fit_router(
        self, name: str, settings: Mapping[str, Any] | None = None, path: str | None = None, owner: str = ""
    ) -> JobView:
        self._log("fit_router", name, dict(settings or {}), path, owner)
        if name not in ROUTERS:
            raise ConfigError(f"There is no router {name!r}. There are: {', '.join(ROUTERS)}.")
        if not self._lobes:
            raise RoutingError("There is no lobe to learn from. Train one first.")
        if any(j.name == name and j.kind == "router" and j.state in ("queued", "running") for j in self._jobs.values()):
            raise JobError(f"{ROUTERS[name][0]} is being fitted already.")
        return self._queue(JobView("", name, steps=self.steps, config=dict(settings or {}), kind="router"), owner, "Reading rows")

    def stratify(self, low: float, high: float, path: str | None = None) -> dict[str, Any]:
        self._log("stratify", low, high, path)
        if not 0 <= low < high <= 1:
            raise ConfigError(f"low is {low}; it must be a number below high, which is {high}.")
        rows = len(dataset.load(path)) if path else 1566
        counts = {"simple": round(rows * low), "medium": round(rows * (high - low))}
        counts["complex"] = rows - sum(counts.values())
        examples = {
            "simple": ["What is a noun?", "Name a prime <b>number</b>."],
            "medium": ["How does a vaccine protect a child from measles?"],
            "complex": ["Explain, with an example from case law, when duress makes a contract voidable and who has to prove it."],
        }
        profile = {tier: dict(zip(FEATURES, PROFILES[tier], strict=True)) for tier in TIERS if counts[tier]}
        means = {tier: {f: round(20 * v, 1) for f, v in own.items()} for tier, own in profile.items()}
        return {"counts": counts, "examples": {t: examples[t] if counts[t] else [] for t in TIERS}, "means": means,
                "profile": profile, "rows": rows, "low": low, "high": high}  # fmt: skip

    def keyword_terms(self, lobe: str) -> list[tuple[str, float]]:
        self._log("keyword_terms", lobe)
        self._lobe(lobe)
        terms = self._terms.get(lobe, CUES.get(lobe, lobe).split())
        return [(term, round(4.2 - 0.2 * i, 2)) for i, term in enumerate(terms)]

    def set_keyword_terms(self, lobe: str, terms: Sequence[str] | None, owner: str = "") -> None:
        self._log("set_keyword_terms", lobe, terms, owner)
        self._lobe(lobe)
        if terms:
            self._terms[lobe] = list(terms)
        else:
            self._terms.pop(lobe, None)
        self._changed()

    def set_chain(self, stages: Sequence[Sequence[Any]]) -> None:
        self._log("set_chain", [list(s) for s in stages])
        if not stages:
            raise ConfigError("The chain has no stage. Add one.")
        self._stages = [list(s) for s in stages]
        self._changed()

    # train

    def inspect(self, path: Any, mapping: dict[str, str] | None = None) -> dataset.DatasetReport:
        self._log("inspect", path, mapping)
        return dataset.inspect(path, mapping, count_tokens=lambda rows: [len(r.answer) // 4 + 12 for r in rows])

    def train(
        self,
        name: str,
        path: Any,
        config: TrainingConfig | None = None,
        *,
        mapping: Any = None,
        skip_bad: bool = False,
        owner: str = "",
    ) -> JobView:
        config = config or TrainingConfig()
        self._log("train", name, path, config, mapping, skip_bad, owner)
        if not name.strip():
            raise LobeError("The lobe has no name. Give it one, such as 'Medicine'.")
        rows = len(dataset.load(path, mapping, skip_bad))
        return self._queue(JobView("", name, rows=rows, steps=self.steps, config=config.to_json()), owner, "Training")

    def _queue(self, job: JobView, owner: str, phase: str) -> JobView:
        waiting = sum(j.state in ("queued", "running", "stopping") for j in self._jobs.values())
        job = replace(job, id=f"job_{len(self._jobs) + 1:04d}_7f3a", place=waiting or None)
        self._jobs[job.id], self._metrics[job.id], self._owners[job.id] = job, [], owner
        if not waiting:
            base = 2.91 if job.kind == "lobe" else None
            self._put(job.id, state="running", started=job.created, phase=phase, place=None, base_validation_loss=base)
        self._changed()
        return self._jobs[job.id]

    def advance(self, job_id: str, steps: int = 1) -> JobView:
        """Move a running job on; its last step finishes it and makes the lobe."""
        job = self._jobs[job_id]
        for _ in range(steps):
            if job.state != "running" or job.step >= job.steps:
                break
            step = job.step + 1
            if job.kind == "router":
                job = self._fit_step(job, step)
                continue
            loss = 0.6 + 2.4 * math.exp(-3 * step / job.steps) + 0.08 * math.sin(step * 1.7)
            tested = step % max(1, job.steps // 6) == 0
            validation = round(0.75 + 2.1 * math.exp(-3 * step / job.steps), 4) if tested else None
            common = {"step": step, "steps": job.steps, "epoch": 3 * step / job.steps, "loss": round(loss, 4)}
            self._metrics[job_id].append({
                **common, "validation_loss": validation, "learning_rate": 2e-3 * (1 - step / job.steps),
                "grad_norm": 0.9, "tokens": 200 * step, "tokens_per_second": 812.0,
                "seconds": step * 0.5, "seconds_left": (job.steps - step) * 0.5,
            })  # fmt: skip
            best = min(
                (m["validation_loss"] for m in self._metrics[job_id] if m["validation_loss"] is not None), default=None
            )
            job = self._put(
                job_id, **common, validation_loss=validation or job.validation_loss, best_validation_loss=best,
                tokens_per_second=812.0, seconds=step * 0.5, seconds_left=(job.steps - step) * 0.5,
            )  # fmt: skip
        if job.state == "running" and job.step >= job.steps:
            job = self._finish(job_id, "finished")
        return job

    def _fit_step(self, job: JobView, step: int) -> JobView:
        phases = PHASES.get(job.name, ("Calibrating",))
        number = min(len(phases) - 1, (step - 1) * len(phases) // job.steps)
        left = 1 - step / job.steps
        values = {"loss": round(0.2 + (1.8 - 0.4 * number) * left**2 + 0.05 * math.sin(step * 1.9), 4)}
        if step % 4 == 0:
            values |= {"held_out_loss": round(0.3 + 1.6 * left**2, 4), "accuracy": round(0.95 - 0.6 * left**3, 4)}
        record = {"step": step, "steps": job.steps, "phase": phases[number], "values": values}
        self._metrics[job.id].append(record)
        more = {"phase": phases[number], "loss": values["loss"], "seconds": step * 0.1, "seconds_left": (job.steps - step) * 0.1}
        return self._put(job.id, step=step, **more)

    def jobs(self, owner: str = "") -> list[JobView]:
        self._tick()
        return [self._seen(job, owner) for job in reversed(self._jobs.values())]

    def job(self, job_id: str, owner: str = "") -> JobView:
        self._tick()
        return self._seen(self._known(job_id), owner)

    def metrics(self, job_id: str) -> list[dict[str, Any]]:
        self._known(job_id)
        return list(self._metrics[job_id])

    def stop(self, job_id: str, owner: str = "") -> JobView:
        self._log("stop", job_id, owner)
        self._allowed(job_id, owner)
        return self._finish(job_id, "stopped")

    def resume(self, job_id: str, owner: str = "") -> JobView:
        self._log("resume", job_id, owner)
        if self._allowed(job_id, owner).state not in ("stopped", "interrupted", "failed"):
            raise JobError("Only a stopped, interrupted or failed job can be resumed.")
        self._changed()
        self._begun.pop(job_id, None)
        return self._put(job_id, state="running", phase="Training", finished=None)

    def cancel(self, job_id: str, owner: str = "") -> JobView | None:
        self._log("cancel", job_id, owner)
        self._allowed(job_id, owner)
        return self.forget(job_id, owner)

    def move(self, job_id: str, offset: int, owner: str = "") -> JobView:
        self._log("move", job_id, offset, owner)
        job = self._allowed(job_id, owner)
        self._changed()
        return self._put(job_id, place=max(1, (job.place or 1) + offset))

    def forget(self, job_id: str, owner: str = "") -> None:
        self._log("forget", job_id, owner)
        self._allowed(job_id, owner)
        del self._jobs[job_id]
        self._changed()

    def suggested_learning_rate(self) -> float | None:
        return 2e-3 if self._state == "ready" else None

    # manage

    def lobes(self, owner: str = "") -> list[LobeView]:
        return list(self._lobes)

    def memory(self) -> MemoryView:
        pinned = frozenset(lobe.id for lobe in self._lobes if lobe.pinned)
        own = [lobe for lobe in self._lobes if lobe.id in self.resident or lobe.pinned]
        ids = tuple(lobe.id for lobe in own)
        return MemoryView(ids, sum(lobe.nbytes for lobe in own), pinned, self.budget_mib, not self.shared)

    def set_memory_budget(self, mib: float | None) -> None:
        self._log("set_memory_budget", mib)
        self.budget_mib = mib

    def pin(self, name: str, pinned: bool = True) -> None:
        self._log("pin", name, pinned)
        self._lobe(name)
        self._lobes = [replace(lobe, pinned=pinned) if lobe.name == name else lobe for lobe in self._lobes]
        self._changed()

    def rename(self, name: str, new_name: str, owner: str = "") -> None:
        self._log("rename", name, new_name, owner)
        self._lobe(name)
        self._lobes = [replace(l, name=new_name) if l.name == name else l for l in self._lobes]
        self._changed()

    def delete(self, name: str, owner: str = "") -> None:
        self._log("delete", name, owner)
        self._lobe(name)
        self._lobes = [l for l in self._lobes if l.name != name]
        self._changed()

    def save_bundle(self, names: Sequence[str] | None = None) -> Path:
        self._log("save_bundle", names)
        path = Path(mkdtemp()) / "lobes.zip"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("manifest.json", "{}")
        return path

    def load_bundle(self, path: Any, on_clash: str = "rename", owner: str = "") -> list[str]:
        self._log("load_bundle", path, on_clash, owner)
        return [self._add("From a bundle", "bundle").name]

    def import_adapter(self, name: str, path: Any, owner: str = "") -> LobeView:
        self._log("import_adapter", name, path, owner)
        return self._add(
            name, "imported adapter", rows=None, base_validation_loss=None, validation_loss=None, train_loss=None
        )

    def change_base(self, name: str) -> None:
        self._log("change_base", name)
        self._state = "loading"
        self._ready.clear()
        self._changed()

    def restore_demo(self) -> list[str]:
        self._log("restore_demo")
        missing = [n for n in DEMO if n not in {l.name for l in self._lobes}]
        return [self._add(name, "demo").name for name in missing]

    def sample_files(self) -> dict[str, Path]:
        return {p.stem: p for p in sorted(folder("sample_data").glob("*.jsonl")) if p.stem != "routing_test"}

    # inside

    def _log(self, verb: str, *arguments: Any) -> None:
        self.calls.append((verb, arguments))
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error

    def _changed(self) -> None:
        self._version += 1

    def _add(self, name: str, origin: str, **more: Any) -> LobeView:
        number = len(self._lobes) + 1
        lobe = LobeView(f"lobe_{number:04d}", name, PALETTE[(number - 1) % 12], origin=origin, **more)
        self._lobes.append(lobe)
        self._changed()
        return lobe

    def _lobe(self, name: str) -> LobeView:
        for lobe in self._lobes:
            if lobe.name == name:
                return lobe
        raise LobeError(
            f"There is no lobe called {name!r}. There are: {', '.join(l.name for l in self._lobes) or 'none yet'}."
        )

    def _known(self, job_id: str) -> JobView:
        if job_id not in self._jobs:
            raise JobError(f"There is no job {job_id!r}.")
        return self._jobs[job_id]

    def _seen(self, job: JobView, owner: str) -> JobView:
        return replace(job, mine=not self.shared or self._owners[job.id] == owner)

    def _allowed(self, job_id: str, owner: str) -> JobView:
        job = self._seen(self._known(job_id), owner)
        if not job.mine:
            raise JobError("This job belongs to somebody else.")
        return job

    def _put(self, job_id: str, **values: Any) -> JobView:
        self._jobs[job_id] = replace(self._jobs[job_id], **values)
        return self._jobs[job_id]

    def _finish(self, job_id: str, state: str) -> JobView:
        job = self._put(job_id, state=state, finished="2026-07-01T09:40:00+00:00", phase="", seconds_left=None)
        if job.kind == "router" and job.step and state in STOPPED_WELL:
            names = [l.name for l in self._lobes if l.origin != "complexity expert"]
            self._fits[job.name] = (names, REPORTS.get(job.name, {}))
            known = {l.name for l in self._lobes}
            for tier in TIERS if job.name == "complexity" else ():
                if tier not in known:
                    self._add(tier, "complexity expert", rows=None, base_validation_loss=None, validation_loss=None)
        elif job.step:
            self._add(job.name, "trained here", rows=job.rows, validation_loss=job.best_validation_loss)
        waiting = next((j.id for j in self._jobs.values() if j.state == "queued"), None)
        if waiting:
            self._put(
                waiting, state="running", phase="Training", place=None, started=job.finished, base_validation_loss=2.91
            )
        self._changed()
        return self._jobs[job_id]

    def _tick(self) -> None:
        """With live=True running jobs follow the clock, ten steps a second."""
        if self.live:
            for job in [j for j in self._jobs.values() if j.state == "running"]:
                begun = self._begun.setdefault(job.id, time.monotonic() - job.step / 10)
                self.advance(job.id, int((time.monotonic() - begun) * 10) - job.step)


def _cost(decision: RoutingDecision, lobes: Sequence[str], tokens: int, seconds: float, stopped: bool = False) -> Cost:
    cost = Cost.of(
        decision, [n for n in decision.weights if decision.weights[n]], seconds, first_token_ms=21.0, prompt_tokens=14,
        answer_tokens=tokens, resident=tuple(lobes[:3]), resident_bytes=1_400_000 * len(lobes[:3]), stopped=stopped,
    )  # fmt: skip
    return replace(cost, tokens_per_second=41.0)


def _name(index: int) -> str:
    return DEMO[index] if index < len(DEMO) else f"domain {index + 1}"


def _trace(piece: str, names: Sequence[str], best: str | None, place: int) -> TokenTrace:
    """Weights of one token: the chosen lobe leads, its neighbour takes over now and then, more so in late layers."""
    random = np.random.default_rng(place)
    leader = list(names).index(best) if best in names else 0
    if place % 5 == 3 and len(names) > 1:
        leader = (leader + 1) % len(names)
    logits = random.normal(size=(28, len(names)))
    logits[:, leader] += np.linspace(0.5, 4.0, 28)
    layers = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return TokenTrace(piece, {n: float(v) for n, v in zip(names, layers.mean(0), strict=True)}, layers)


def _score(name: str, prompt: str, words: set[str]) -> float:
    """Deterministic and pseudo-random below the threshold; above it for a prompt with one of the lobe's cues."""
    cues = set(CUES.get(name, name).split())
    noise = (sum(map(ord, name + prompt)) * 7919 % 1000) / 1000
    return round(0.62 + 0.2 * noise if words & cues else 0.04 + 0.26 * noise, 3)
