"""Settings as frozen dataclasses. A value out of range is refused here, with the rule and the value, and nowhere else."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeVar

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


def settings_of(kind: type[T], values: Mapping[str, Any]) -> T:
    """Build a settings object from what a person gave.

    Raises:
        ConfigError: a name that is no setting, or a value out of its range or of the wrong type.
    """
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    check(not unknown, "settings", unknown, f"among {', '.join(known)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"A setting has a value of the wrong type ({error}): {dict(values)}.") from None


@dataclass(frozen=True)
class TrainingConfig:
    """How one lobe is trained. None is chosen for the base and the rows when training begins (`resolved`); the other
    defaults are the peer's where it has them."""

    epochs: int | None = None
    """Passes over the training rows; None chooses by their number (see `suggested_epochs`)."""
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
    validation_fraction: float | None = None
    """Share of rows held out to measure the loss; None chooses by the rows (see `dataset.held_out_share`): none at all
    where they are facts."""
    keep: Literal["last", "best"] = "last"
    """Which step's adapter is kept: the last, or the one with the lowest validation loss (the last without held-out rows)."""
    evaluations_per_epoch: int = 2
    patience: int = 0
    """Stop after so many evaluations without a better validation loss; 0 never stops early, nor does a run without
    held-out rows."""
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.target_modules, list):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        epochs, share = self.epochs, self.validation_fraction
        check(epochs is None or 1 <= epochs <= 1000, "epochs", epochs, "a whole number from 1 to 1000, or empty")
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
        check(share is None or 0 <= share <= 0.5, "validation_fraction", share, "from 0 to 0.5, or empty for automatic")
        check(self.keep in ("last", "best"), "keep", self.keep, "'last' or 'best'")
        check(1 <= self.evaluations_per_epoch <= 100, "evaluations_per_epoch", self.evaluations_per_epoch, "1 to 100")
        check(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 4294967295")
        check(self.patience >= 0, "patience", self.patience, "0 (never) or more")

    def resolved(self, rows: int, hidden_size: int, held_out_share: float = 0.0) -> TrainingConfig:
        """These settings with a number in the place of every None.

        Args:
            rows: how many are trained. hidden_size: width of the base. held_out_share: what takes the place of an automatic
                validation_fraction.
        """
        return replace(
            self,
            epochs=self.epochs or suggested_epochs(rows),
            learning_rate=self.learning_rate or suggested_learning_rate(hidden_size),
            validation_fraction=held_out_share if self.validation_fraction is None else self.validation_fraction,
        )

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


@dataclass(frozen=True)
class XLoraSettings:
    """How an X-LoRA head is made and trained (`xlora_training.train_head`)."""

    depth: int = 1
    """Linear layers of the head."""
    size: int = 64
    """Features between the layers of a head of depth 2 or more."""
    layerwise: bool = True
    """Weights of their own for every adapted linear layer; False gives a token the same weights in all layers."""
    granularity: str = "both"
    """What a token is weighed by: "token", its own hidden state as in PEFT; "sequence", the mean one of all tokens so far;
    "both", side by side (on eight domains the best in accuracy and in loss)."""
    temperature: float = 1.0
    """Divides the head's outputs before the softmax: higher mixes more evenly."""
    top_k: int = 0
    """Train with the k best lobes of each token alone; 0 mixes all."""
    dropout: float = 0.0
    supervised_steps: int = 400
    """Optimizer steps on the rows' own lobes as labels."""
    language_steps: int = 120
    """Optimizer steps on the answers' language-model loss, after those."""
    learning_rate: float = 1e-2
    """Peak rate of the supervised steps; the language-model steps begin at `language_rate`."""
    language_rate: float = 2e-3
    label_weight: float = 0.05
    """Share of the label loss while the language-model loss is learned, so that the head does not forget the lobes."""
    batch_size: int = 8
    """Rows in one language-model step."""
    rows_per_lobe: int = 256
    """Most training rows of each lobe; held out are at most a quarter as many."""
    max_length: int = 256
    """Longest row in tokens; longer rows are cut."""
    seed: int = 0

    def __post_init__(self) -> None:
        check(1 <= self.depth <= 8, "depth", self.depth, "from 1 to 8")
        check(1 <= self.size <= 8192, "size", self.size, "from 1 to 8192")
        check(
            self.granularity in ("token", "sequence", "both"),
            "granularity",
            self.granularity,
            "'token', 'sequence' or 'both'",
        )
        check(0 < self.temperature <= 100, "temperature", self.temperature, "above 0 and at most 100")
        check(0 <= self.top_k <= 1000, "top_k", self.top_k, "0 (all lobes) or the number of lobes that mix")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "at least 0 and below 1")
        check(0 <= self.supervised_steps <= 100_000, "supervised_steps", self.supervised_steps, "0 or more")
        check(0 <= self.language_steps <= 100_000, "language_steps", self.language_steps, "0 (none) or more")
        check(0 < self.learning_rate < 1, "learning_rate", self.learning_rate, "above 0 and below 1")
        check(0 < self.language_rate < 1, "language_rate", self.language_rate, "above 0 and below 1")
        check(0 <= self.label_weight <= 1, "label_weight", self.label_weight, "from 0 to 1")
        check(1 <= self.batch_size <= 1024, "batch_size", self.batch_size, "a whole number from 1 to 1024")
        check(4 <= self.rows_per_lobe <= 100_000, "rows_per_lobe", self.rows_per_lobe, "at least 4")
        check(8 <= self.max_length <= 100_000, "max_length", self.max_length, "at least 8 tokens")
        check(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 4294967295")


def budget_from_environment() -> float | None:
    """MULTILOBE_MEMORY_MIB, the MiB that lobes may take in memory; None if it is not set. Raises ConfigError if it is no number."""
    text = os.environ.get("MULTILOBE_MEMORY_MIB", "").strip()
    try:
        mib = float(text) if text else None
    except ValueError:
        mib = math.nan
    check(mib is None or mib > 0, "MULTILOBE_MEMORY_MIB", text, "a number of MiB above 0, or empty for no limit")
    return mib


def suggested_learning_rate(hidden_size: int) -> float:
    """Peak LoRA learning rate for a base of this width: the power law through 2e-4 at 4,096 (common practice) and 3e-3 at 320
    (measured on the built-in base); widths between are interpolated, not measured."""
    return float(f"{min(3e-3, 2e-4 * (4096 / max(1, hidden_size)) ** 1.062):.2g}")


def suggested_epochs(rows: int) -> int:
    """Passes over so many rows where nobody asks for others: 15, and one more for every 24 rows. Fewer than 55 rows are passed
    as often as makes 900 rows in all, but at most 60 times; many rows as often as makes 5,200, but at least 3 times.

    Measured on the built-in base with invented facts (`tests/facts.py`), answered word for word: of 60 rows 57 and 58 after 16
    passes, 59 three times after 17 (37 s of one core), and 59 or 60 after 20 (43 s); with answers of 25 words 56 after 17. Of
    120 rows 80 after 14 and 117 after 20; of 300 rows 112 after 17, so the limit of 5,200 is felt.
    """
    rows = max(1, rows)
    wanted = min(60, max(15 + rows // 24, math.ceil(900 / rows)))
    return min(wanted, max(3, round(9000 / rows)))
