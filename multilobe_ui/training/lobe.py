"""Training one lobe: a PEFT LoRA on a twin of the frozen base, as a generator of step records.

There are no threads and no pages here. The caller iterates, shows what it likes, and may set a stop
event; whatever happens after a checkpoint, training goes on from it to the same curve. What is
random (order of rows, dropout) depends on the seed and the step alone, so no random state needs to be kept.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..base.backbone import Backbone
from ..base.fast import for_training
from ..data.examples import Example
from ..errors import ConfigError, DataError, MultiLobeError
from ..files import new_folder, read_json, sha256_of, write_json
from ..lobes.adapter import WEIGHTS_FILE
from ..settings import TrainingConfig
from .adapters import adapter_tensors, as_list, begin_from, lora_twin, save_adapter
from .batches import Batch, TokenRows, make_batch, mean_answer_loss, packs_exactly, token_losses
from .loop import schedule


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step, or an evaluation (then `validation_loss` is set). Losses are mean NLL per
    answer token, in nats."""

    step: int
    steps: int
    epoch: float
    loss: float | None
    validation_loss: float | None
    learning_rate: float
    grad_norm: float | None
    tokens: int
    tokens_per_second: float
    seconds: float
    seconds_left: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TrainingResult:
    """What came out; losses are mean NLL per answer token, in nats.

    Attributes:
        steps: optimizer steps made. kept: whether the adapter is that of the "last" step or of the
            "best". kept_step: its step.
        train_rows, validation_rows: rows that were trained, and rows held out.
        base_validation_loss, validation_loss: of the plain base and of the adapter kept; None
            without held-out rows.
        train_loss: of the last step.
    """

    steps: int
    kept: str
    kept_step: int
    stopped: bool
    train_rows: int
    validation_rows: int
    truncated_rows: int
    base_validation_loss: float | None
    validation_loss: float | None
    train_loss: float | None
    learning_rate: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def train_lobe(
    backbone: Backbone,
    train: Sequence[Example],
    validation: Sequence[Example],
    config: TrainingConfig,
    folder: Path,
    *,
    checkpoint: Path | None = None,
    stop: threading.Event | None = None,
    start: Path | None = None,
    watch: Callable[[Callable[..., Any]], None] | None = None,
) -> Generator[StepRecord, None, TrainingResult]:
    """Train a LoRA on `backbone` and write it to `folder` as a plain PEFT adapter: that of the last
    step, or of the best.

    Args:
        train, validation: rows to learn from, and rows held out to measure the loss (may be empty:
            then the last step is kept).
        config: what is None in it is chosen (`TrainingConfig.resolved`); its validation_fraction
            has no say here.
        folder: where the adapter goes; it appears in one step when training ends.
        checkpoint: folder for progress; if it holds a checkpoint of the same rows and settings,
            training resumes from it.
        stop: set it to end after the step under way; the newest step is kept, or the best so far
            where config.keep says so.
        start: adapter folder to go on from, of the same rank, scaling and layers; None begins with
            a fresh one.
        watch: called with the model, in evaluation mode and without gradients, at every evaluation.

    Yields: a record for every optimizer step and, with held-out rows, every evaluation; step 0 is
        that of the plain base (or of `start`).
    Returns: a TrainingResult (the generator's return value).

    Raises:
        DataError: no rows. ConfigError: unknown target modules. MultiLobeError: out of memory, or
            the loss is not finite.
        AdapterError, ConfigError: `start` cannot be read, or does not fit the settings.
    """
    if not train:
        raise DataError("There is no row to train on.")
    run = _Run(backbone, train, validation, config, checkpoint, stop or threading.Event(), start, watch)
    try:
        yield from run.records()
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):  # GPU, CPU
            raise
        raise MultiLobeError(
            f"Out of memory with batch_size={config.batch_size} and max_length={config.max_length}. Lower one of them."
        ) from error
    return run.save(folder)


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        backbone: Backbone,
        train: Sequence[Example],
        validation: Sequence[Example],
        config: TrainingConfig,
        checkpoint: Path | None,
        stop: threading.Event,
        start: Path | None = None,
        watch: Callable[[Callable[..., Any]], None] | None = None,
    ) -> None:
        config = config.resolved(len(train), backbone.hidden_size)
        self.backbone, self.config, self.checkpoint, self.stop = backbone, config, checkpoint, stop
        self.start, self.watch = start, watch
        max_length = min(config.max_length, backbone.context_length)
        self.train = TokenRows(backbone, train, max_length)
        self.validation = TokenRows(backbone, validation, max_length)
        self.keeps_best = config.keep == "best" and len(self.validation) > 0
        self.learning_rate = float(config.learning_rate or 0.0)
        per_step = config.batch_size * config.gradient_accumulation
        self.steps_per_epoch = math.ceil(len(self.train) / per_step)
        self.steps = self.steps_per_epoch * int(config.epochs or 0)
        self.evaluate_every = max(1, self.steps_per_epoch // config.evaluations_per_epoch)

        self.packs = packs_exactly(backbone)
        self.model = lora_twin(backbone, config)
        self.model.eval()  # all of it: `_optimize` looks at the top only
        self.longest_apart = for_training(self.model).longest_row
        if start is not None:
            begin_from(self.model, start)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        # One kernel for all matrices: on a CPU the plain loop over them takes six times as long, a
        # twentieth of a step.
        optimizer = torch.optim.AdamW(
            parameters,
            lr=self.learning_rate,
            weight_decay=config.weight_decay,
            fused=backbone.device.type in ("cpu", "cuda"),
        )
        self.accelerator = Accelerator(cpu=backbone.device.type == "cpu")
        # alone, everything stays where the base is: moving the twin would move the base's own weights
        moved = [self.accelerator.num_processes > 1] * 2
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, optimizer, device_placement=moved)
        self.parameters = parameters

        self.step = 0
        self.tokens = 0
        self.seconds = 0.0
        self.best: dict[str, Tensor] = {}
        self.best_step = self.measured_step = 0
        self.best_loss: float | None = None
        self.newest_loss: float | None = None
        self.base_loss: float | None = None
        self.recent_loss: float | None = None
        self.evaluations_without_gain = 0
        self._resumed = self._restore()

    # ---- the loop ---------------------------------------------------------------------------------------------------------

    def records(self) -> Iterator[StepRecord]:
        began, spent, saved, cost = time.perf_counter(), self.seconds, time.perf_counter(), 0.0
        if not self._resumed and len(self.validation):
            self.base_loss = self._evaluate()
            yield self._record(validation_loss=self.base_loss)
        while self.step < self.steps and not self.stop.is_set() and not self._should_stop_early():
            loss, grad_norm = self._optimize()
            self.step += 1
            self.seconds = spent + time.perf_counter() - began
            yield self._record(loss=loss, grad_norm=grad_norm)
            evaluated = len(self.validation) > 0 and (self.step % self.evaluate_every == 0 or self.step == self.steps)
            if evaluated:
                yield self._record(validation_loss=self._measure())
            # a checkpoint costs time: so seldom that it is at most a twentieth of all
            if self.checkpoint and (evaluated or time.perf_counter() - saved > max(5.0, 20 * cost)):
                start = time.perf_counter()
                self._save_checkpoint()
                saved, cost = time.perf_counter(), time.perf_counter() - start
        self.seconds = spent + time.perf_counter() - began
        if self.checkpoint:
            self._save_checkpoint()  # before the evaluation below, which a run that is not stopped does not have
        if self.stop.is_set() and len(self.validation) and self.step > self.measured_step:
            yield self._record(validation_loss=self._measure())  # stopped between two evaluations

    def _optimize(self) -> tuple[float, float]:
        """One optimizer step; returns (mean NLL per answer token, gradient norm before clipping)."""
        if not self.model.training:  # asked first, because walking a tree of hundreds of modules takes milliseconds
            self.wrapped.train()
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)  # dropout of this step, whether resumed or not
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * schedule(self.step, self.steps, self.config.warmup_fraction)
        batches = [self._batch(self.train, rows) for rows in self._rows_of_step()]
        total_weight = sum(float(b.weights.sum()) for b in batches)
        mine = batches[self.accelerator.process_index :: self.accelerator.num_processes]
        nll = answer_tokens = 0.0
        for batch in mine:
            losses = self._token_losses(batch)
            loss = (losses * batch.weights).sum() / max(total_weight, 1e-9) * self.accelerator.num_processes
            self.accelerator.backward(loss)
            nll += float(losses.detach()[batch.is_answer].sum())
            answer_tokens += float(batch.is_answer.sum())
            self.tokens += batch.tokens
        grad_norm = float(self.accelerator.clip_grad_norm_(self.parameters, self.config.max_grad_norm))
        if not math.isfinite(grad_norm):
            raise MultiLobeError(
                f"The loss is no longer a finite number at step {self.step + 1}. Lower the learning rate "
                f"({self.learning_rate:g}) and start again; lobes that exist are untouched."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.recent_loss = nll / max(answer_tokens, 1.0)
        return self.recent_loss, grad_norm

    def _rows_of_step(self) -> list[np.ndarray[Any, Any]]:
        """Row numbers of this step's batches: a new order every epoch, from the seed."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.train))
        size, count = self.config.batch_size, self.config.gradient_accumulation
        rows = order[place * size * count : (place + 1) * size * count]
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    @torch.no_grad()
    def _evaluate(self) -> float:
        """Mean NLL per answer token over the held-out rows."""
        self.wrapped.eval()
        if self.watch:
            self.watch(self.wrapped)
        return mean_answer_loss(self.wrapped, self.backbone, self.validation, self.longest_apart)

    def _measure(self) -> float:
        """`_evaluate` this step, and remember what it says of the best."""
        loss = self._evaluate()
        self.newest_loss, self.measured_step = loss, self.step
        if self.best_loss is not None and loss >= self.best_loss:
            self.evaluations_without_gain += 1
            return loss
        self.best_loss, self.best_step, self.evaluations_without_gain = loss, self.step, 0
        if self.keeps_best:
            self.best = {k: v.detach().clone() for k, v in adapter_tensors(self.model).items()}
        return loss

    def _should_stop_early(self) -> bool:
        return 0 < self.config.patience <= self.evaluations_without_gain

    def _record(
        self, *, loss: float | None = None, validation_loss: float | None = None, grad_norm: float | None = None
    ) -> StepRecord:
        per_step = self.seconds / self.step if self.step else 0.0
        return StepRecord(
            step=self.step,
            steps=self.steps,
            epoch=self.step / self.steps_per_epoch,
            loss=loss,
            validation_loss=validation_loss,
            learning_rate=self.learning_rate * schedule(max(0, self.step - 1), self.steps, self.config.warmup_fraction),
            grad_norm=grad_norm,
            tokens=self.tokens,
            tokens_per_second=self.tokens / self.seconds if self.seconds else 0.0,
            seconds=self.seconds,
            seconds_left=per_step * (self.steps - self.step),
        )

    # ---- batches ----------------------------------------------------------------------------------------------------------

    def _batch(self, rows: TokenRows, numbers: Sequence[int] | np.ndarray[Any, Any]) -> Batch:
        pairs = [rows.row(int(i)) for i in numbers]
        return make_batch(pairs, self.config.prompt_weight, self.packs, self.backbone, self.longest_apart)

    def _token_losses(self, batch: Batch) -> Tensor:
        return token_losses(self.wrapped, self.backbone, batch)

    # ---- disk -------------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> TrainingResult:
        """Write the adapter of the step that is kept."""
        if self.best:
            set_peft_model_state_dict(self.model, self.best)
        if self.accelerator.is_main_process:
            with new_folder(folder) as temporary:
                save_adapter(self.model, temporary, self.backbone.name)
        return TrainingResult(
            steps=self.step,
            kept="best" if self.best else "last",
            kept_step=self.best_step if self.best else self.step,
            stopped=self.stop.is_set() and self.step < self.steps,
            train_rows=len(self.train),
            validation_rows=len(self.validation),
            truncated_rows=self.train.truncated + self.validation.truncated,
            base_validation_loss=self.base_loss,
            validation_loss=self.best_loss if self.best else self.newest_loss,
            train_loss=self.recent_loss,
            learning_rate=self.learning_rate,
            seconds=self.seconds,
        )

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to fit: the rows, the settings, the base and the
        adapter to begin from."""
        began = {"start": sha256_of(self.start / WEIGHTS_FILE)} if self.start else {}
        return began | {
            "config": {**self.config.to_json(), "target_modules": as_list(self.config.target_modules)},
            "base": self.backbone.fingerprint,
            "rows": [self.train.fingerprint, self.validation.fingerprint],
        }

    def _save_checkpoint(self) -> None:
        if self.checkpoint is None or not self.accelerator.is_main_process:
            return
        with new_folder(self.checkpoint) as folder:
            save_file(
                {k: v.contiguous() for k, v in adapter_tensors(self.model).items()},
                folder / "now.safetensors",
            )
            if self.best:
                save_file({k: v.contiguous() for k, v in self.best.items()}, folder / "best.safetensors")
            state = self.optimizer.state_dict()["state"]
            moments = {f"{i}.{key}": value for i, values in state.items() for key, value in values.items()}
            save_file({k: v.contiguous() for k, v in moments.items()}, folder / "optimizer.safetensors")
            names = (
                "step",
                "tokens",
                "seconds",
                "best_step",
                "best_loss",
                "newest_loss",
                "measured_step",
                "base_loss",
                "recent_loss",
                "evaluations_without_gain",
            )
            write_json(
                folder / "state.json", {"identity": self._identity()} | {name: getattr(self, name) for name in names}
            )

    def _restore(self) -> bool:
        """Take up a checkpoint; False if there is none. One of other rows or settings is an error,
        never silently ignored."""
        if self.checkpoint is None or not (self.checkpoint / "state.json").is_file():
            return False
        state = read_json(self.checkpoint / "state.json")
        if state.pop("identity") != self._identity():
            raise ConfigError(
                "The checkpoint belongs to other rows, settings or another base. Start a new run instead."
            )
        for name, value in state.items():
            setattr(self, name, value)
        set_peft_model_state_dict(self.model, load_file(self.checkpoint / "now.safetensors"))
        if (self.checkpoint / "best.safetensors").is_file():
            self.best = load_file(self.checkpoint / "best.safetensors", device=str(self.backbone.device))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(self.checkpoint / "optimizer.safetensors").items():
            number, name = key.split(".", 1)
            moments.setdefault(int(number), {})[name] = value
        whole = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**whole, "state": moments})
        return True
