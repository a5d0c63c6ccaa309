"""How the suite is run."""

from __future__ import annotations

from dataclasses import dataclass

from peer import Peer


@dataclass(frozen=True)
class Settings:
    """Attributes:
    full: every size; else the fast subset. large: the base of 135M parameters as well.
    rounds: measurements of each. threads: of torch, ours and theirs alike.
    peer: `multilobe` 0.1.0, or None to leave it out.
    """

    full: bool
    large: bool
    rounds: int
    threads: int
    peer: Peer | None
