"""Errors a person can act on.

Every message fits in a toast and has three parts: what is wrong, the value that is wrong, the way out.
The UI and the command line show `str(error)` as it is; anything that is not a `MultiLobeError` is a bug.
"""

from __future__ import annotations

from collections.abc import Sequence


class MultiLobeError(Exception):
    """Base class: the message is written for the person who caused it."""


class ConfigError(MultiLobeError, ValueError):
    """A setting is out of its range."""


class BackboneError(MultiLobeError):
    """The base model cannot be loaded or cannot do what was asked."""


class AdapterError(MultiLobeError):
    """An adapter cannot be run exactly on this base model."""


class LobeError(MultiLobeError):
    """A lobe's name is refused, or no such lobe exists."""


class BundleError(MultiLobeError):
    """A bundle is damaged, unsafe, or made for another base model."""


class RoutingError(MultiLobeError):
    """A router cannot decide: it lacks a fit, a model or a lobe."""


class JobError(MultiLobeError):
    """A training job cannot do what was asked in the state it is in."""


class BusyError(MultiLobeError):
    """Something needed is still loading or in use."""


def some_of(names: Sequence[str], most: int = 12) -> str:
    """The names there are, for a message: "a, b and 997 more"; "none yet" if there are none."""
    shown, more = names[:most], len(names) - most
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "") or "none yet"


class DataError(MultiLobeError):
    """Training data cannot be read.

    Attributes:
        lines: (line number, reason) of the first bad rows, at most twenty; line numbers start at 1.
        columns: of a file that can be read once somebody says which columns hold the prompt and the answer.
    """

    def __init__(
        self, message: str, lines: Sequence[tuple[int, str]] = (), columns: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.lines, self.columns = tuple(lines), tuple(columns)
