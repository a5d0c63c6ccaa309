"""MultiLobeModel: the public Python API. One base model, its lobes, a router, and the verbs: train, route, generate, save, load."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, overload

import numpy as np
from torch import Tensor

from .assets import MINILM_NAMES
from .base.backbone import BUILTIN, Backbone, Messages, describe
from .bundles import bundle
from .data import dataset
from .data.examples import Example
from .data.formats import Source
from .data.held_out import held_out_share
from .errors import AdapterError, BackboneError, ConfigError, LobeError, MultiLobeError
from .generation.batch import RunningBatch
from .generation.decode import Request, generate_tokens, prepare, stream_text
from .lobes.adapter import AdapterHeader, check_fits, read_header, read_matrices
from .lobes.bank import LobeBank
from .lobes.card import Card, now, read_card
from .lobes.memory import Residency
from .lobes.row_memory import RowsOfLobes
from .lobes.rows import (
    PROMPTS_FILE,
    ROUTING_FILE,
    Vector,
    are_unit,
    prototypes_of,
    read_rows,
    sound_rows,
    write_routing_rows,
)
from .lobes.store import Lobe, LobeStore
from .progress import Progress, finish
from .routers import ROUTERS, Router, RoutingContext, RoutingDecision, RoutingRows
from .routers.fitted import Routing
from .routing.corrections import Correction, Corrections, corrected
from .routing.decision import AUTO, Mixing, manual_decision
from .routing.encoder import Embedder, generic_prompts, generic_vectors
from .routing.fits import Fit, Key
from .routing.router import FitOutcome
from .routing.scores import MeanHidden, PromptScores
from .settings import SamplingConfig, TrainingConfig, check, settings_of
from .training.lobe import StepRecord, TrainingResult, train_lobe

ROUTING_TRAIN_ROWS = 512
ROUTING_VALIDATION_ROWS = 64
FEW_WORDS = 4
MINILM_WIDTH = 768
"""Numbers in a vector of all-MiniLM-L6-v2."""


class MultiLobeModel:
    """A frozen base model with any number of lobes, and a router that chooses among them.

    Methods may be called from several threads; training one lobe does not disturb answers from the others.

    Attributes:
        backbone: the base. bank: its lobes, ready to run. serving: answers decoded together.
        embedder: the routers' sentence encoder. routing: the routers. residency: which lobes stay in memory.
        home: folder of the lobes; a temporary one unless it was given.
        broken: why lobes of the home cannot be used, by their ids: damaged files.
        version: rises whenever lobes or routing change.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        home: Path | None = None,
        embedder: Embedder | None = None,
        embedding_threshold: float | str | None = "auto",
        logprob_max_tokens: int = 30,
        router: str = "hybrid",
        memory_budget_mib: float | None = None,
    ) -> None:
        check(router in ROUTERS, "router", router, f"one of {', '.join(ROUTERS)}")
        check(logprob_max_tokens >= 1, "logprob_max_tokens", logprob_max_tokens, "at least 1")
        self._threshold = _threshold(embedding_threshold)
        self._temporary = tempfile.TemporaryDirectory(prefix="multilobe-") if home is None else None
        self.home = Path(self._temporary.name) if self._temporary else Path(cast(Path, home))
        self.backbone = backbone
        self.embedder = embedder or Embedder()
        self.bank = LobeBank(backbone)
        self.serving = RunningBatch(self.bank)
        self._scores = PromptScores(self.bank, logprob_max_tokens)
        self._hidden = MeanHidden(self.bank, self._scores)
        self.store = LobeStore(self.home / "lobes")
        self.corrections = Corrections(self.home / "corrections.json")
        self.broken: dict[str, str] = dict(self.store.broken)
        self.version = 0
        self._lock = threading.RLock()
        self._rows = RowsOfLobes(self._usable_rows, self._trusts)
        self._width: int | None = None
        self._generic = generic_prompts()
        self.residency = Residency(self.home / "memory.json", self.bank, memory_budget_mib)
        for lobe in self.store.all():
            self._register(lobe)
        places = self.home / "routing" / backbone.fingerprint
        self.routing = Routing(places, self.routing_context, self.routing_key, router, self._threshold)

    @classmethod
    def from_pretrained(
        cls,
        model_name: str = BUILTIN,
        device: str | None = None,
        embedding_model: str = MINILM_NAMES[0],
        embedding_threshold: float | str | None = "auto",
        logprob_max_tokens: int = 30,
        *,
        home: str | Path | None = None,
        router: str = "hybrid",
        memory_budget_mib: float | None = None,
        **model_kwargs: Any,
    ) -> MultiLobeModel:
        """Load a base model, without lobes unless `home` has some.

        Args:
            model_name: "builtin", a folder, or a hub id of any causal language model of transformers.
            device: None takes CUDA, else MPS, else the CPU.
            embedding_model: a sentence-transformers model; the default needs no network.
            embedding_threshold: "auto" calibrates on the lobes' rows; a number is the embedding score that a lobe must reach
                to be chosen without asking the language model.
            logprob_max_tokens: tokens of a prompt that stage 2 reads.
            router: which of `routers.ROUTERS` routes where none is named.
            home: where lobes live; None is a temporary folder that goes with the object.
            memory_budget_mib: memory for lobes beside the base; those used longest ago leave first, to be read again when they
                are needed. None is what was last set for this home, at first no limit.
            model_kwargs: for `AutoModelForCausalLM.from_pretrained`, such as dtype or quantization_config.
        """
        backbone = Backbone.from_pretrained(model_name, device=device, **model_kwargs)
        return cls(
            backbone,
            home=Path(home) if home else None,
            embedder=Embedder(embedding_model, device),
            embedding_threshold=embedding_threshold,
            logprob_max_tokens=logprob_max_tokens,
            router=router,
            memory_budget_mib=memory_budget_mib,
        )

    # ---- lobes ------------------------------------------------------------------------------------------------------------

    @property
    def lobes(self) -> list[Lobe]:
        """The lobes that fit this base, oldest first."""
        return [lobe for lobe in self.store.all() if lobe.id in self.bank]

    @property
    def router(self) -> Router:
        """The router that routes where none is named."""
        return self.routing.named()

    @property
    def lobe_names(self) -> list[str]:
        return [lobe.name for lobe in self.lobes]

    def list_lobes(self) -> list[dict[str, Any]]:
        """What each lobe's card says, as JSON values."""
        return [{"id": lobe.id, **lobe.card.to_json()} for lobe in self.lobes]

    def add_lobe(
        self,
        name: str,
        dataset: Source,
        epochs: int | None = None,
        lora_r: int = 16,
        lora_alpha: int = 32,
        lora_dropout: float = 0.05,
        target_modules: Sequence[str] | str | None = None,
        batch_size: int = 4,
        learning_rate: float | None = None,
        max_length: int = 512,
        *,
        mapping: Mapping[str, str] | None = None,
        skip_bad: bool = False,
        progress: Callable[[StepRecord], None] | None = None,
        stop: threading.Event | None = None,
        **settings: Any,
    ) -> Lobe:
        """Train a new lobe. What is left out suits the base and the number of rows, as it does on the page.

        Args:
            name: the person's words, any script.
            dataset: a file (JSONL, JSON, CSV, Parquet) or a list of rows.
            epochs: passes over the rows; None chooses by their number. learning_rate: peak rate; None chooses one for the width
                of the base. The peer's own are 3 and 2e-4.
            mapping: {"prompt": column, "answer": column} for files with other column names.
            skip_bad: train on the good rows of a file that has bad ones.
            progress: called with a StepRecord after every step and evaluation.
            stop: set it to stop early and keep what has been learned by then.
            settings: any other field of TrainingConfig (validation_fraction, keep, use_rslora, prompt_weight, seed, ...).

        Raises:
            LobeError, DataError, ConfigError: refused before training begins. MultiLobeError: training failed; nothing is added.
        """
        values = {
            "epochs": epochs,
            "lora_r": lora_r,
            "lora_alpha": lora_alpha,
            "lora_dropout": lora_dropout,
            "target_modules": target_modules
            if target_modules is None or isinstance(target_modules, str)
            else tuple(target_modules),
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "max_length": max_length,
        }
        config = settings_of(TrainingConfig, {**values, **settings})
        run = self.train(name, dataset, config, mapping=mapping, skip_bad=skip_bad, stop=stop)
        return finish(run, lambda event: progress(event) if progress and isinstance(event, StepRecord) else None)

    def train(
        self,
        name: str,
        source: Source,
        config: TrainingConfig,
        *,
        mapping: Mapping[str, str] | None = None,
        skip_bad: bool = False,
        checkpoint: Path | None = None,
        stop: threading.Event | None = None,
        replaces: str = "",
        data_name: str = "",
        owner: str = "",
        run: str = "",
    ) -> Generator[StepRecord | str, None, Lobe]:
        """`add_lobe` as a generator: yields the name of each phase (str) and every StepRecord; returns the lobe.

        Args:
            checkpoint: folder that progress is kept in, and taken up from.
            replaces: id of the lobe that an earlier part of this run left, when it was stopped. data_name, owner, run: for the
                card; by `run`, the id of the run, its lobe is found again if the process ends before it has noted it.
        """
        name = self.store.check_free(name, besides=replaces)
        yield "Reading the data"
        examples = dataset.load(source, mapping, skip_bad=skip_bad)
        share = config.validation_fraction
        if share is None:
            share = held_out_share(examples).share
        train, validation = dataset.split(examples, share, config.seed)
        config = config.resolved(len(train), self.backbone.hidden_size, share)
        workspace = Path(tempfile.mkdtemp(prefix=".training-", dir=self.home))
        try:
            yield "Training"
            result = yield from train_lobe(
                self.backbone,
                train,
                validation,
                config,
                workspace / "adapter",
                checkpoint=checkpoint,
                stop=stop,
            )
            yield "Learning what to route here"
            write_routing_rows(workspace / "adapter", self.routing_rows(train, validation))
            data = {"name": data_name or _data_name(source), "rows": len(examples), **({"run": run} if run else {})}
            card = self._card(name, "trained here", config=config, data=data, result=result, owner=owner)
            return self._add(workspace / "adapter", card, replaces)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)

    def import_adapter(
        self, name: str, path: str | Path, dataset_for_routing: Source | None = None, *, owner: str = ""
    ) -> Lobe:
        """Make a lobe of any PEFT LoRA adapter folder or zip that fits the base.

        Args:
            dataset_for_routing: rows of the kind that it was trained on, so that the embedding router knows it; without them it
                is found by log-prob or by hand.

        Raises:
            LobeError: the name. AdapterError: it cannot be run exactly here. BundleError: a zip that is not safe.
        """
        name = self.store.check_free(name)
        with bundle.prepare_adapter(Path(path)) as adapter:
            read_matrices(read_header(adapter))  # refuses numbers that are not finite, which the header does not tell
            if dataset_for_routing is not None:
                examples = dataset.load(dataset_for_routing)
                train, validation = dataset.split(examples, 0.1)
                write_routing_rows(adapter, self.routing_rows(train, validation))
            return self._add(adapter, self._card(name, "imported adapter", owner=owner))

    def add_merged(self, name: str, adapter: Path, composition: Mapping[str, Any], *, owner: str = "") -> Lobe:
        """Make a lobe of an adapter folder that was made of other lobes (`composition.keep_merge`); the folder is moved.

        Args:
            composition: what it was made of, as plain JSON, for the card.

        Raises:
            LobeError: the name; then the folder stays. AdapterError: it does not fit the base.
        """
        card = self._card(self.store.check_free(name), "merged", owner=owner)
        return self._add(adapter, replace(card, composition=dict(composition)))

    def remove_lobe(self, name: str, *more: str) -> None:
        """Delete lobes and their files, and give their memory back. Several at once are quicker: routers calibrate once.

        Raises:
            LobeError: there is none of one of those names; then all stay.
        """
        with self._lock:
            lobes = {lobe.id: lobe for lobe in map(self.store.by_name, (name, *more))}
            try:
                for lobe in lobes.values():
                    self.store.delete(lobe.name)
                    self._forget(lobe)
            finally:
                self._changed()

    def rename_lobe(self, name: str, new_name: str) -> Lobe:
        """Give a lobe another name; its id, its files and what routers have learned of it stay."""
        with self._lock:
            before = self.store.by_name(name).name
            lobe = self.store.rename(name, new_name)
            self.routing.rename({before: lobe.name})
            self._changed()
            return lobe

    @property
    def memory_budget_mib(self) -> float | None:
        """Memory for lobes beside the base; None is no limit. What is set counts at once and is remembered in the home."""
        return self.residency.budget_mib

    @memory_budget_mib.setter
    def memory_budget_mib(self, mib: float | None) -> None:
        self.residency.set_budget(mib)

    @property
    def pinned(self) -> list[str]:
        """Names of the lobes that stay in memory whatever the budget."""
        return [lobe.name for lobe in self.lobes if self.residency.is_pinned(lobe.id)]

    def pin(self, name: str) -> None:
        """Read a lobe into memory, and keep it there, whatever the budget, until it is unpinned: also after a restart.

        Raises:
            LobeError: there is none of that name on this base. AdapterError: it is damaged.
        """
        self.residency.pin(self.store.by_name(name).id)

    def unpin(self, name: str) -> None:
        self.residency.unpin(self.store.by_name(name).id)

    # ---- routing ----------------------------------------------------------------------------------------------------------

    def route(self, prompt: str, router: str | None = None, mixing: Mixing = AUTO) -> RoutingDecision:
        """Decide which lobes should answer a prompt, by the router of that name. Lobes whose weights turn out to be damaged when
        they are first read are left out, and the others decided among."""
        while True:
            self._leave_damaged()
            known = len(self.broken)
            try:
                return self.routing.route(prompt, router, mixing)
            except AdapterError:
                self._leave_damaged()
                if len(self.broken) == known:
                    raise

    def decide(
        self,
        messages: Messages,
        lobe: str | None = None,
        weights: Mapping[str, float] | None = None,
        *,
        router: str | None = None,
        mixing: Mixing = AUTO,
    ) -> RoutingDecision:
        """The decision for a conversation: by hand (`lobe`, or `weights` by name; {} is the base), else by the router.

        A very short message that fits no lobe ("and why?") is routed again, together with the user's message before it.
        """
        if lobe is not None:
            return manual_decision({lobe: 1.0}, self.lobe_names)
        if weights is not None:
            return manual_decision(weights, self.lobe_names)
        asked = [m["content"] for m in messages if m["role"] == "user"]
        decision = self.route(asked[-1] if asked else "", router, mixing)
        if decision.abstained and len(asked) > 1 and len(asked[-1].split()) < FEW_WORDS:
            return self.route(" ".join(asked[-2:]), router, mixing)
        return decision

    def forget_prompts(self, prompts: Sequence[str]) -> None:
        """Drop what is remembered of these prompts (embeddings, scores), so that a decision takes as long as for a new one."""
        for memory in (self.embedder, self._scores, self._hidden):
            forget = getattr(memory, "forget", None)  # an encoder of a person's own may have none
            if forget is not None:
                forget(prompts)

    def calibrate(self) -> None:
        """Fit the default router to the lobes there are; it does so by itself whenever they change."""
        self.fit_router(self.routing.default)

    def fit_router(
        self,
        name: str,
        *,
        progress: Callable[[Progress], None] | None = None,
        stop: threading.Event | None = None,
        **settings: Any,
    ) -> Fit:
        """Fit a router to the lobes there are.

        Args:
            name: of `routers.ROUTERS`. settings: what that router lets one set. stop: set it to end early with the best so far.

        Raises:
            ConfigError: no such router or setting. RoutingError: there is nothing to learn from.
        """
        return finish(self.fitting_router(name, settings, stop), progress)

    def fitting_router(
        self, name: str, settings: Mapping[str, Any], stop: threading.Event | None = None, *, owner: str = ""
    ) -> Generator[Progress, None, Fit]:
        """`fit_router` as a generator of its records."""

        def take_in(outcome: FitOutcome) -> None:
            for tier, adapter in outcome.experts.items():
                self._add_expert(tier, adapter, owner)
            for place in {adapter.parent for adapter in outcome.experts.values()}:
                shutil.rmtree(place, ignore_errors=True)

        fit = yield from self.routing.fitting(name, settings, stop or threading.Event(), take_in)
        self.version += 1
        return fit

    def keep_corrections(self, ids: Sequence[str], fits: Mapping[str, Fit]) -> None:
        """Put corrections in force, with the routers' fits that know them."""
        with self._lock:
            self.routing.put_aside(self.routing_key([]))
            self.corrections.keep(ids)
            self._changed(fits)

    def forget_corrections(self, ids: Sequence[str] | None = None) -> None:
        """Take back those corrections, or all; routers that calibrate by themselves do so without them."""
        with self._lock:
            if any(correction.kept for correction in self.corrections.forget(ids)):
                self._changed(self.routing.put_aside_fits() if not self.corrections.kept() else None)

    # ---- generation -------------------------------------------------------------------------------------------------------

    @overload
    def generate(
        self, prompt: str | Messages, lobe: str | None = ..., return_metadata: Literal[False] = ..., **sampling: Any
    ) -> str: ...
    @overload
    def generate(
        self, prompt: str | Messages, lobe: str | None = ..., *, return_metadata: Literal[True], **sampling: Any
    ) -> tuple[str, dict[str, Any]]: ...
    def generate(
        self,
        prompt: str | Messages,
        lobe: str | None = None,
        return_metadata: bool = False,
        *,
        weights: Mapping[str, float] | None = None,
        router: str | None = None,
        mixing: Mixing = AUTO,
        **sampling: Any,
    ) -> str | tuple[str, dict[str, Any]]:
        """Answer a prompt or a conversation.

        Args:
            lobe: the lobe that answers; None asks the router.
            weights: or a mixture by name, such as {"python": 0.6, "maths": 0.4}; {} is the base model.
            router: the router to ask, of `routers.ROUTERS`; None is the model's own. mixing: how many lobes answer.
            sampling: fields of SamplingConfig: max_new_tokens=256, temperature=0.7, top_p=0.9, top_k, repetition_penalty,
                do_sample=True, seed.
        Returns: the answer, or (answer, metadata) with selected_lobe, router_confidence, router_type, router_scores, router_ms,
            the whole `decision`, and `cost` (see `cost`).

        Raises:
            RoutingError: no lobe of that name. ConfigError: a setting out of range, or a prompt that is empty or too long.
        """
        messages, config = _messages(prompt), settings_of(SamplingConfig, sampling)
        decision = self.decide(messages, lobe, weights, router=router, mixing=mixing)
        request, began = self.request(messages, decision, config, mixing=mixing), time.perf_counter()
        tokens = [token for (token,) in generate_tokens(self.bank, [request]) if token is not None]
        cost = self.cost(decision, request, len(tokens), time.perf_counter() - began)
        text = self.backbone.decode(tokens).strip()
        return (text, {**metadata(decision), "cost": cost}) if return_metadata else text

    def cost(self, decision: RoutingDecision, request: Request, answer_tokens: int, seconds: float) -> dict[str, Any]:
        """What an answer cost that has just been made: prompt_tokens, answer_tokens, seconds of generation, tokens_per_second,
        route_ms (None where a person decided), and of the lobes in memory their names (resident) and size (resident_bytes)."""
        names = {lobe.id: lobe.name for lobe in self.store.all()}
        return {
            "route_ms": None if decision.router == "manual" else decision.elapsed_ms,
            "prompt_tokens": len(request.ids),
            "answer_tokens": answer_tokens,
            "seconds": seconds,
            "tokens_per_second": answer_tokens / seconds if seconds > 0 else 0.0,
            "resident": [names.get(lobe, lobe) for lobe in self.bank.resident],
            "resident_bytes": self.bank.resident_bytes,
        }

    def stream(
        self,
        prompt: str | Messages,
        lobe: str | None = None,
        *,
        weights: Mapping[str, float] | None = None,
        router: str | None = None,
        mixing: Mixing = AUTO,
        stop: threading.Event | None = None,
        **sampling: Any,
    ) -> Iterator[str]:
        """Like `generate`, yielding pieces of text as they are made; set `stop` to end early."""
        messages, config = _messages(prompt), settings_of(SamplingConfig, sampling)
        decision = self.decide(messages, lobe, weights, router=router, mixing=mixing)
        yield from stream_text(self.bank, self.request(messages, decision, config, mixing=mixing, stop=stop))

    def request_weights(self, decision: RoutingDecision) -> dict[str, float]:
        """A decision's weights by lobe id, as the bank wants them. Raises LobeError if a lobe has been deleted since."""
        return {self.store.by_name(name).id: weight for name, weight in decision.weights.items()}

    def request(
        self,
        messages: Messages,
        decision: RoutingDecision,
        sampling: SamplingConfig,
        *,
        mixing: Mixing = AUTO,
        stop: threading.Event | None = None,
        watch: Callable[[Tensor], None] | None = None,
        ids: Sequence[int] | None = None,
    ) -> Request:
        """What `generation` needs to answer a conversation as it was decided.

        Args:
            stop, watch: see `generation.Request`. ids: what `generation.prepare` gave for these messages, if that is known.

        Raises:
            ConfigError: the prompt is empty or too long. LobeError: a lobe has been deleted since.
        """
        if ids is None:
            ids, _ = prepare(self.backbone, messages, sampling.max_new_tokens)
        mixer = self.routing.named(decision.router).mixer(mixing) if decision.per_token else None
        return Request(ids, self.request_weights(decision), sampling, stop or threading.Event(), mixer, watch)

    # ---- bundles ----------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, names: Sequence[str] | None = None) -> Path:
        """Write all lobes, or those named, as a bundle: a zip if the path ends in .zip, else a folder. The base is not inside.

        Raises:
            BundleError: there is nothing to save, or the path is in use by something else. LobeError: an unknown name.
        """
        chosen = self.lobes if names is None else [self.store.by_name(name) for name in names]
        fits = self.routing.fits_of(_births(chosen))
        return bundle.save_bundle(Path(path), chosen, describe(self.backbone), self.embedder.name, fits)

    @classmethod
    def load(cls, path: str | Path, device: str | None = None, **kwargs: Any) -> MultiLobeModel:
        """A model with the lobes of a bundle, on the base that the bundle names.

        Args:
            kwargs: as for `from_pretrained`; `model_name` if the base lies somewhere else here.
        """
        with bundle.open_bundle(Path(path)) as opened:
            name = kwargs.pop("model_name", None) or opened.manifest.base["name"]
            kwargs.setdefault("embedding_model", opened.manifest.embedding_model or MINILM_NAMES[0])
        model = cls.from_pretrained(name, device=device, **kwargs)
        model.load_bundle(path)
        return model

    def load_bundle(
        self, path: str | Path, on_clash: bundle.OnClash = "rename", *, owner: str = "", settings: bool = True
    ) -> list[Lobe]:
        """Add the lobes of a bundle (folder or zip, also one of `multilobe` 0.1.0) to those that are here, all or none.

        Rows for routing that cannot be trusted, and those of another sentence encoder, are embedded anew from their prompts.

        Args:
            on_clash: what to do about a name that exists: "refuse" the bundle, "rename" the newcomer, or "replace" the old lobe.
            settings: whether to take a person's settings of routers (stages of the chain, words) that came with it, where nothing
                was here before.

        Raises:
            BundleError: damaged, unsafe, newer, or of another base. BackboneError: vectors must be made anew and the sentence
                encoder is not to be had. Then nothing has changed.
        """
        base = self.backbone
        with (
            self._lock,
            bundle.loading_bundle(
                Path(path),
                self.store,
                base.fingerprint,
                base.name,
                self.bank.features,
                on_clash=on_clash,
                owner=owner,
                mend=self._mend_rows,
            ) as loaded,
            self._instead(loaded.replaced, loaded.lobes),
        ):
            came = _births(lobe for lobe in loaded.lobes if lobe.id in self.bank)
            self.routing.take(loaded.fits, came, settings=settings)
        self.version += 1
        return loaded.lobes

    # ---- inside -----------------------------------------------------------------------------------------------------------

    def _register(self, lobe: Lobe) -> None:
        """Make a stored lobe available, if it belongs to this base; a damaged one is remembered in `broken`."""
        if lobe.card.base.get("fingerprint") != self.backbone.fingerprint:
            return
        try:
            self.bank.register(lobe.id, lobe.path, str(lobe.card.adapter.get(bundle.SHA256, "")))
        except MultiLobeError as error:
            self.broken[lobe.id] = str(error)
            return
        self._rows.take(lobe)
        self.residency.registered(lobe.id)

    @contextmanager
    def _instead(self, old: Sequence[Lobe], new: Sequence[Lobe]) -> Iterator[None]:
        """Make stored lobes available in the place of others, and undo it if the block fails. The caller holds the model's lock."""
        pinned = [lobe.id for lobe in old if self.residency.is_pinned(lobe.id)]
        try:
            for lobe in old:
                self._forget(lobe)
            for lobe in new:
                self._register(lobe)
            yield
        except BaseException:
            # a second failure must not keep the rest from coming back, nor hide the first
            for lobe in new:
                with suppress(Exception):
                    self._forget(lobe)
            for lobe in old:
                with suppress(Exception):
                    self._register(lobe)
            for id in pinned:
                with suppress(Exception):
                    self.residency.pin(id)
            raise

    def _forget(self, lobe: Lobe) -> None:
        """A lobe is gone: nothing of it stays in memory."""
        self.bank.unregister(lobe.id)
        self.residency.unpin(lobe.id)
        self._rows.forget(lobe)
        self.broken.pop(lobe.id, None)

    def fault(self, id: str) -> str:
        """Why the lobe with this id cannot be used, although it is of this base; "" if it can."""
        return self.broken.get(id) or self.bank.damaged.get(id, "")

    def _leave_damaged(self) -> None:
        """Routers are not to choose a lobe that has turned out to be damaged."""
        if self.bank.damaged.keys() <= self.broken.keys():
            return
        with self._lock:
            self.broken.update(self.bank.damaged)
            self._changed()

    def _add(self, prepared: Path, card: Card, replaces: str = "") -> Lobe:
        """Check a prepared adapter folder against the base, then take it in (in the place of the lobe with id `replaces`)."""
        header = read_header(prepared)
        check_fits(header, self.bank.features, self.backbone.name)
        with self._lock:
            was_pinned = self.residency.is_pinned(replaces)
            for old in [lobe for lobe in self.store.all() if lobe.id == replaces]:
                self.store.delete(old.name)
                self._forget(old)
            lobe = self.store.add(prepared, replace(card, adapter=_adapter_facts(header)))
            self._register(lobe)
            if was_pinned:
                self.residency.pin(lobe.id)
            self._changed()
        return lobe

    def _add_expert(self, tier: str, adapter: Path, owner: str) -> None:
        """Take in one of the lobes that complexity routing made for itself, in the place of its forerunner."""
        old = self._experts().get(tier)
        name = old.name if old else self.store.free_name(tier)
        card = replace(self._card(name, "complexity expert", owner=owner), tier=tier)
        self._add(adapter, card, old.id if old else "")

    def _experts(self) -> dict[str, Lobe]:
        """The expert of each tier: the one made here, else the first that came with a bundle, so that no stranger's takes over."""
        tiered = sorted((lobe for lobe in self.lobes if lobe.card.tier), key=lambda lobe: bundle.SHA256 in lobe.card.adapter)
        return {lobe.card.tier: lobe for lobe in reversed(tiered)}

    def _card(
        self,
        name: str,
        origin: str,
        *,
        config: TrainingConfig | None = None,
        data: Mapping[str, Any] | None = None,
        result: TrainingResult | None = None,
        owner: str = "",
    ) -> Card:
        return Card(
            name=name,
            created=now(),
            origin=origin,
            base={"name": self.backbone.name, "fingerprint": self.backbone.fingerprint},
            config=config.to_json() if config else {},
            data=data or {},
            training=result.to_json() if result else {},
            embedding_model=self.embedder.name,
            owner=owner,
        )

    def routing_rows(self, train: Sequence[Example], validation: Sequence[Example]) -> RoutingRows:
        """What is kept of a lobe's rows for routing."""
        kept, held_out = _evenly(train, ROUTING_TRAIN_ROWS), _evenly(validation, ROUTING_VALIDATION_ROWS)
        vectors = self.embedder([row.prompt for row in kept])
        others = np.zeros((0, vectors.shape[1]), np.float32)
        return RoutingRows(
            prototypes=prototypes_of(vectors, 4),
            train=vectors,
            validation=self.embedder([row.prompt for row in held_out]) if held_out else others,
            train_prompts=[row.prompt for row in kept],
            validation_prompts=[row.prompt for row in held_out],
            train_answers=[row.answer for row in kept],
            validation_answers=[row.answer for row in held_out],
        )

    def routing_prompts(self) -> list[str]:
        """The prompts that lobes keep for routing."""
        rows = self.routing_context().rows.values()
        return [prompt for own in rows for prompt in (*own.train_prompts, *own.validation_prompts)]

    def routing_context(self, corrections: Sequence[Correction] | None = None) -> RoutingContext:
        """What routers may know of the present lobes; the experts of complexity routing are for that router alone.

        Args:
            corrections: what people have said; None takes those in force.
        """
        everyone = self.lobes
        ids = {lobe.name: lobe.id for lobe in everyone}
        lobes = [lobe for lobe in everyone if not lobe.card.tier]
        rows = self._rows.among({lobe.name: lobe for lobe in lobes})

        def nll(texts: Sequence[str], wanted: Sequence[str]) -> Vector:
            return self._scores(texts, [ids[n] for n in wanted])

        context = RoutingContext(
            lobes=[lobe.name for lobe in lobes],
            rows=rows,
            embed=self.embedder,
            nll=nll,
            generic=lambda: generic_vectors(self.embedder, self._generic),
            generic_prompts=self._generic,
            hidden=self._hidden,
            bank=self.bank,
            ids=ids,
            experts={tier: lobe.name for tier, lobe in self._experts().items()},
        )
        told = self.corrections.kept() if corrections is None else corrections
        by_id = {lobe.id: lobe.name for lobe in lobes} | {"": None}
        return corrected(context, {c.prompt: by_id[c.lobe] for c in told if c.lobe in by_id})

    def _sound_rows(self, rows: RoutingRows, encoder: str) -> RoutingRows | None:
        """Rows of a lobe, said to be of this sentence encoder, as routers may see them (see `lobe.sound_rows`).

        Raises:
            BackboneError: the vectors must be made anew, and our sentence encoder is not to be had.
        """
        ours = self._is_ours(encoder)
        vectors = ours and (len(rows.prototypes) or len(rows.train))
        return sound_rows(rows, self.embedder, self._vector_width() if vectors else None, ours)

    def _is_ours(self, encoder: str) -> bool:
        return encoder == self.embedder.name or Path(encoder).name == Path(self.embedder.name).name

    def _vector_width(self) -> int | None:
        """Numbers in a vector of our sentence encoder; None where it cannot be loaded, and routers that need it say so."""
        if self._width is None and self.embedder.name in MINILM_NAMES:
            self._width = MINILM_WIDTH  # known without the seconds that loading it takes
        if self._width is None:
            with suppress(BackboneError):
                self._width = self.embedder(["width"]).shape[1]
        return self._width

    def _mend_rows(self, folder: Path, card: Card) -> Card:
        """See `bundle.Mend`."""
        rows = read_rows(folder)
        sound = self._sound_rows(rows, card.embedding_model)
        if sound is None:
            for name in (ROUTING_FILE, PROMPTS_FILE):
                (folder / name).unlink(missing_ok=True)
            return replace(card, embedding_model="")
        if sound is not rows:
            write_routing_rows(folder, sound)
        return replace(card, embedding_model=self.embedder.name)

    def _trusts(self, lobe: Lobe, prototypes: Vector) -> bool:
        """Whether routers can use a lobe's prototypes as they are."""
        return self._is_ours(lobe.card.embedding_model) and are_unit(prototypes, self._vector_width())

    def _usable_rows(self, lobe: Lobe, rows: RoutingRows) -> RoutingRows | None:
        """What routers may see of a stored lobe's rows. Vectors that had to be made anew are kept in its folder; rows that cannot
        be used never stop routing."""
        encoder = lobe.card.embedding_model
        with suppress(LobeError):
            encoder = read_card(lobe.path).embedding_model  # `lobe` may be from before its vectors were made anew
        try:
            sound = self._sound_rows(rows, encoder)
        except BackboneError:
            return None
        texts = ("train_prompts", "validation_prompts", "train_answers", "validation_answers")
        whole = sound is not None and all(len(getattr(sound, name)) == len(getattr(rows, name)) for name in texts)
        if sound is not None and sound is not rows and whole:  # a person's rows are never cut on disk
            with suppress(OSError):  # they are made anew at the next start then
                write_routing_rows(lobe.path, sound)
                self.store.recard(lobe.id, embedding_model=self.embedder.name)
        return sound

    def _changed(self, fits: Mapping[str, Fit] | None = None) -> None:
        """The lobes or corrections are others now; `fits` were made here for them."""
        self.routing.adopt(fits or {})
        self.version += 1

    def prepare_routing(self) -> None:
        """Load the sentence encoder and take up or make the calibration: call once after opening a home with lobes."""
        with self._lock:
            if self.lobes:
                self.embedder(["ready"])
                self._changed()

    def routing_key(self, corrections: Sequence[Correction] | None = None) -> Key:
        """What a fit belongs to: the encoder, the corrections (None: those in force), and the lobes by name and time of birth."""
        lobes = [[lobe.name, lobe.card.created] for lobe in self.lobes if not lobe.card.tier]
        told = self.corrections.kept() if corrections is None else corrections
        said = [hashlib.sha256(repr(sorted((c.id, c.lobe) for c in told)).encode()).hexdigest()[:16]] if told else []
        return [[self.embedder.name, str(self._threshold), *said], *lobes]


def _births(lobes: Iterable[Lobe]) -> set[tuple[str, str]]:
    """(name, time of birth) of those lobes that routers choose among; see `routing_key`."""
    return {(lobe.name, lobe.card.created) for lobe in lobes if not lobe.card.tier}


def metadata(decision: RoutingDecision) -> dict[str, Any]:
    """A decision in the words of the peer's API."""
    return {
        "selected_lobe": decision.chosen,
        "router_confidence": decision.confidence,
        "router_type": decision.stage if decision.router != "manual" else "manual",
        "router_scores": dict(decision.scores),
        "router_ms": decision.elapsed_ms,
        "decision": decision,
    }


def _messages(prompt: str | Messages) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    messages = [dict(m) for m in prompt]
    for message in messages:
        if message.get("role") not in ("system", "user", "assistant") or not isinstance(message.get("content"), str):
            raise ConfigError(
                f"A message must have a role (system, user, assistant) and a text content, not {message!r}."
            )
    return messages


def _threshold(value: float | str | None) -> float | None:
    if value in (None, "auto"):
        return None
    try:
        number = float(cast(float, value))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"embedding_threshold is {value!r}: it must be 'auto' or a number.") from error
    check(-1 <= number <= 1, "embedding_threshold", number, "a cosine from -1 to 1, or 'auto'")
    return number


def _adapter_facts(header: AdapterHeader) -> dict[str, Any]:
    return {"r": header.r, "target_modules": list(header.target_modules), "bytes": header.nbytes}


def _data_name(source: Source) -> str:
    return Path(source).name if isinstance(source, (str, Path)) else "rows"


def _evenly(rows: Sequence[Example], most: int) -> list[Example]:
    """At most `most` rows of different prompts, evenly spread."""
    different = list({row.prompt: row for row in reversed(rows)}.values())[::-1]
    return [different[i * len(different) // most] for i in range(most)] if len(different) > most else different


__all__ = ["Lobe", "MultiLobeModel", "metadata"]
