"""What a lobe says of itself: card.json in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import LobeError
from ..files import read_json, write_json
from ..settings import from_json

CARD_FILE = "card.json"
SHA256 = "sha256"
"""Under this name a card says, among the facts of its adapter, what its weights must hash to."""


@dataclass(frozen=True)
class Card:
    """What a lobe says of itself; JSON.

    Attributes:
        name: the person's words. created: ISO 8601, UTC. origin: "trained here", "imported
            adapter", "multilobe 0.1.0", ...
        base: name and fingerprint of the base it was trained on; the fingerprint of an imported
            adapter is that of the base on which it was imported.
        adapter: r, target_modules, bytes; of a lobe that came in a bundle the sha256 that its
            weights must have.
        config: the TrainingConfig, if trained here.
        data: file name, sha256, rows of the training data. training: a TrainingResult.
        embedding_model: what made its routing rows.
        owner: visitor who made it, in shared use; never leaves this machine.
        tier: "simple", "medium" or "complex" if complexity routing made it as one of its experts, else "".
        composition: of a merged lobe its combination, parents with weights, rank, error and size.
    """

    name: str
    created: str
    origin: str
    base: Mapping[str, str]
    adapter: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    embedding_model: str = ""
    owner: str = ""
    tier: str = ""
    composition: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_card(folder: Path) -> Card:
    """Raises LobeError if the folder has no readable card."""
    try:
        return from_json(Card, read_json(folder / CARD_FILE))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise LobeError(f"The lobe folder {folder.name} has no readable {CARD_FILE} ({error}).") from error


def write_card(folder: Path, card: Card) -> None:
    write_json(folder / CARD_FILE, card.to_json())


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
