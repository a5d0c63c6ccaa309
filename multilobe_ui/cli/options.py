"""Options that several commands share, and what people write in them as values."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigError
from ..settings import EMPTY_IS, about, kind_of, rule

if TYPE_CHECKING:
    from ..routing.decision import Mixing


T = TypeVar("T")


@dataclass(frozen=True)
class Commands:
    """Where commands are added, each with the options that all of them share."""

    under: Any
    shared: argparse.ArgumentParser

    def add(self, name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        """A command that does `run`; the first line of its docstring is the help."""
        assert run.__doc__ is not None
        parser: argparse.ArgumentParser = self.under.add_parser(
            name, help=run.__doc__.splitlines()[0], parents=[self.shared]
        )
        parser.set_defaults(run=run)
        return parser

    def group(self, name: str, help: str) -> Commands:
        """A command that has commands of its own."""
        return Commands(self.under.add_parser(name, help=help).add_subparsers(required=True, metavar="verb"), self.shared)


def shared_options() -> argparse.ArgumentParser:
    """What every command takes."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--home", help="folder of lobes and jobs (default: $MULTILOBE_HOME, else ~/.multilobe)")
    shared.add_argument("--base", help="base model: builtin, a folder, or a hub id (default: builtin)")
    shared.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    shared.add_argument(
        "--router", default="hybrid", help="who routes; `multilobe-ui routers` lists them (default: hybrid)"
    )
    shared.add_argument(
        "--memory-mib",
        type=float,
        metavar="MIB",
        help="memory for lobes; those used longest ago leave (default: $MULTILOBE_MEMORY_MIB, else as set for the home)",
    )
    shared.add_argument("--json", action="store_true", help="print data as JSON")
    return shared


def add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def add_set(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE", help=help)


def add_settings(parser: argparse.ArgumentParser, kind: type[Any]) -> None:
    """An option for every field of a settings dataclass."""
    for of in fields(kind):
        option = "--" + of.name.replace("_", "-")
        plain, words, _ = kind_of(kind, of.name)
        default = of.default
        if default is None:
            default = EMPTY_IS
        help = f"{about(of).help} ({rule(kind, of)}; default: {default})".replace("%", "%%")
        if of.name == "target_modules":
            parser.add_argument(option, nargs="+", default=None, help=about(of).help)
        elif plain is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=of.default, help=about(of).help)
        else:
            parser.add_argument(option, type=plain, choices=words or None, default=of.default, help=help)


def settings_from(options: argparse.Namespace, kind: type[T]) -> T:
    """What was given for the options of `add_settings`."""
    return kind(**{of.name: getattr(options, of.name) for of in fields(kind)})  # type: ignore[arg-type]


def add_mixing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mixing", default="auto", help="how many lobes answer: auto, top_1, top_k or soft (default: auto)"
    )
    parser.add_argument("--k", type=int, default=2, help="lobes of top_k (default: 2)")


def mixing_of(options: argparse.Namespace) -> Mixing:
    from ..routing.decision import Mixing

    return Mixing(options.mixing, options.k)


def settings_of_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """SETTING=VALUE pairs; a value is JSON if it can be read so, else text."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            settings[name] = json.loads(text)
        except ValueError:
            settings[name] = text
    return settings


def mapping_of_pairs(pairs: Sequence[str]) -> dict[str, str] | None:
    """ROLE=COLUMN pairs; None if there are none."""
    for pair in pairs:
        if "=" not in pair:
            raise ConfigError(f"--map is {pair!r}: it must be ROLE=COLUMN, such as prompt=question.")
    return dict(pair.split("=", 1) for pair in pairs) or None


def pairs_and_prompt(pairs: Sequence[str], prompt: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """argparse gives `--weights` all words that follow, so a prompt after its pairs ends up among them."""
    first = next((i for i, word in enumerate(pairs) if not _is_meant_as_pair(word)), len(pairs))
    return (pairs, prompt) if prompt or first == 0 else (pairs[:first], pairs[first:])


def _is_meant_as_pair(word: str) -> bool:
    """LOBE=WEIGHT, or a slip of it such as python=much; not a sentence in which something equals
    something."""
    _, equals, number = word.rpartition("=")
    with suppress(ValueError):
        float(number)
        return bool(equals)
    return bool(equals) and " " not in word


def weights_of_pairs(pairs: Sequence[str]) -> dict[str, float] | None:
    """LOBE=WEIGHT pairs; None if there are none."""
    weights = {}
    for pair in pairs:
        name, _, number = pair.rpartition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            raise ConfigError(f"--weights is {pair!r}: it must be LOBE=WEIGHT, such as python=0.6.") from None
    return weights or None


def parents_of_pairs(pairs: Sequence[str], lobes: Sequence[str], *, searched: bool) -> dict[str, float]:
    """LOBE=WEIGHT pairs; if the weights are `searched`, a name alone will do (a name may have "=" in it)."""
    weights = {}
    for pair in pairs:
        name, _, number = (pair, "", "1") if pair in lobes or "=" not in pair else pair.rpartition("=")
        try:
            if name == pair and not searched:
                raise ValueError
            weights[name] = float(number)
        except ValueError:
            raise ConfigError(f"{pair!r} must be LOBE=WEIGHT, such as medical=0.6 (or search for weights: --search).") from None
    return weights
