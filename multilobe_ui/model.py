"""MultiLobeModel: the public Python API. One base model, its lobes, a router, and the verbs: train, route, generate, save, load."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, cast, overload

import numpy as np

from . import bundle, dataset, training
from .adapter import AdapterHeader, check_fits, read_header, read_matrices
from .assets import MINILM_NAMES, folder
from .backbone import BUILTIN, Backbone, Messages, describe
from .bank import LobeBank
from .config import SamplingConfig, TrainingConfig, check
from .embedding import Embedder, generic_prompts, prototypes_of
from .errors import ConfigError, MultiLobeError
from .files import read_json, write_json
from .generation import Request, generate_text, prepare, stream_text
from .lobe import Card, Lobe, LobeStore, now, write_routing_rows
from .routers import ROUTERS, Router, RoutingContext, RoutingDecision, RoutingRows
from .routers.base import Vector, manual_decision
from .scoring import prompt_nll
from .training import StepRecord, TrainingResult

ROUTING_TRAIN_ROWS = 256
ROUTING_VALIDATION_ROWS = 64
FEW_WORDS = 4


class MultiLobeModel:
    """A frozen base model with any number of lobes, and a router that chooses among them.

    Methods may be called from several threads; training one lobe does not disturb answers from the others.

    Attributes:
        backbone: the base. bank: its lobes, ready to run. embedder: the router's sentence encoder. router: the router in use.
        home: folder of the lobes; a temporary one unless it was given.
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
    ) -> None:
        check(router in ROUTERS, "router", router, f"one of {', '.join(ROUTERS)}")
        check(logprob_max_tokens >= 1, "logprob_max_tokens", logprob_max_tokens, "at least 1")
        self._threshold = _threshold(embedding_threshold)
        self._logprob_max_tokens = logprob_max_tokens
        self._router_name = router
        self._temporary = tempfile.TemporaryDirectory(prefix="multilobe-") if home is None else None
        self.home = Path(self._temporary.name) if self._temporary else Path(cast(Path, home))
        self.backbone = backbone
        self.embedder = embedder or Embedder()
        self.bank = LobeBank(backbone)
        self.store = LobeStore(self.home / "lobes")
        self.broken: dict[str, str] = dict(self.store.broken)
        self.version = 0
        self._lock = threading.RLock()
        self._rows: dict[str, RoutingRows | None] = {}
        self._generic = generic_prompts(folder("assets") / "generic_prompts.jsonl")
        for lobe in self.store.all():
            self._register(lobe)
        self.router = self._new_router()

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
        **model_kwargs: Any,
    ) -> MultiLobeModel:
        """Load a base model, without lobes unless `home` has some.

        Args:
            model_name: "builtin", a folder, or a hub id of any causal language model of transformers.
            device: None takes CUDA, else MPS, else the CPU.
            embedding_model: a sentence-transformers model; the default needs no network.
            embedding_threshold: "auto" calibrates from held-out rows; a number is the embedding score that a lobe must reach
                to be chosen without asking the language model.
            logprob_max_tokens: tokens of a prompt that stage 2 reads.
            router: "hybrid", "embedding", "logprob", "gate" or "keyword" (see `routers`).
            home: where lobes live; None is a temporary folder that goes with the object.
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
        )

    # ---- lobes ------------------------------------------------------------------------------------------------------------

    @property
    def lobes(self) -> list[Lobe]:
        """The lobes that fit this base, oldest first."""
        return [lobe for lobe in self.store.all() if lobe.id in self.bank]

    @property
    def lobe_names(self) -> list[str]:
        return [lobe.name for lobe in self.lobes]

    def list_lobes(self) -> list[dict[str, Any]]:
        """What each lobe's card says, as JSON values."""
        return [{"id": lobe.id, **lobe.card.to_json()} for lobe in self.lobes]

    def add_lobe(
        self,
        name: str,
        dataset: dataset.Source,
        epochs: int = 3,
        lora_r: int = 16,
        lora_alpha: int = 32,
        lora_dropout: float = 0.05,
        target_modules: Sequence[str] | str | None = None,
        batch_size: int = 4,
        learning_rate: float | None = 2e-4,
        max_length: int = 512,
        *,
        mapping: Mapping[str, str] | None = None,
        skip_bad: bool = False,
        progress: Callable[[StepRecord], None] | None = None,
        stop: threading.Event | None = None,
        **settings: Any,
    ) -> Lobe:
        """Train a new lobe.

        Args:
            name: the person's words, any script.
            dataset: a file (JSONL, JSON, CSV, Parquet) or a list of rows.
            learning_rate: peak rate; None chooses one for the size of the base, which suits small bases better than 2e-4.
            mapping: {"prompt": column, "answer": column} for files with other column names.
            skip_bad: train on the good rows of a file that has bad ones.
            progress: called with a StepRecord after every step and evaluation.
            stop: set it to stop early and keep the best so far.
            settings: any other field of TrainingConfig (use_rslora, prompt_weight, seed, patience, ...).

        Raises:
            LobeError, DataError, ConfigError: refused before training begins. MultiLobeError: training failed; nothing is added.
        """
        unknown = sorted(set(settings) - {field.name for field in fields(TrainingConfig)})
        check(not unknown, "settings", unknown, f"among {', '.join(f.name for f in fields(TrainingConfig))}")
        config = TrainingConfig(
            epochs=epochs,
            lora_r=lora_r,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            target_modules=target_modules
            if target_modules is None or isinstance(target_modules, str)
            else tuple(target_modules),
            batch_size=batch_size,
            learning_rate=learning_rate,
            max_length=max_length,
            **settings,
        )
        run = self.train(name, dataset, config, mapping=mapping, skip_bad=skip_bad, stop=stop)
        while True:
            try:
                event = next(run)
            except StopIteration as end:
                return cast(Lobe, end.value)
            if progress and isinstance(event, StepRecord):
                progress(event)

    def train(
        self,
        name: str,
        source: dataset.Source,
        config: TrainingConfig,
        *,
        mapping: Mapping[str, str] | None = None,
        skip_bad: bool = False,
        checkpoint: Path | None = None,
        stop: threading.Event | None = None,
        replaces: str = "",
        data_name: str = "",
        owner: str = "",
    ) -> Generator[StepRecord | str, None, Lobe]:
        """`add_lobe` as a generator: yields the name of each phase (str) and every StepRecord; returns the lobe.

        Args:
            checkpoint: folder that progress is kept in, and taken up from.
            replaces: id of the lobe that an earlier part of this run left, when it was stopped. data_name, owner: for the card.
        """
        name = self.store.check_free(name, besides=replaces)
        yield "Reading the data"
        examples = dataset.load(source, mapping, skip_bad=skip_bad)
        train, validation = dataset.split(examples, config.validation_fraction, config.seed)
        workspace = Path(tempfile.mkdtemp(prefix=".training-", dir=self.home))
        try:
            yield "Training"
            result = yield from training.train_lobe(
                self.backbone,
                train,
                validation,
                config,
                workspace / "adapter",
                checkpoint=checkpoint,
                stop=stop,
            )
            yield "Learning what to route here"
            rows = self._routing_rows([e.prompt for e in train], [e.prompt for e in validation])
            write_routing_rows(workspace / "adapter", rows)
            data = {"name": data_name or _data_name(source), "rows": len(examples)}
            card = self._card(name, "trained here", config=config, data=data, result=result, owner=owner)
            lobe = self._add(workspace / "adapter", card, replaces)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)
        if self._router_needs_model():
            yield "Calibrating the router"
            self.calibrate()
        return lobe

    def import_adapter(
        self, name: str, path: str | Path, dataset_for_routing: dataset.Source | None = None, *, owner: str = ""
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
                write_routing_rows(
                    adapter, self._routing_rows([e.prompt for e in train], [e.prompt for e in validation])
                )
            return self._add(adapter, self._card(name, "imported adapter", owner=owner))

    def remove_lobe(self, name: str) -> None:
        """Delete a lobe and its files.

        Raises:
            LobeError: there is none of that name.
        """
        with self._lock:
            lobe = self.store.delete(name)
            self.bank.unregister(lobe.id)
            self._rows.pop(lobe.id, None)
            self._changed()

    def rename_lobe(self, name: str, new_name: str) -> Lobe:
        """Give a lobe another name; its id and files stay."""
        with self._lock:
            lobe = self.store.rename(name, new_name)
            self._changed()
            return lobe

    # ---- routing ----------------------------------------------------------------------------------------------------------

    def route(self, prompt: str) -> RoutingDecision:
        """Decide which lobe should answer a prompt."""
        return self.router.route(prompt)

    def decide(
        self, messages: Messages, lobe: str | None = None, weights: Mapping[str, float] | None = None
    ) -> RoutingDecision:
        """The decision for a conversation: by hand (`lobe`, or `weights` by name; {} is the base), else by the router.

        A very short message that fits no lobe ("and why?") is routed again, together with the user's message before it.
        """
        if lobe is not None:
            return manual_decision({lobe: 1.0}, self.lobe_names)
        if weights is not None:
            return manual_decision(weights, self.lobe_names)
        asked = [m["content"] for m in messages if m["role"] == "user"]
        decision = self.route(asked[-1] if asked else "")
        if decision.abstained and len(asked) > 1 and len(asked[-1].split()) < FEW_WORDS:
            return self.route(" ".join(asked[-2:]))
        return decision

    def calibrate(self) -> None:
        """Fit the router to the lobes there are, using the language model on their held-out prompts (seconds)."""
        with self._lock:
            self.router.fit()
            self._save_routing()
            self.version += 1

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
        **sampling: Any,
    ) -> str | tuple[str, dict[str, Any]]:
        """Answer a prompt or a conversation.

        Args:
            lobe: the lobe that answers; None asks the router.
            weights: or a mixture by name, such as {"python": 0.6, "maths": 0.4}; {} is the base model.
            sampling: fields of SamplingConfig: max_new_tokens=256, temperature=0.7, top_p=0.9, top_k, repetition_penalty,
                do_sample=True, seed.
        Returns: the answer, or (answer, metadata) with selected_lobe, router_confidence, router_type, router_scores, router_ms
            and the whole `decision`.

        Raises:
            RoutingError: no lobe of that name. ConfigError: a setting out of range, or a prompt that is empty or too long.
        """
        messages, config = _messages(prompt), _sampling(sampling)
        decision = self.decide(messages, lobe, weights)
        text = generate_text(self.bank, [self._request(messages, decision, config)])[0]
        return (text, metadata(decision)) if return_metadata else text

    def stream(
        self,
        prompt: str | Messages,
        lobe: str | None = None,
        *,
        weights: Mapping[str, float] | None = None,
        stop: threading.Event | None = None,
        **sampling: Any,
    ) -> Iterator[str]:
        """Like `generate`, yielding pieces of text as they are made; set `stop` to end early."""
        messages, config = _messages(prompt), _sampling(sampling)
        request = self._request(messages, self.decide(messages, lobe, weights), config)
        yield from stream_text(self.bank, replace(request, stop=stop) if stop else request)

    def request_weights(self, decision: RoutingDecision) -> dict[str, float]:
        """A decision's weights by lobe id, as the bank wants them. Raises LobeError if a lobe has been deleted since."""
        return {self.store.by_name(name).id: weight for name, weight in decision.weights.items()}

    def _request(self, messages: Messages, decision: RoutingDecision, sampling: SamplingConfig) -> Request:
        ids, _ = prepare(self.backbone, messages, sampling.max_new_tokens)
        return Request(ids, self.request_weights(decision), sampling)

    # ---- bundles ----------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, names: Sequence[str] | None = None) -> Path:
        """Write all lobes, or those named, as a bundle: a zip if the path ends in .zip, else a folder. The base is not inside.

        Raises:
            BundleError: there is nothing to save, or the path is in use by something else. LobeError: an unknown name.
        """
        chosen = self.lobes if names is None else [self.store.by_name(name) for name in names]
        routing = {"router": self._router_name, "key": self._key(chosen), "state": self.router.state()}
        return bundle.save_bundle(Path(path), chosen, describe(self.backbone), self.embedder.name, routing)

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

    def load_bundle(self, path: str | Path, on_clash: bundle.OnClash = "rename", *, owner: str = "") -> list[Lobe]:
        """Add the lobes of a bundle (folder or zip, also one of `multilobe` 0.1.0) to those that are here.

        Args:
            on_clash: what to do about a name that exists: "refuse" the bundle, "rename" the newcomer, or "replace" the old lobe.

        Raises:
            BundleError: damaged, unsafe, newer, or of another base; then nothing has changed.
        """
        base = self.backbone
        with self._lock:
            before = {lobe.id for lobe in self.store.all()}
            lobes, routing = bundle.load_bundle(
                Path(path),
                self.store,
                base.fingerprint,
                base.name,
                self.bank.features,
                on_clash=on_clash,
                owner=owner,
            )
            for gone in before - {lobe.id for lobe in self.store.all()}:
                self.bank.unregister(gone)
                self._rows.pop(gone, None)
            for lobe in lobes:
                self._register(lobe)
            self._changed(routing)
        return lobes

    # ---- inside -----------------------------------------------------------------------------------------------------------

    def _register(self, lobe: Lobe) -> None:
        """Make a stored lobe available, if it belongs to this base; a damaged one is remembered in `broken`."""
        if lobe.card.base.get("fingerprint") != self.backbone.fingerprint:
            return
        try:
            self.bank.register(lobe.id, lobe.path)
        except MultiLobeError as error:
            self.broken[lobe.id] = str(error)
            return
        self._rows[lobe.id] = lobe.routing_rows()

    def _add(self, prepared: Path, card: Card, replaces: str = "") -> Lobe:
        """Check a prepared adapter folder against the base, then take it in (in the place of the lobe with id `replaces`)."""
        header = read_header(prepared)
        check_fits(header, self.bank.features, self.backbone.name)
        with self._lock:
            for old in [lobe for lobe in self.store.all() if lobe.id == replaces]:
                self.store.delete(old.name)
                self.bank.unregister(old.id)
            lobe = self.store.add(prepared, replace(card, adapter=_adapter_facts(header)))
            self._register(lobe)
            self._changed()
        return lobe

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

    def _routing_rows(self, train: Sequence[str], validation: Sequence[str]) -> RoutingRows:
        train = _evenly(list(dict.fromkeys(train)), ROUTING_TRAIN_ROWS)
        validation = _evenly(list(dict.fromkeys(validation)), ROUTING_VALIDATION_ROWS)
        vectors = self.embedder(train)
        held_out = self.embedder(validation) if validation else np.zeros((0, vectors.shape[1]), np.float32)
        return RoutingRows(prototypes_of(vectors, 4), vectors, held_out, train, validation)

    def _new_router(self) -> Router:
        """A router over the present lobes, with what still holds of the last calibration."""
        names = {lobe.name: lobe.id for lobe in self.lobes}
        rows = {lobe.name: found for lobe in self.lobes if (found := self._usable_rows(lobe)) is not None}

        def nll(texts: Sequence[str], wanted: Sequence[str]) -> Vector:
            return prompt_nll(self.bank, texts, [names[n] for n in wanted], self._logprob_max_tokens)

        context = RoutingContext(
            list(names), rows, self.embedder, nll, lambda: self.embedder(self._generic), self._generic
        )
        return ROUTERS[self._router_name](context, self._threshold)

    def _usable_rows(self, lobe: Lobe) -> RoutingRows | None:
        """A lobe's rows, unless another sentence encoder made them: its vectors mean nothing to ours."""
        same = Path(lobe.card.embedding_model).name == Path(self.embedder.name).name
        return self._rows.get(lobe.id) if same else None

    def _changed(self, bundled: Mapping[str, Any] | None = None) -> None:
        """The lobes are others now: a new router, its calibration taken over where it holds and else made again (without the
        language model, so in a moment)."""
        router = self._new_router()
        saved = next((s for s in (bundled, self._saved_routing()) if s and s.get("key") == self._key(self.lobes)), None)
        restored = False
        if saved and saved.get("router") == self._router_name:
            with suppress(MultiLobeError, KeyError, TypeError, ValueError):
                router.restore(saved["state"])
                restored = True
        if not restored:
            router.refit(self.router.state())
        self.router = router
        self._save_routing()
        self.version += 1

    def prepare_routing(self) -> None:
        """Load the sentence encoder and take up or make the calibration: call once after opening a home with lobes."""
        with self._lock:
            if self.lobes:
                self.embedder(["ready"])
                self._changed()

    def _router_needs_model(self) -> bool:
        return len(self.lobes) > 1 and self.router.needs_model

    def _key(self, lobes: Sequence[Lobe]) -> list[list[str]]:
        """What a calibration belongs to: the lobes by name and time of birth, and the encoder."""
        return [[self.embedder.name, str(self._threshold)], *([lobe.name, lobe.card.created] for lobe in lobes)]

    @property
    def _routing_file(self) -> Path:
        return self.home / "routing" / f"{self.backbone.fingerprint}.{self._router_name}.json"

    def _saved_routing(self) -> Mapping[str, Any] | None:
        with suppress(OSError, ValueError):
            return cast(Mapping[str, Any], read_json(self._routing_file))
        return None

    def _save_routing(self) -> None:
        self._routing_file.parent.mkdir(parents=True, exist_ok=True)
        state = {"router": self._router_name, "key": self._key(self.lobes), "state": self.router.state()}
        write_json(self._routing_file, state)


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


def _sampling(values: Mapping[str, Any]) -> SamplingConfig:
    unknown = sorted(set(values) - {field.name for field in fields(SamplingConfig)})
    check(not unknown, "sampling", unknown, f"among {', '.join(f.name for f in fields(SamplingConfig))}")
    return SamplingConfig(**values)


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


def _data_name(source: dataset.Source) -> str:
    return Path(source).name if isinstance(source, (str, Path)) else "rows"


def _evenly(items: list[str], most: int) -> list[str]:
    """At most `most` items, evenly spread over the list."""
    if len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]


__all__ = ["Lobe", "MultiLobeModel", "metadata"]
