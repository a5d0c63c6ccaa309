"""A Studio without a model: the whole seam, scripted. Used by the UI tests and for looking at the page.

studio = FakeStudio(lobes=6)                # ready at once, six demo lobes
studio = FakeStudio(state="loading")        # studio.become_ready() ends it
studio.fail_next = JobError("…")            # the next call of any verb raises it
job = studio.train("Cooking", path)         # `studio.advance(job.id, 10)` moves it on; live=True moves with the clock
"""

from __future__ import annotations

import math
import re
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from multilobe_ui import dataset
from multilobe_ui.assets import folder
from multilobe_ui.config import SamplingConfig, TrainingConfig
from multilobe_ui.errors import BusyError, ConfigError, JobError, LobeError
from multilobe_ui.routers.base import RoutingDecision, base_decision, manual_decision

AUTOMATIC = "automatic"
BASE_ONLY = "base"

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
    "maths": "rule derivative matrix number angle triangle sum root prime equation",
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
        self._jobs: dict[str, JobView] = {}
        self._metrics: dict[str, list[dict[str, Any]]] = {}
        self._owners: dict[str, str] = {}
        self._begun: dict[str, float] = {}
        self._state, self._version, self._ready = state, 1, threading.Event()
        if state == "ready":
            self._ready.set()

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

    def wait_ready(self, timeout: float | None = None) -> None:
        if not self._ready.wait(timeout):
            raise BusyError("The base model is still loading. Try again in a moment.")

    # chat

    def route(self, prompt: str) -> RoutingDecision:
        self._log("route", prompt)
        if not self._lobes:
            return base_decision(
                "hybrid", "no lobes", "There is no lobe yet, so the base model answers.", elapsed_ms=0.1
            )
        words = set(re.findall(r"[\w;]+", prompt.lower()))
        usable = [l for l in self._lobes if l.usable]
        scores = {l.name: _score(l.name, prompt, words) for l in usable}
        best = max(scores, key=lambda n: scores[n])
        nearest = [
            {"prompt": f"How does a {w} work?", "lobe": best, "score": 0.81 - i / 9}
            for i, w in enumerate(("vaccine", "fever", "<b>x</b>"))
        ]
        shared = {"scores": scores, "threshold": 0.35, "evidence": {"nearest": nearest}, "elapsed_ms": 7.4}
        total = sum(math.exp(8 * s) for s in scores.values()) + math.exp(8 * 0.35)
        odds = {n: math.exp(8 * s) / total for n, s in scores.items()}
        if scores[best] < 0.35:
            sure = 1 - odds[best]
            return base_decision(
                "hybrid",
                "embedding",
                "No lobe was trained on anything like this.",
                **shared,
                probabilities=odds,
                confidence=sure,
            )
        reason = f"The prompt is closest to what {best} was trained on."
        return RoutingDecision(
            "hybrid",
            "embedding",
            probabilities=odds,
            weights={best: 1.0},
            chosen=best,
            confidence=odds[best],
            reason=reason,
            **shared,
        )

    def chat(
        self,
        messages: Sequence[dict[str, str]],
        choice: str = AUTOMATIC,
        sampling: SamplingConfig | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[ChatEvent]:
        self._log("chat", list(messages), choice, sampling)
        self.wait_ready()
        stop = stop or threading.Event()
        if not messages or not messages[-1]["content"].strip():
            raise ConfigError(
                "There is nothing to answer: the last message must be a question with at least one character."
            )
        names = [l.name for l in self._lobes]
        if choice == AUTOMATIC:
            decision = self.route(messages[-1]["content"])
        else:
            decision = manual_decision({} if choice == BASE_ONLY else {choice.removeprefix("lobe:"): 1.0}, names)
        yield ChatEvent("", decision)
        answer = ANSWERS.get(decision.chosen or "", "Good morning! I am well, thank you. What can I do for you today?")
        begun, text = time.perf_counter(), ""
        words = answer.split(" ")
        for i, word in enumerate(words):
            if stop.is_set():
                yield ChatEvent(text, decision, True, True, 14, i, 0.2, 40.0, 21.0)
                return
            time.sleep(self.delay)
            text += (" " if i else "") + word
            yield ChatEvent(text, decision, False, False, 14, i + 1, time.perf_counter() - begun, 41.0, 21.0)
        yield ChatEvent(text, decision, True, False, 14, len(words), time.perf_counter() - begun, 41.0, 21.0)

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
        waiting = sum(j.state in ("queued", "running", "stopping") for j in self._jobs.values())
        job = JobView(
            f"job_{len(self._jobs) + 1:04d}_7f3a",
            name,
            rows=rows,
            steps=self.steps,
            config=config.to_json(),
            place=waiting or None,
        )
        self._jobs[job.id], self._metrics[job.id], self._owners[job.id] = job, [], owner
        if not waiting:
            self._put(
                job.id, state="running", started=job.created, phase="Training", place=None, base_validation_loss=2.91
            )
        self._changed()
        return self._jobs[job.id]

    def advance(self, job_id: str, steps: int = 1) -> JobView:
        """Move a running job on; its last step finishes it and makes the lobe."""
        job = self._jobs[job_id]
        for _ in range(steps):
            if job.state != "running" or job.step >= job.steps:
                break
            step = job.step + 1
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
        if job.step:
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


def _name(index: int) -> str:
    return DEMO[index] if index < len(DEMO) else f"domain {index + 1}"


def _score(name: str, prompt: str, words: set[str]) -> float:
    """Deterministic and pseudo-random below the threshold; above it for a prompt with one of the lobe's cues."""
    cues = set(CUES.get(name, name).split())
    noise = (sum(map(ord, name + prompt)) * 7919 % 1000) / 1000
    return round(0.62 + 0.2 * noise if words & cues else 0.04 + 0.26 * noise, 3)
