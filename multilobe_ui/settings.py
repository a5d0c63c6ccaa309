"""Settings as frozen dataclasses. One line is a setting: its default, label, help and range.

From that line come the check of a value, the field of a form, the option of the command line with
its help, and the error that an API client gets.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from functools import cache
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from .errors import ConfigError

T = TypeVar("T")
EMPTY_IS = "automatic"
"""What a setting that may be empty is then."""


@dataclass(frozen=True)
class About:
    """What is known of a setting besides its type and default.

    Attributes:
        label: in forms; "" keeps it out of them. help: a sentence or two. low, high: it may have
            these values. above, below: it must not reach these.
    """

    label: str
    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def range(self) -> str:
        """In words, such as "from 1 to 1000"; "" if there is none."""
        if self.low is not None and self.high is not None:
            return f"from {_short(self.low)} to {_short(self.high)}"
        words = [
            *([f"at least {_short(self.low)}"] if self.low is not None else []),
            *([f"above {_short(self.above)}"] if self.above is not None else []),
            *([f"at most {_short(self.high)}"] if self.high is not None else []),
            *([f"below {_short(self.below)}"] if self.below is not None else []),
        ]
        return " and ".join(words)

    def holds(self, value: float) -> bool:
        """Whether a number lies in the range."""
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def setting(
    default: Any,
    label: str,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A field of a settings dataclass; the arguments are those of `About`."""
    return field(default=default, metadata={"about": About(label, help, low, high, above, below)})


def about(of: Field[Any]) -> About:
    """What a field says of itself."""
    found: About = of.metadata.get("about") or About("", "")
    return found


def kind_of(settings: type[Any], name: str) -> tuple[type[Any], tuple[str, ...], bool]:
    """(bool, int, float or str; the values that it may have, if it is one of several words; whether
    it may be empty)."""
    return _kinds(settings)[name]  # type: ignore[arg-type]


@cache
def _kinds(settings: type[Any]) -> dict[str, tuple[type[Any], tuple[str, ...], bool]]:
    found: dict[str, tuple[type[Any], tuple[str, ...], bool]] = {}
    for name, hint in get_type_hints(settings).items():
        options = get_args(hint) if get_origin(hint) is not Literal else (hint,)
        some = [option for option in options or (hint,) if option is not NoneType]
        words = get_args(some[0]) if get_origin(some[0]) is Literal else ()
        plain = str if words else some[0]
        found[name] = plain, words, NoneType in options
    return found


def check(holds: bool, name: str, value: object, rule: str) -> None:
    """Raise ConfigError "NAME is VALUE: RULE" unless `holds`."""
    if not holds:
        raise ConfigError(f"{name} is {value!r}: it must be {rule}.")


def check_all(settings: Any) -> None:
    """Check every `setting` of a dataclass for its type and range.

    Raises:
        ConfigError: with the name, the value and what it must be.
    """
    for one in fields(settings):
        if "about" in one.metadata and one.name != "target_modules":
            check(_fits(type(settings), one, getattr(settings, one.name)), one.name, getattr(settings, one.name),
                  rule(type(settings), one))  # fmt: skip


def rule(settings: type[Any], of: Field[Any]) -> str:
    """What a value must be, such as "a whole number from 1 to 1000, or empty (automatic)"."""
    kind, words, optional = kind_of(settings, of.name)
    if words:
        told = f"one of {', '.join(map(repr, words))}"
    elif kind is bool:
        told = "True or False"
    elif kind is str:
        told = "a text"
    else:
        told = f"{'a whole number' if kind is int else 'a number'} {about(of).range()}".strip()
    return f"{told}, or empty ({EMPTY_IS})" if optional else told


def _fits(settings: type[Any], of: Field[Any], value: object) -> bool:
    kind, words, optional = kind_of(settings, of.name)
    if value is None:
        return optional
    if words:
        return value in words
    if kind in (int, float):
        number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        return number and about(of).holds(value)  # type: ignore[arg-type]  # never true of NaN
    return isinstance(value, kind)


def _short(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) and number >= 10_000 else f"{number:g}"


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
    except TypeError:
        raise ConfigError(f"A setting has a value of the wrong type: {dict(values)}. Give numbers as numbers.") from None


@dataclass(frozen=True)
class TrainingConfig:
    """How one lobe is trained. None is chosen for the base and the rows when training begins
    (`resolved`); the other defaults are the peer's where it has them."""

    epochs: int | None = setting(None, "Epochs", "How often all rows are read. Empty: automatic.", low=1, high=1000)
    learning_rate: float | None = setting(
        None, "Learning rate", "Empty: automatic.", above=0, below=1
    )  # its peak; None chooses one for the width of the base (see `suggested_learning_rate`)
    validation_fraction: float | None = setting(
        None, "Held-out share", "Rows that are measured, not trained: 0 to 0.5. Empty: automatic.", low=0, high=0.5
    )  # None chooses by the rows (see `data.held_out`): none at all where they are facts
    lora_r: int = setting(16, "Rank (r)", "Size of the lobe: more can learn more, and weighs more.", low=1, high=1024)
    lora_alpha: int = setting(32, "Alpha", "Strength of the lobe: it is scaled by alpha / r.", above=0)
    lora_dropout: float = setting(
        0.05, "Dropout", "Share of inputs left out at random, against learning by heart.", low=0, below=1
    )
    batch_size: int = setting(4, "Batch size", "Rows in one step; lower it if memory runs out.", low=1, high=1024)
    max_length: int = setting(
        512, "Longest row (tokens)", "Longer rows are cut; the answer is kept first.", low=8, high=1_000_000
    )
    patience: int = setting(
        0, "Patience", "Stop after so many measurements on held-out rows without gain; 0: never.", low=0
    )
    prompt_weight: float = setting(
        0.1, "Prompt weight", "How much prompts count beside answers: 0 to 1.", low=0, high=1
    )  # the log-prob router reads prompts, so it profits when lobes have learned them a little
    seed: int = setting(0, "Seed", "Same seed, same data: same curve.", low=0, high=2**32 - 1)
    keep: Literal["last", "best"] = setting(
        "last", "Keep", "The last step, or the one with the lowest loss on held-out rows."
    )
    target_modules: str | tuple[str, ...] | None = setting(
        None, "Target modules", "Linear layers that learn, such as q_proj, v_proj. Empty: all."
    )
    use_rslora: bool = setting(
        False, "rsLoRA", "Scale by alpha / √r, which keeps high ranks stable."
    )  # Kalajdzievski 2023
    gradient_accumulation: int = setting(1, "", "Batches summed into one optimizer step.", low=1, high=1024)
    warmup_fraction: float = setting(
        0.06, "", "Share of all steps with linear warm-up; a cosine to zero follows.", low=0, high=1
    )
    weight_decay: float = setting(0.0, "", "Decoupled weight decay of AdamW.", low=0)
    max_grad_norm: float = setting(1.0, "", "Gradients are clipped to this norm.", above=0)
    evaluations_per_epoch: int = setting(2, "", "Measurements on held-out rows in every epoch.", low=1, high=100)

    def __post_init__(self) -> None:
        if isinstance(self.target_modules, list):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        check_all(self)

    def resolved(self, rows: int, hidden_size: int, held_out_share: float = 0.0) -> TrainingConfig:
        """These settings with a number in the place of every None.

        Args:
            rows: how many are trained. hidden_size: width of the base. held_out_share: what takes
                the place of an automatic validation_fraction.
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

    max_new_tokens: int = setting(256, "Longest answer", "Tokens.", low=1)
    temperature: float = setting(0.7, "Temperature", "0 is always the likeliest token.", low=0, high=10)
    top_p: float = setting(0.9, "Top-p", "Share of probability to draw from.", above=0, high=1)
    top_k: int = setting(0, "Likeliest tokens", "So many to draw from, 0 for all.", low=0)
    repetition_penalty: float = setting(1.0, "Repetition penalty", "1 is none.", above=0, high=10)
    do_sample: bool = setting(True, "", "False takes the likeliest token at every step (greedy), as temperature 0 does.")
    seed: int | None = setting(None, "Seed", "A number draws the same again.")

    def __post_init__(self) -> None:
        check_all(self)

    @property
    def greedy(self) -> bool:
        return not self.do_sample or self.temperature == 0


@dataclass(frozen=True)
class XLoraSettings:
    """How an X-LoRA head is made and trained (`routers.xlora.training.train_head`)."""

    depth: int = setting(1, "Depth", "Linear layers of the head.", low=1, high=8)
    size: int = setting(64, "Size", "Features between the layers of a head of depth 2 or more.", low=1, high=8192)
    layerwise: bool = setting(
        True, "Layerwise", "Weights of their own for every adapted layer; else a token has the same in all layers."
    )
    granularity: Literal["token", "sequence", "both"] = setting(
        "both", "Granularity", "What a token is weighed by: its own hidden state as in PEFT, the mean of all so far, or both."
    )  # on eight domains both is the best in accuracy and in loss
    temperature: float = setting(
        1.0, "Temperature", "Divides the head's outputs before the softmax: higher mixes more evenly.", above=0, high=100
    )
    top_k: int = setting(0, "Top-k", "Train with the k best lobes of each token alone; 0 mixes all.", low=0, high=1000)
    dropout: float = setting(0.0, "Dropout", "Of the head's features.", low=0, below=1)
    supervised_steps: int = setting(
        400, "Supervised steps", "Optimizer steps on the rows' own lobes as labels.", low=0, high=100_000
    )
    language_steps: int = setting(
        120, "Language steps", "Optimizer steps on the answers' loss, after those.", low=0, high=100_000
    )
    learning_rate: float = setting(1e-2, "Learning rate", "Peak rate of the supervised steps.", above=0, below=1)
    language_rate: float = setting(2e-3, "Language rate", "Rate at which the language steps begin.", above=0, below=1)
    label_weight: float = setting(
        0.05, "Label weight", "Share of the label loss in the language steps, so that the head keeps the lobes.", low=0, high=1
    )
    batch_size: int = setting(8, "Batch size", "Rows in one language step.", low=1, high=1024)
    rows_per_lobe: int = setting(
        256, "Rows per lobe", "Most training rows of each; held out are at most a quarter as many.", low=4, high=100_000
    )
    max_length: int = setting(256, "Longest row (tokens)", "Longer rows are cut.", low=8, high=100_000)
    seed: int = setting(0, "Seed", "Same seed, same rows: same head.", low=0, high=2**32 - 1)

    def __post_init__(self) -> None:
        check_all(self)


def budget_from_environment() -> float | None:
    """MULTILOBE_MEMORY_MIB, the MiB that lobes may take in memory; None if it is not set. Raises
    ConfigError if it is no number."""
    text = os.environ.get("MULTILOBE_MEMORY_MIB", "").strip()
    try:
        mib = float(text) if text else None
    except ValueError:
        mib = math.nan
    check(mib is None or mib > 0, "MULTILOBE_MEMORY_MIB", text, "a number of MiB above 0, or empty for no limit")
    return mib


def suggested_learning_rate(hidden_size: int) -> float:
    """Peak LoRA learning rate for a base of this width: the power law through 2e-4 at 4,096 (common
    practice) and 3e-3 at 320 (measured on the built-in base); widths between are interpolated, not
    measured."""
    return float(f"{min(3e-3, 2e-4 * (4096 / max(1, hidden_size)) ** 1.062):.2g}")


def suggested_epochs(rows: int) -> int:
    """Passes over so many rows where nobody asks for others: 15, and one more for every 24 rows.
    Fewer than 55 rows are passed as often as makes 900 rows in all, but at most 60 times; many rows
    as often as makes 9,000, but at least 3 times.

    Measured on the built-in base with invented facts (`tests/facts.py`), answered word for word: of
    60 rows 57 and 58 after 16 passes, 59 three times after 17 (37 s of one core), and 59 or 60
    after 20 (43 s); with answers of 25 words 56 after 17. Of 120 rows 80 after 14 and 117 after 20;
    of 300 rows 112 after 17, which is why many rows are read 9,000 times in all.
    """
    rows = max(1, rows)
    wanted = min(60, max(15 + rows // 24, math.ceil(900 / rows)))
    return min(wanted, max(3, round(9000 / rows)))
