"""Studio: the one object that the page sees. It holds what the process shares: the model, the training jobs, the home folder.

Every verb of the app is a method here that takes and returns plain values and raises only `MultiLobeError`. Torch is imported
by the thread that loads the model, so that the page can answer long before the model does.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from ..assets import demo_bundle, sample_files
from ..data import dataset
from ..data.examples import Example
from ..data.formats import sniff
from ..errors import BackboneError, BusyError, ConfigError, JobError, LobeError, MultiLobeError
from ..evaluation.compare import AUTOMATIC, BASE_ONLY, MIX, Column
from ..files import made_home, read_json, write_json
from ..lobes.store import Lobe, LobeStore
from ..routers.fitted import without_lobes
from ..routing.decision import AUTO, Mixing, RoutingDecision
from ..routing.fits import Fit
from ..routing.map import PromptMap
from ..routing.router import Router
from ..settings import (
    SamplingConfig,
    TrainingConfig,
    budget_from_environment,
    from_json,
    settings_of,
    suggested_learning_rate,
)
from .feedback import Feedback
from .jobs import ENDED, Job, JobHandle, Jobs, JobSpec
from .lab import Lab
from .ledger import Ledger
from .views import ChatEvent, JobView, LobeView, MemoryView, RouterView, StudioStatus

if TYPE_CHECKING:
    from ..model import MultiLobeModel

BUILTIN = "builtin"
KEPT_BUNDLES = 20
LOADING = "The base model is still loading."
NEW_TERM_WEIGHT = 3.0
"""Of a word that a person adds to a lobe: e to the 3 is 20 times the odds."""

PALETTE = (
    "#e5484d", "#c9880b", "#2f8fe0", "#8e5bd9", "#1f9d6b", "#d6498f",
    "#6d8f1f", "#c2632d", "#16a0a0", "#5966e0", "#a3752c", "#b14fc0",
)  # fmt: skip
"""A lobe keeps the colour of its number for life; mid tones that can be told apart on light and dark grounds."""

log = logging.getLogger(__name__)
N = TypeVar("N", int, float)


class Studio:
    """See the module's text.

    Args:
        home: where lobes, jobs and calibrations live; None is MULTILOBE_HOME, else ~/.multilobe.
        base: name of the base model; None takes the one chosen last, else the built-in one.
        shared: people may touch only what is theirs; None is true on Hugging Face Spaces and where MULTILOBE_SHARED=1.
        demo: install the ready-made demo lobes into a new home.
        memory_budget_mib: MiB that lobes may take in memory; None is MULTILOBE_MEMORY_MIB, else what was last set for the home.

    Raises:
        ConfigError: a budget that is no number above 0; a home that cannot be made.
    """

    def __init__(
        self,
        home: str | Path | None = None,
        base: str | None = None,
        *,
        shared: bool | None = None,
        demo: bool = True,
        memory_budget_mib: float | None = None,
    ) -> None:
        self._budget_mib = memory_budget_mib if memory_budget_mib is not None else budget_from_environment()
        self.home = made_home(home)
        self.shared = _is_shared() if shared is None else shared
        self._demo = demo
        self._base_name = base or self._remembered_base() or BUILTIN
        self._store = LobeStore(self.home / "lobes")
        self._model: MultiLobeModel | None = None
        self._state: Literal["loading", "ready", "failed"] = "loading"
        self._message = f"Loading {_spoken(self._base_name)}…"
        self._changes = 0
        self._lock = threading.RLock()
        self._loaded = threading.Event()
        self._jobs = Jobs(self.home / "jobs", self._run_job)
        self.feedback_file = Feedback(self.home / "feedback.jsonl")
        self.ledger = Ledger(self.home / "ledger.jsonl")
        files = (self.feedback_file, self.ledger)
        self.lab = Lab(self._jobs, self._ready, self._job_view, lambda: self._base_name, self.shared, *files)

    # ---- loading ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Load the base model and its lobes in the background, and begin to work on queued jobs; returns at once."""
        threading.Thread(target=self._load, args=(self._base_name,), name="load-base", daemon=True).start()
        self._jobs.start()

    def close(self) -> None:
        """Let a running job keep its checkpoint, to be resumed another day."""
        self._jobs.close()

    def status(self) -> StudioStatus:
        with self._lock:
            model, base = self._model, None
            if model is not None:
                from ..base.backbone import describe

                base = describe(model.backbone)
            count = len(model.lobes) if model else len(self._store.all())
            version = self._changes + self._jobs.version + (model.routers.version if model else 0)
            return StudioStatus(self._state, self._message, base, count, version)

    def wait_ready(self, timeout: float | None = None) -> None:
        """Return when the model is loaded.

        Raises:
            BackboneError: it failed. BusyError: it takes longer than `timeout` seconds.
        """
        self._ready(timeout)

    def change_base(self, name: str) -> None:
        """Load another base model in the background: "builtin", a folder, or a hub id. The present one answers until then.

        Raises:
            ConfigError: the server is shared, or no name. BusyError: a lobe is training, or a base is loading.
        """
        name = str(name).strip()
        if self.shared:
            raise ConfigError("This server is shared, so its base model stays. Run your own copy to choose another.")
        if not name or len(name) > 500:
            raise ConfigError("The base model needs a name: 'builtin', a folder, or a hub id such as 'gpt2'.")
        if any(job.state in ("running", "stopping") for job in self._jobs.list()):
            raise BusyError("A lobe is training on the present base model. Stop it, or wait until it has finished.")
        with self._lock:
            if self._state == "loading":
                raise BusyError("A base model is being loaded. Wait until it is ready.")
            self._set_state("loading", f"Loading {_spoken(name)}…")
        threading.Thread(target=self._load, args=(name,), name="load-base", daemon=True).start()

    def _load(self, name: str) -> None:
        try:
            from ..base.backbone import choose_threads
            from ..model import MultiLobeModel

            model = MultiLobeModel.from_pretrained(name, home=self.home, memory_budget_mib=self._budget_mib)
            choose_threads(model.backbone, in_a_crowd=True)
            self._install_demo(model)
            with self._lock:
                self._model, self._base_name, self._store = model, name, model.lobes.store
                self._set_state("loading", "Preparing the router…")
            self._loaded.set()
            model.routers.prepare()
            if model.lobes:
                model.route("ready")  # what a router makes at its first question, so that nobody waits for it: a second or more
            write_json(self.home / "settings.json", {"base": name})
            self._set_state("ready", f"{_spoken(name).capitalize()} is ready.")
        except MultiLobeError as error:
            self._loading_failed(str(error))
        except Exception as error:
            log.exception("loading %s failed", name)
            self._loading_failed(
                f"The base model {name!r} cannot be loaded ({type(error).__name__}); the log says more."
            )

    def _loading_failed(self, why: str) -> None:
        with self._lock:
            if self._model is not None:  # the old base goes on
                self._set_state("ready", f"{why} {_spoken(self._base_name).capitalize()} goes on answering.")
            else:
                self._set_state("failed", why)
        self._loaded.set()

    def _install_demo(self, model: MultiLobeModel) -> None:
        """Once in a home: whoever deletes a demo lobe has done so for good."""
        mark = self.home / "demo_installed.json"
        if self._demo and model.backbone.name == BUILTIN and not mark.exists() and demo_bundle().is_dir():
            model.load_bundle(demo_bundle())
            write_json(mark, {"installed": True})

    def _set_state(self, state: Literal["loading", "ready", "failed"], message: str) -> None:
        with self._lock:
            self._state, self._message = state, message
            self._changes += 1

    def _ready(self, timeout: float | None = 120.0) -> MultiLobeModel:
        """The model, waited for. What needs torch is imported after this call, never before: two threads that import it at once
        see each other's half-made modules, and the base would fail to load."""
        if not self._loaded.wait(timeout):
            raise BusyError(f"{self._message} It takes longer than usual; try again in a moment.")
        with self._lock:
            if self._model is None:
                raise BackboneError(self._message)
            return self._model

    def _remembered_base(self) -> str | None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return str(read_json(self.home / "settings.json")["base"])
        return None

    # ---- chat -------------------------------------------------------------------------------------------------------------

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        choice: str = AUTOMATIC,
        sampling: SamplingConfig | None = None,
        stop: threading.Event | None = None,
        *,
        router: str | None = None,
        mixing: Mixing = AUTO,
        weights: Mapping[str, float] | None = None,
    ) -> Iterator[ChatEvent]:
        """Answer the last message: first an event with the decision, then the growing text, last one that is done.

        Args:
            choice: AUTOMATIC, BASE_ONLY, "lobe:NAME", or MIX. stop: set it to end early.
            router: who decides if the choice is AUTOMATIC; None is the default. mixing: how many lobes it may choose.
            weights: by lobe name, if the choice is MIX.

        Raises:
            MultiLobeError: the lobe is gone, the message empty or too long, or the model not to be had.
        """
        column = Column(choice, router, mixing, weights or {})
        model, how = self._ready(), sampling or SamplingConfig()
        from .answering import Answering

        answering = Answering(model, messages, column, how, stop, self.ledger.add, together=self.shared)
        yield from answering.events()

    def feedback(self, prompt: str, answer: str, decision: RoutingDecision | None, liked: bool) -> None:
        """Keep a thumb up or down, as a line of `feedback.jsonl` in the home: later a training set, or labelled routing data."""
        self.feedback_file.thumb(prompt, answer, decision.chosen if decision else None, liked)

    # ---- train ------------------------------------------------------------------------------------------------------------

    def inspect(
        self, path: str | Path, mapping: Mapping[str, str] | None = None, progress: Callable[[int], None] | None = None
    ) -> dataset.DatasetReport:
        """What a file is; token lengths only once the base model is there."""
        model = self._model
        count_tokens = None
        if model is not None:
            backbone = model.backbone

            def count_tokens(rows: Sequence[Example]) -> list[int]:
                return [len(backbone.encode_chat(r.context)) + len(backbone.encode_answer(r.answer)) for r in rows]

        return dataset.inspect(path, mapping, count_tokens, progress=progress)

    def train(
        self,
        name: str,
        path: str | Path,
        config: TrainingConfig | None = None,
        *,
        mapping: Mapping[str, str] | None = None,
        skip_bad: bool = False,
        owner: str = "",
        data_name: str = "",
    ) -> JobView:
        """Queue a training run; the file is copied.

        Raises:
            LobeError: the name is refused, taken, or waiting in the queue. DataError: the file's kind is not known.
        """
        name = self._store.check_free(name)
        for job in self._jobs.list():
            if job.state not in ENDED and job.spec.name.casefold() == name.casefold():
                raise LobeError(f"A lobe called {name!r} is being trained already. Choose another name.")
        sniff(path, mapping)
        config = config or TrainingConfig()
        spec = JobSpec(
            name=name,
            config=config.to_json(),
            owner=owner,
            data_name=data_name or Path(path).name,
            mapping=dict(mapping) if mapping else None,
            skip_bad=skip_bad,
            extra={"base": self._base_name},
        )
        return self._job_view(self._jobs.submit(spec, Path(path)), owner)

    def jobs(self, owner: str = "") -> list[JobView]:
        """All jobs, newest first."""
        return [self._job_view(job, owner) for job in self._jobs.list()]

    def job(self, job_id: str, owner: str = "") -> JobView:
        """Raises JobError if there is none."""
        return self._job_view(self._jobs.get(job_id), owner)

    def metrics(self, job_id: str) -> list[dict[str, Any]]:
        """The job's StepRecords as JSON, oldest first; do not change them."""
        return self._jobs.metrics(job_id)

    def stop(self, job_id: str, owner: str = "") -> JobView:
        """Stop after the step under way and keep what has been learned by then."""
        self._check_job(job_id, owner)
        return self._job_view(self._jobs.stop(job_id), owner)

    def resume(self, job_id: str, owner: str = "") -> JobView:
        """Go on from the checkpoint."""
        self._check_job(job_id, owner)
        return self._job_view(self._jobs.resume(job_id), owner)

    def cancel(self, job_id: str, owner: str = "") -> JobView:
        """Take a job out of the queue."""
        self._check_job(job_id, owner)
        return self._job_view(self._jobs.cancel(job_id), owner)

    def move(self, job_id: str, offset: int, owner: str = "") -> JobView:
        """Move a queued job by so many places (negative: sooner)."""
        self._check_job(job_id, owner)
        return self._job_view(self._jobs.move(job_id, offset), owner)

    def forget(self, job_id: str, owner: str = "") -> None:
        """Delete a run's record and checkpoint; the lobe that it made stays."""
        self._check_job(job_id, owner)
        self._jobs.forget(job_id)

    def suggested_learning_rate(self) -> float | None:
        """What an empty learning rate means on this base; None while it is loading."""
        model = self._model
        return suggested_learning_rate(model.backbone.hidden_size) if model else None

    def _run_job(self, handle: JobHandle) -> str:
        """What the jobs' thread does for a job, with every record written down."""
        model, job = self._ready(None), handle.job
        wanted = job.spec.extra.get("base", model.backbone.name)
        if wanted != model.backbone.name:
            raise JobError(f"This run belongs to the base model {wanted!r}. Load that one under Manage, then resume.")
        if job.spec.kind == "router":
            return self._fit(model, handle, job)
        if job.spec.kind == "lab":
            self.lab.run(model, handle)
            return ""
        handle.truncate_metrics(_checkpoint_step(handle.checkpoint))
        earlier = next((lobe for lobe in model.lobes.store.all() if job.id == lobe.card.data.get("run")), None)
        if earlier is None and job.lobe_id:
            earlier = next((lobe for lobe in model.lobes.store.all() if lobe.id == job.lobe_id), None)
        run = model.train(
            earlier.name if earlier else job.spec.name,
            handle.data,
            from_json(TrainingConfig, job.spec.config),
            mapping=job.spec.mapping,
            skip_bad=job.spec.skip_bad,
            checkpoint=handle.checkpoint,
            stop=handle.stop,
            replaces=earlier.id if earlier else "",
            data_name=job.spec.data_name,
            owner=job.spec.owner,
            run=job.id,
        )
        try:
            while not handle.closing:
                event = next(run)
                handle.phase(event) if isinstance(event, str) else handle.record(event.to_json())
        except StopIteration as end:
            lobe = cast(Lobe, end.value)
            handle.update(rows=lobe.card.data.get("rows"))
            return lobe.id
        run.close()
        return job.lobe_id

    @staticmethod
    def _fit(model: MultiLobeModel, handle: JobHandle, job: Job) -> str:
        """Fit a router; it has no checkpoint, so a resumed fit begins anew."""
        handle.truncate_metrics(-1)
        settings = dict(job.spec.config)
        if handle.data.is_file():
            settings["rows"] = dataset.pairs(handle.data)
        handle.follow(model.routers.fitting(job.spec.name, settings, handle.stop, owner=job.spec.owner))
        return ""

    def _check_job(self, job_id: str, owner: str) -> None:
        job = self._jobs.get(job_id)
        if self.shared and job.spec.owner != owner:
            raise JobError(f"The run {job.spec.name!r} belongs to somebody else, so only they can change it.")

    def _job_view(self, job: Job, owner: str) -> JobView:
        latest = job.latest
        return JobView(
            id=job.id,
            name=job.spec.name,
            state=job.state,
            created=job.created,
            started=job.started or None,
            finished=job.finished or None,
            rows=job.rows,
            step=int(latest.get("step", 0)),
            steps=int(latest.get("steps", 0)),
            epoch=float(latest.get("epoch", 0.0)),
            loss=latest.get("loss"),
            validation_loss=latest.get("validation_loss"),
            best_validation_loss=job.best_validation_loss,
            base_validation_loss=job.base_validation_loss,
            tokens_per_second=float(latest.get("tokens_per_second", 0.0)),
            seconds_left=latest.get("seconds_left"),
            seconds=float(latest.get("seconds", 0.0)),
            error=job.error,
            place=job.place,
            mine=not self.shared or job.spec.owner == owner,
            config=job.spec.config,
            phase=job.phase,
            kind=job.spec.kind,
        )

    # ---- routers ----------------------------------------------------------------------------------------------------------

    def routers(self, owner: str = "") -> list[RouterView]:
        """Every router, the default first; while the base is loading, none can be used."""
        model = self._model
        if model is None:
            return [_router_view(router, None, False, LOADING, "") for router in without_lobes()]
        busy = {job.spec.name: job.id for job in self._jobs.list() if job.spec.kind == "router" and job.state not in ENDED}
        return [self._router_view(model, name, busy.get(name, "")) for name in model.routers.names]

    def route(self, prompt: str, router: str | None = None, mixing: Mixing | None = None) -> RoutingDecision:
        """Decide without answering."""
        return self._ready().route(prompt, router, mixing or AUTO)

    def compare_routers(self, prompt: str) -> list[RoutingDecision]:
        """What every router that can be used decides, the default first."""
        return [self.route(prompt, view.name) for view in self.routers() if view.fitted]

    def fit_router(
        self,
        name: str,
        settings: Mapping[str, Any] | None = None,
        path: str | Path | None = None,
        owner: str = "",
        *,
        data_name: str = "",
    ) -> JobView:
        """Queue the fit of a router from the lobes' rows, or (complexity) from those of a file, which is copied.

        Raises:
            ConfigError: no such router or setting, or a shared server where it would make lobes. JobError: it is being fitted.
        """
        router = self._ready().routers.named(name)
        if self.shared and (router.name == "complexity" or path is not None):
            raise ConfigError(
                "This server is shared, so it trains no experts for complexity. Run your own copy for that."
            )
        if any(view.name == name and view.job_id for view in self.routers()):
            raise JobError(f"The router {router.title!r} is being fitted already. Wait, or stop that fit.")
        if router.settings is not None:
            settings_of(router.settings, settings or {})
        if path is not None:
            sniff(path, None)
        spec = JobSpec(
            name=name,
            config=dict(settings or {}),
            owner=owner,
            data_name=data_name or (Path(path).name if path else ""),
            extra={"base": self._base_name},
            kind="router",
        )
        return self._job_view(self._jobs.submit(spec, Path(path) if path else None), owner)

    def stratify(self, low: float = 0.3, high: float = 0.7, path: str | Path | None = None) -> dict[str, Any]:
        """How the lobes' prompts, or those of a file, fall into simple, medium and complex: {"rows", "counts", "examples",
        "means" of the features, "parser"}, each by tier."""
        from ..routers.complexity.features import Analyser, check_thresholds

        check_thresholds(low, high)
        prompts = [row.prompt for row in dataset.load(path)] if path else self._ready().routers.contexts.prompts()
        if not prompts:
            raise ConfigError("No lobe came with rows to look at. Train a lobe, or choose a file.")
        return {"rows": len(prompts), **Analyser().stratify(prompts, low, high).to_json()}

    def keyword_terms(self, lobe: str) -> list[tuple[str, float]]:
        """A lobe's words and their weights, the weightiest first."""
        return list(self._keyword().terms().get(self._store.by_name(lobe).name, {}).items())

    def set_keyword_terms(self, lobe: str, terms: Sequence[str] | None, owner: str = "") -> list[tuple[str, float]]:
        """A person's words for a lobe; those that it had keep their weight. None, or no words, learns them again."""
        self._not_shared("the words of the keyword router")
        name, known = self._store.by_name(lobe).name, dict(self.keyword_terms(lobe))
        chosen = {term: known.get(term, NEW_TERM_WEIGHT) for term in terms or ()}

        def change(router: Any) -> None:
            router.set_terms(name, chosen or None)
            if not chosen:
                router.fit()

        self._ready().routers.change("keyword", change)
        self._set_changed()
        return self.keyword_terms(lobe)

    def set_chain(self, stages: Sequence[Sequence[Any]]) -> None:
        """The stages of the chain router in their order: (router, probability from which it decides)."""
        self._not_shared("the chain of routers")
        self._ready().routers.change("chain", lambda router: cast(Any, router).set_stages(stages))
        self._set_changed()

    def prompt_map(self, prompt: str = "") -> PromptMap:
        """Where a prompt lies among the lobes' rows."""
        from ..routing.map import prompt_map

        context = self._ready().routers.context()
        return prompt_map(context.rows, context.embed([prompt])[0] if prompt.strip() else None)

    def _keyword(self) -> Any:
        return self._ready().routers.named("keyword")

    def _not_shared(self, what: str) -> None:
        if self.shared:
            raise ConfigError(f"This server is shared, so {what} cannot be changed. Run your own copy to do so.")

    def _set_changed(self) -> None:
        with self._lock:
            self._changes += 1

    @staticmethod
    def _router_view(model: MultiLobeModel, name: str, job_id: str) -> RouterView:
        router, stale, why = model.routers.named(name), model.routers.is_stale(name), ""
        if not router.is_fitted:
            why = "It has not been fitted yet." if model.lobes else "There is no lobe yet to learn from."
        elif stale:
            why = "Lobes or corrections have changed since it was fitted: fit it again, so that it knows them."
        return _router_view(router, model.routers.fit_of(name), stale, why, job_id)

    # ---- manage -----------------------------------------------------------------------------------------------------------

    def lobes(self, owner: str = "") -> list[LobeView]:
        """Every lobe in the home, oldest first; those of another base are not usable now."""
        return [self._lobe_view(lobe, owner) for lobe in self._store.all()]

    def rename(self, name: str, new_name: str, owner: str = "") -> None:
        self._check_lobe(name, owner)
        self._ready().rename_lobe(name, new_name)

    def delete(self, name: str, owner: str = "") -> None:
        self._check_lobe(name, owner)
        self._ready().remove_lobe(name)

    def memory(self) -> MemoryView:
        """What lobes take in memory; nothing while the base is loading."""
        model = self._model
        if model is None:
            return MemoryView((), 0, frozenset(), self._budget_mib, not self.shared)
        bank = model.bank
        return MemoryView(bank.resident, bank.resident_bytes, bank.pinned, model.memory.budget_mib, not self.shared)

    def set_memory_budget(self, mib: float | None) -> None:
        """MiB that lobes may take in memory; None is no limit. What is over it is given back at once.

        Raises:
            ConfigError: the server is shared, or it is not above 0.
        """
        self._not_shared("what lobes may take in memory")
        self._ready().memory.set_budget(mib)
        self._budget_mib = mib  # another base that is loaded later keeps to it

    def pin(self, name: str, pinned: bool = True) -> None:
        """Keep a lobe in memory, from now on and after a restart, or no longer.

        Raises:
            ConfigError: the server is shared. LobeError: no such lobe on this base. AdapterError: it is damaged.
        """
        self._not_shared("which lobes stay in memory")
        model = self._ready()
        id = model.lobes.named(name).id
        if pinned:
            model.memory.pin(id)
        else:
            model.memory.unpin(id)
        self._set_changed()

    def save_bundle(self, names: Sequence[str] | None = None) -> Path:
        """A zip of all lobes or those named, in a temporary folder from which the page may hand it out."""
        folder = Path(tempfile.gettempdir()) / "multilobe-bundles"
        folder.mkdir(exist_ok=True)
        made = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in made[: -KEPT_BUNDLES or None]:
            shutil.rmtree(old, ignore_errors=True)
        place = Path(tempfile.mkdtemp(dir=folder))
        return self._ready().save(place / f"multilobe-{time.strftime('%Y%m%d-%H%M%S')}.zip", names or None)

    def load_bundle(self, path: str | Path, on_clash: str = "rename", owner: str = "") -> list[str]:
        """Add the lobes of a bundle; returns their names."""
        if on_clash not in ("refuse", "rename", "replace"):
            raise ConfigError(f"on_clash is {on_clash!r}: it must be 'refuse', 'rename' or 'replace'.")
        if self.shared and on_clash == "replace":
            raise ConfigError("This server is shared, so a bundle cannot replace lobes. Choose 'rename' or 'refuse'.")
        clash = cast(Literal["refuse", "rename", "replace"], on_clash)
        return [lobe.name for lobe in self._ready().load_bundle(path, clash, owner=owner, settings=not self.shared)]

    def import_adapter(self, name: str, path: str | Path, owner: str = "") -> LobeView:
        """A new lobe from any PEFT LoRA adapter, folder or zip."""
        return self._lobe_view(self._ready().import_adapter(name, path, owner=owner), owner)

    def restore_demo(self) -> list[str]:
        """Bring back the demo lobes that are gone; returns their names."""
        model = self._ready()
        if model.backbone.name != BUILTIN or not demo_bundle().is_dir():
            raise ConfigError("The demo lobes belong to the built-in base model. Load that one first.")
        before = {lobe.name.casefold() for lobe in model.lobes.store.all()}
        with _demo_without(before) as missing:
            return [lobe.name for lobe in model.load_bundle(missing)] if missing else []

    def sample_files(self) -> dict[str, Path]:
        return sample_files()

    def _check_lobe(self, name: str, owner: str) -> None:
        lobe = self._store.by_name(name)
        if self.shared and not (owner and lobe.card.owner == owner):
            raise LobeError(f"The lobe {lobe.name!r} belongs to somebody else or to the demo, so it stays as it is.")

    def _lobe_view(self, lobe: Lobe, owner: str) -> LobeView:
        card, model = lobe.card, self._model
        training = card.training
        return LobeView(
            id=lobe.id,
            name=lobe.name,
            colour=PALETTE[(int(lobe.id.removeprefix("lobe_")) - 1) % len(PALETTE)],
            rows=_number(card.data.get("rows"), int),
            r=_number(card.adapter.get("r"), int) or 0,
            nbytes=_number(card.adapter.get("bytes"), int) or 0,
            base_validation_loss=_number(training.get("base_validation_loss"), float),
            validation_loss=_number(training.get("validation_loss"), float),
            train_loss=_number(training.get("train_loss"), float),
            created=card.created,
            base=card.base.get("name", ""),
            usable=model is None or lobe.id in model.bank,
            origin=card.origin,
            target_modules=tuple(map(str, card.adapter.get("target_modules") or ())),
            protected=self.shared and not (owner and card.owner == owner),
            fault=model.lobes.fault(lobe.id) if model else "",
            pinned=model is not None and model.memory.is_pinned(lobe.id),
        )


def _router_view(router: Router, fit: Fit | None, stale: bool, why: str, job_id: str) -> RouterView:
    usable = router.is_fitted and why != LOADING
    return RouterView(
        name=router.name,
        title=router.title,
        sentence=router.sentence,
        asks_for_fit=router.asks_for_fit,
        fitted=usable,
        stale=stale,
        why=why,
        per_token=router.per_token,
        settings=router.present_settings,
        report=fit.report if fit else {},
        fitted_at=fit.created if fit and usable else "",
        job_id=job_id,
        experimental=bool(getattr(router, "experimental", False)),
    )


def _is_shared() -> bool:
    return os.environ.get("MULTILOBE_SHARED", "") == "1" or os.environ.get("SYSTEM") == "spaces"


def _number(value: Any, kind: Callable[[Any], N]) -> N | None:
    """A number from a card, which may be a stranger's; None for anything else."""
    return kind(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _spoken(base: str) -> str:
    return "the built-in base model" if base == BUILTIN else f"the base model {base}"


def _checkpoint_step(checkpoint: Path) -> int:
    """Step of a checkpoint, -1 if there is none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(read_json(checkpoint / "state.json")["step"])
    return -1


@contextmanager
def _demo_without(names: set[str]) -> Iterator[Path | None]:
    """A copy of the demo bundle without the lobes of these (casefolded) names; None if none is left."""
    with tempfile.TemporaryDirectory(prefix="multilobe-demo-") as scratch:
        copy = Path(scratch) / "bundle"
        shutil.copytree(demo_bundle(), copy)
        manifest = read_json(copy / "bundle.json")
        manifest["lobes"] = [entry for entry in manifest["lobes"] if entry["name"].casefold() not in names]
        kept = {entry["folder"] for entry in manifest["lobes"]}
        for folder in (copy / "lobes").iterdir():
            if folder.name not in kept:
                shutil.rmtree(folder)
        write_json(copy / "bundle.json", manifest)
        yield copy if kept else None


__all__ = ["AUTOMATIC", "BASE_ONLY", "MIX", "ChatEvent", "JobView", "LobeView", "MemoryView", "Studio", "StudioStatus"]
