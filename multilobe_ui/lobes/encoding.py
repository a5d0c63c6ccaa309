"""A sentence encoder, and what can be used with it of the routing rows that came with lobes,
perhaps from another encoder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ..assets import MINILM_NAMES
from ..errors import BackboneError, LobeError
from .card import Card, read_card
from .rows import (
    PROMPTS_FILE,
    ROUTING_FILE,
    RoutingRows,
    Vector,
    are_unit,
    read_rows,
    sound_rows,
    write_routing_rows,
)
from .store import Lobe, LobeStore

MINILM_WIDTH = 768
"""Numbers in a vector of all-MiniLM-L6-v2."""
TEXTS = ("train_prompts", "validation_prompts", "train_answers", "validation_answers")


class Encoder(Protocol):
    """texts → (n, width) unit vectors. Raises BackboneError where the encoder is not to be had."""

    name: str

    def __call__(self, texts: Sequence[str]) -> Vector: ...


class RowEncoding:
    """Makes any lobe's routing rows such that routers can rely on them, with one sentence encoder.

    Args:
        encode: the sentence encoder. store: where vectors that had to be made anew are kept.
    """

    def __init__(self, encode: Encoder, store: LobeStore) -> None:
        self._encode, self._store = encode, store
        self._known_width: int | None = None

    def usable(self, lobe: Lobe, rows: RoutingRows) -> RoutingRows | None:
        """What routers may see of a stored lobe's rows. Vectors that had to be made anew are kept
        in its folder; rows that cannot be used never stop routing."""
        encoder = lobe.card.embedding_model
        with suppress(LobeError):
            encoder = read_card(
                lobe.path
            ).embedding_model  # `lobe` may be from before its vectors were made anew
        try:
            sound = self._sound(rows, encoder)
        except BackboneError:
            return None
        whole = sound is not None and all(
            len(getattr(sound, name)) == len(getattr(rows, name)) for name in TEXTS
        )
        if sound is not None and sound is not rows and whole:  # a person's rows are never cut on disk
            with suppress(OSError):  # they are made anew at the next start then
                write_routing_rows(lobe.path, sound)
                self._store.recard(lobe.id, embedding_model=self._encode.name)
        return sound

    def trusts(self, lobe: Lobe, prototypes: Vector) -> bool:
        """Whether routers can use a lobe's prototypes as they are."""
        return self._made(lobe.card.embedding_model) and are_unit(prototypes, self._width())

    def mend(self, folder: Path, card: Card) -> Card:
        """Make the rows in a lobe's folder usable, or remove them; returns the card that says so
        (see `bundle.Mend`).

        Raises:
            BackboneError: the vectors must be made anew, and the sentence encoder is not to be had.
        """
        rows = read_rows(folder)
        sound = self._sound(rows, card.embedding_model)
        if sound is None:
            for name in (ROUTING_FILE, PROMPTS_FILE):
                (folder / name).unlink(missing_ok=True)
            return replace(card, embedding_model="")
        if sound is not rows:
            write_routing_rows(folder, sound)
        return replace(card, embedding_model=self._encode.name)

    def _sound(self, rows: RoutingRows, encoder: str) -> RoutingRows | None:
        """`sound_rows` of rows whose vectors are said to be of the encoder of that name."""
        made_here = self._made(encoder)
        width = None
        if made_here and (len(rows.prototypes) or len(rows.train)):
            width = self._width()
        return sound_rows(rows, self._encode, width, made_here)

    def _made(self, encoder: str) -> bool:
        """Whether the encoder of that name is this one."""
        return encoder == self._encode.name or Path(encoder).name == Path(self._encode.name).name

    def _width(self) -> int | None:
        """Numbers in a vector; None where the encoder cannot be loaded, and routers that need it say so."""
        if self._known_width is None and self._encode.name in MINILM_NAMES:
            self._known_width = MINILM_WIDTH  # known without the seconds that loading it takes
        if self._known_width is None:
            with suppress(BackboneError):
                self._known_width = self._encode(["width"]).shape[1]
        return self._known_width
