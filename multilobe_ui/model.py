"""MultiLobeModel: the public Python API. One base model, its lobes, its routers, and the verbs:
train, route, generate, save."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, overload

from .answers import Answers, checked_messages, metadata
from .assets import MINILM_NAMES
from .base.backbone import BUILTIN, Backbone, Messages, describe
from .bundles.load import Base, OnClash, loading_bundle, open_bundle
from .bundles.peer import prepare_adapter
from .bundles.save import save_bundle
from .data import dataset
from .data.formats import Source
from .errors import ConfigError
from .generation.batch import RunningBatch
from .generation.decode import generate_tokens, stream_text
from .lobes.adapter import read_header, read_matrices
from .lobes.bank import LobeBank
from .lobes.collection import Lobes
from .lobes.rows import rows_to_keep, write_routing_rows
from .lobes.store import Lobe
from .progress import Progress, finish
from .routers import ROUTERS, RoutingDecision
from .routers.fitted import Routers
from .routing.contexts import Contexts, births
from .routing.corrections import Corrections
from .routing.decision import AUTO, Mixing
from .routing.encoder import Embedder
from .routing.fits import Fit
from .settings import SamplingConfig, TrainingConfig, check, settings_of
from .training.lobe import StepRecord
from .training.new_lobe import train_new_lobe

Prompt = str | Messages


class MultiLobeModel:
    """A frozen base model with any number of lobes, and routers that choose among them.

    Methods may be called from several threads; training one lobe does not disturb answers from the others.

    Attributes:
        home: folder of the lobes; a temporary one unless it was given.
        backbone: the base. embedder: the routers' sentence encoder.
        lobes: the lobes that fit the base, oldest first: a sequence that also takes them in,
            renames and removes them.
        memory: which lobes stay in memory: the budget and the pins.
        routers: the routers, their fits, and the corrections that people made.
        bank: the base under any weights of lobes. serving: answers decoded together. answers: from
            a conversation to a request.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        home: str | Path | None = None,
        embedder: Embedder | None = None,
        embedding_threshold: float | str | None = "auto",
        logprob_max_tokens: int = 30,
        router: str = "hybrid",
        memory_budget_mib: float | None = None,
    ) -> None:
        check(router in ROUTERS, "router", router, f"one of {', '.join(ROUTERS)}")
        check(logprob_max_tokens >= 1, "logprob_max_tokens", logprob_max_tokens, "at least 1")
        threshold = _threshold(embedding_threshold)
        if not home:
            self._temporary = tempfile.TemporaryDirectory(prefix="multilobe-")  # it goes with this object
            home = self._temporary.name
        self.home = home = Path(home)
        self.backbone, self.embedder = backbone, embedder or Embedder()
        self.bank = LobeBank(backbone)
        self.serving = RunningBatch(self.bank)
        self.lobes = Lobes(home, self.bank, self.embedder, memory_budget_mib)
        self.memory = self.lobes.memory
        corrections = Corrections(home / "corrections.json")
        contexts = Contexts(self.lobes, corrections, threshold, logprob_max_tokens)
        self.routers = Routers(home / "routing" / backbone.fingerprint, contexts, router)
        self.answers = Answers(self.lobes, self.routers)

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
            embedding_threshold: "auto" calibrates on the lobes' rows; a number is the embedding
                score that a lobe must reach to be chosen without asking the language model.
            logprob_max_tokens: tokens of a prompt that stage 2 reads.
            router: which of `routers.ROUTERS` routes where none is named.
            home: where lobes live; None is a temporary folder that goes with the object.
            memory_budget_mib: memory for lobes beside the base; least recently used lobes are evicted, and
                read again when they are needed. None is what was last set for this home, at first no limit.
            model_kwargs: for `AutoModelForCausalLM.from_pretrained`, such as dtype or quantization_config.
        """
        backbone = Backbone.from_pretrained(model_name, device=device, **model_kwargs)
        embedder, threshold = Embedder(embedding_model, device), embedding_threshold
        return cls(
            backbone, home=home, embedder=embedder, router=router, embedding_threshold=threshold,
            logprob_max_tokens=logprob_max_tokens, memory_budget_mib=memory_budget_mib,
        )  # fmt: skip

    @property
    def lobe_names(self) -> list[str]:
        return self.lobes.names

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
        """Train a new lobe. What is left out suits the base and the number of rows, as on the page.

        Args:
            name: the person's words, any script.
            dataset: a file (JSONL, JSON, CSV, Parquet) or a list of rows.
            epochs: passes over the rows; None chooses by their number. learning_rate: peak rate;
                None chooses one for the width of the base. The peer's own are 3 and 2e-4.
            mapping: {"prompt": column, "answer": column} for files with other column names.
            skip_bad: train on the good rows of a file that has bad ones.
            progress: called with a StepRecord after every step and evaluation.
            stop: set it to stop early and keep what has been learned by then.
            settings: any other field of TrainingConfig (validation_fraction, keep, seed, ...).

        Raises:
            LobeError, DataError, ConfigError: refused before training begins.
            MultiLobeError: training failed; nothing is added.
        """
        if target_modules is not None and not isinstance(target_modules, str):
            target_modules = tuple(target_modules)
        values = {"epochs": epochs, "lora_r": lora_r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout}
        values |= {"batch_size": batch_size, "learning_rate": learning_rate, "max_length": max_length}
        config = settings_of(TrainingConfig, {**values, "target_modules": target_modules, **settings})
        run = self.train(name, dataset, config, mapping=mapping, skip_bad=skip_bad, stop=stop)
        return finish(run, _records_alone(progress))

    def train(
        self, name: str, source: Source, config: TrainingConfig, **options: Any
    ) -> Generator[StepRecord | str, None, Lobe]:
        """`add_lobe` as a generator of the name of each phase and every StepRecord; see `train_new_lobe`."""
        return train_new_lobe(self.lobes, name, source, config, **options)

    def import_adapter(
        self, name: str, path: str | Path, dataset_for_routing: Source | None = None, *, owner: str = ""
    ) -> Lobe:
        """Make a lobe of any PEFT LoRA adapter folder or zip that fits the base.

        Args:
            dataset_for_routing: rows of the kind that it was trained on, so that the embedding
                router knows it; without them it is found by log-prob or by hand.

        Raises:
            LobeError: the name. AdapterError: it cannot be run exactly here. BundleError: an unsafe zip.
        """
        name = self.lobes.store.check_free(name)
        with prepare_adapter(Path(path)) as adapter:
            read_matrices(read_header(adapter))  # refuses numbers that are not finite
            if dataset_for_routing is not None:
                examples = dataset.load(dataset_for_routing)
                train, validation = dataset.split(examples, 0.1)
                write_routing_rows(adapter, rows_to_keep(self.embedder, train, validation))
            return self.lobes.add(adapter, self.lobes.new_card(name, "imported adapter", owner=owner))

    def remove_lobe(self, name: str, *more: str) -> None:
        """Delete lobes and their files; see `Lobes.remove`. Several at once are quicker."""
        self.lobes.remove(name, *more)

    def rename_lobe(self, name: str, new_name: str) -> Lobe:
        """Give a lobe another name; see `Lobes.rename`."""
        return self.lobes.rename(name, new_name)

    def route(self, prompt: str, router: str | None = None, mixing: Mixing = AUTO) -> RoutingDecision:
        """Decide which lobes should answer a prompt, by the router of that name."""
        return self.answers.route(prompt, router, mixing)

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
            settings: what that router lets one set. stop: set it to end early with the best so far.

        Raises:
            ConfigError: no such router or setting. RoutingError: there is nothing to learn from.
        """
        return finish(self.routers.fitting(name, settings, stop), progress)

    @overload
    def generate(
        self, prompt: Prompt, lobe: str | None = ..., return_metadata: Literal[False] = ..., **sampling: Any
    ) -> str: ...
    @overload
    def generate(
        self, prompt: Prompt, lobe: str | None = ..., *, return_metadata: Literal[True], **sampling: Any
    ) -> tuple[str, dict[str, Any]]: ...
    def generate(
        self,
        prompt: Prompt,
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
            router: the router to ask, of `routers.ROUTERS`; None is the model's own. mixing: how
                many lobes answer.
            sampling: fields of SamplingConfig: max_new_tokens, temperature, top_p, top_k, seed, ...
        Returns: the answer, or (answer, metadata) with selected_lobe, router_confidence, router_type,
            router_scores, router_ms, the whole `decision`, and `cost` (see `Answers.cost`).

        Raises:
            RoutingError: no lobe of that name. ConfigError: a setting, or an empty or too long prompt.
        """
        messages, config = checked_messages(prompt), settings_of(SamplingConfig, sampling)
        decision = self.answers.decide(messages, lobe, weights, router=router, mixing=mixing)
        request, began = self.answers.request(messages, decision, config, mixing=mixing), time.perf_counter()
        tokens = [token for (token,) in generate_tokens(self.bank, [request]) if token is not None]
        cost = self.answers.cost(decision, request, len(tokens), time.perf_counter() - began)
        text = self.backbone.decode(tokens).strip()
        return (text, {**metadata(decision), "cost": cost}) if return_metadata else text

    def stream(
        self,
        prompt: Prompt,
        lobe: str | None = None,
        *,
        weights: Mapping[str, float] | None = None,
        router: str | None = None,
        mixing: Mixing = AUTO,
        stop: threading.Event | None = None,
        **sampling: Any,
    ) -> Iterator[str]:
        """Like `generate`, yielding pieces of text as they are made; set `stop` to end early."""
        messages, config = checked_messages(prompt), settings_of(SamplingConfig, sampling)
        decision = self.answers.decide(messages, lobe, weights, router=router, mixing=mixing)
        request = self.answers.request(messages, decision, config, mixing=mixing, stop=stop)
        yield from stream_text(self.bank, request)

    def save(self, path: str | Path, names: Sequence[str] | None = None) -> Path:
        """Write all lobes, or those named, as a bundle without the base: a zip, or a folder.

        Raises:
            BundleError: there is nothing to save, or the path is in use. LobeError: an unknown name.
        """
        chosen = list(self.lobes)
        if names is not None:
            chosen = [self.lobes.named(name) for name in names]
        fits = self.routers.fits_of(births(chosen))
        return save_bundle(Path(path), chosen, describe(self.backbone), self.embedder.name, fits)

    @classmethod
    def load(cls, path: str | Path, device: str | None = None, **kwargs: Any) -> MultiLobeModel:
        """A model with the lobes of a bundle, on the base that the bundle names.

        Args:
            kwargs: as for `from_pretrained`; `model_name` if the base lies somewhere else here.
        """
        with open_bundle(Path(path)) as opened:
            name = kwargs.pop("model_name", None) or opened.manifest.base["name"]
            kwargs.setdefault("embedding_model", opened.manifest.embedding_model or MINILM_NAMES[0])
        model = cls.from_pretrained(name, device=device, **kwargs)
        model.load_bundle(path)
        return model

    def load_bundle(
        self, path: str | Path, on_clash: OnClash = "rename", *, owner: str = "", settings: bool = True
    ) -> list[Lobe]:
        """Add all lobes of a bundle (folder or zip, also one of `multilobe` 0.1.0), or none.

        Rows for routing that cannot be trusted, or are of another encoder, are embedded anew.

        Args:
            on_clash: what to do about a name that exists: "refuse" the bundle, "rename" the
                newcomer, or "replace" the old lobe.
            settings: whether a person's settings of routers (stages of the chain, words) that came
                with it are taken, where nothing was here before.

        Raises:
            BundleError: damaged, unsafe, newer, or of another base. BackboneError: vectors must be
                made anew and the sentence encoder is not to be had. Then nothing has changed.
        """
        lobes, here = self.lobes, Base(self.backbone.name, self.backbone.fingerprint, self.bank.features)
        with (
            lobes.lock,
            loading_bundle(path, lobes.store, here, on_clash, owner, lobes.encoding.mend) as loaded,
            lobes.instead(loaded.replaced, loaded.lobes),
        ):
            came = births(lobe for lobe in loaded.lobes if lobe.id in self.bank)
            self.routers.take(loaded.fits, came, settings=settings)
        return loaded.lobes


def _records_alone(progress: Callable[[StepRecord], None] | None) -> Callable[[StepRecord | str], None]:
    """What passes a StepRecord on, and no name of a phase."""

    def told(event: StepRecord | str) -> None:
        if progress and isinstance(event, StepRecord):
            progress(event)

    return told


def _threshold(value: float | str | None) -> float | None:
    if value in (None, "auto"):
        return None
    try:
        number = float(cast(float, value))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"embedding_threshold is {value!r}: it must be 'auto' or a number.") from error
    check(-1 <= number <= 1, "embedding_threshold", number, "a cosine from -1 to 1, or 'auto'")
    return number


__all__ = ["Lobe", "MultiLobeModel", "metadata"]
