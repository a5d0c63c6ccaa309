"""What may be set of a loss matrix and of a forgetting check. Nothing heavy is imported, so that the
page has its forms before the model is there."""

from __future__ import annotations

from dataclasses import dataclass

from ..lobes.store import same_name
from ..routers import ROUTERS
from ..settings import check, check_all, setting

FEWEST_ROWS = 4


@dataclass(frozen=True)
class LossSettings:
    """What is asked of a loss matrix."""

    most_rows: int = setting(
        64, "Rows of each dataset, at most", "More rows: surer numbers, longer to wait.", low=1, high=10_000
    )
    router: str = setting("", "", "The router that is held against the oracle. Empty: the model's own.")
    task: bool = setting(
        True, "Also answer, where answers are short",
        "Writes answers out and compares them with those wanted: exact match and F1. Takes longer.",
    )  # fmt: skip
    max_length: int = setting(
        512, "", "Longest row in tokens; of longer rows the answer is kept first.", low=8, high=1_000_000
    )
    task_rows: int = setting(16, "", "Most rows of each dataset that are answered.", low=1, high=1000)

    def __post_init__(self) -> None:
        check_all(self)
        check(self.router in ("", *ROUTERS), "router", self.router, f"empty, or one of {', '.join(ROUTERS)}")


@dataclass(frozen=True)
class ForgettingSettings:
    """What is trained, and how long."""

    newest: str = setting("", "", "The lobe whose rows are trained on again. Empty: the newest with rows and answers.")
    first: str = setting("", "One adapter learns first", "The domain that may be forgotten.")
    second: str = setting("", "and then", "Automatic: the two that differ most.")
    contrast: bool = setting(True, "", "False leaves the single adapter out: the check alone takes a third of the time.")
    rows: int = setting(96, "", "Most training rows of each lobe.", low=FEWEST_ROWS, high=100_000)
    held_out: int = setting(
        24, "", "Most rows of each lobe to measure on: held out, or trained where none are.", low=1,
        high=100_000
    )
    epochs: int = setting(4, "", "Passes over the rows, in every training.", low=1, high=1000)
    probes: int = setting(12, "", "Prompts on which logits are compared, besides a few everyday ones.", low=1, high=1000)
    seed: int = setting(0, "", "Same seed, same rows: same check.", low=0, high=2**32 - 1)

    def __post_init__(self) -> None:
        check_all(self)
        check(not self.first or not same_name(self.first, self.second), "second", self.second, "another lobe than the first")
