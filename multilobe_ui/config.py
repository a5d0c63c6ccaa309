"""Settings as frozen dataclasses. A value out of range is refused here, with the rule and the value, and nowhere else."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from .errors import ConfigError

T = TypeVar("T")


def check(holds: bool, name: str, value: object, rule: str) -> None:
    """Raise ConfigError "NAME is VALUE: RULE" unless `holds`."""
    if not holds:
        raise ConfigError(f"{name} is {value!r}: it must be {rule}.")


def from_json(kind: type[T], values: dict[str, Any]) -> T:
    """Build a settings object from JSON; unknown keys (from a newer version) are ignored."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: value for key, value in values.items() if key in known})


@dataclass(frozen=True)
class TrainingConfig:
    """How one lobe is trained. The defaults are the peer's where it has them."""

    epochs: int = 3
    """Passes over the training rows."""
    lora_r: int = 16
    """Rank of the LoRA matrices."""
    lora_alpha: int = 32
    """The delta is scaled by lora_alpha / r (or lora_alpha / sqrt(r) with rsLoRA)."""
    lora_dropout: float = 0.05
    """Dropout on the input of every LoRA matrix A, while training."""
    target_modules: str | tuple[str, ...] | None = None
    """Names of the linear layers that get a LoRA; None means every linear layer but the output head."""
    use_rslora: bool = False
    """Rank-stabilised scaling (Kalajdzievski 2023)."""
    batch_size: int = 4
    """Rows in one optimizer step, before accumulation."""
    gradient_accumulation: int = 1
    """Batches summed into one optimizer step."""
    learning_rate: float | None = None
    """Peak learning rate; None chooses one for the size of the base (see `suggested_learning_rate`)."""
    warmup_fraction: float = 0.06
    """Share of all steps with linear warm-up; a cosine to zero follows."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 512
    """Longest row in tokens; longer rows are cut (the answer is kept before the prompt)."""
    prompt_weight: float = 0.1
    """Weight of a prompt token in the loss, against 1 for an answer token. The log-prob router reads prompts, so it
    profits when lobes have learned them a little."""
    validation_fraction: float = 0.1
    """Share of rows held out to measure the loss, choose the best checkpoint and calibrate routing."""
    evaluations_per_epoch: int = 2
    patience: int = 0
    """Stop after so many evaluations without a better validation loss; 0 never stops early."""
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.target_modules, list):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        check(1 <= self.epochs <= 1000, "epochs", self.epochs, "a whole number from 1 to 1000")
        check(1 <= self.lora_r <= 1024, "lora_r", self.lora_r, "a whole number from 1 to 1024")
        check(self.lora_alpha > 0, "lora_alpha", self.lora_alpha, "above 0")
        check(0 <= self.lora_dropout < 1, "lora_dropout", self.lora_dropout, "at least 0 and below 1")
        check(1 <= self.batch_size <= 1024, "batch_size", self.batch_size, "a whole number from 1 to 1024")
        check(1 <= self.gradient_accumulation <= 1024, "gradient_accumulation", self.gradient_accumulation, "1 to 1024")
        rate = self.learning_rate
        check(rate is None or 0 < rate < 1, "learning_rate", rate, "above 0 and below 1, or empty for automatic")
        check(0 <= self.warmup_fraction <= 1, "warmup_fraction", self.warmup_fraction, "from 0 to 1")
        check(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        check(self.max_grad_norm > 0, "max_grad_norm", self.max_grad_norm, "above 0")
        check(8 <= self.max_length <= 1_000_000, "max_length", self.max_length, "at least 8 tokens")
        check(0 <= self.prompt_weight <= 1, "prompt_weight", self.prompt_weight, "from 0 to 1")
        check(0 <= self.validation_fraction <= 0.5, "validation_fraction", self.validation_fraction, "from 0 to 0.5")
        check(1 <= self.evaluations_per_epoch <= 100, "evaluations_per_epoch", self.evaluations_per_epoch, "1 to 100")
        check(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 4294967295")
        check(self.patience >= 0, "patience", self.patience, "0 (never) or more")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn while generating."""

    max_new_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 0
    """Keep only the k likeliest tokens; 0 keeps all."""
    repetition_penalty: float = 1.0
    do_sample: bool = True
    """False takes the likeliest token at every step (greedy); temperature 0 means the same."""
    seed: int | None = None

    def __post_init__(self) -> None:
        check(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1")
        check(0 <= self.temperature <= 10, "temperature", self.temperature, "from 0 to 10")
        check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        check(self.top_k >= 0, "top_k", self.top_k, "0 (off) or more")
        check(0 < self.repetition_penalty <= 10, "repetition_penalty", self.repetition_penalty, "above 0, at most 10")

    @property
    def greedy(self) -> bool:
        return not self.do_sample or self.temperature == 0


def suggested_learning_rate(hidden_size: int) -> float:
    """Peak LoRA learning rate for a base of this width: the power law through 2e-4 at 4,096 (common practice) and 4e-3 at 320
    (measured on the built-in base); widths between are interpolated, not measured."""
    return float(f"{min(4e-3, 2e-4 * (4096 / max(1, hidden_size)) ** 1.175):.2g}")


def suggested_epochs(rows: int) -> int:
    """Passes that the app proposes for a file of so many rows, and that the demo lobes were trained with: 10, or fewer where that
    would be more than 5,200 rows in all, but at least 3. (Measured on the built-in base: at 5 passes over the 522 rows of
    python.jsonl 11 of 27 reworded questions were answered right, at 10 passes 25.)"""
    return min(10, max(3, round(5200 / max(1, rows))))
