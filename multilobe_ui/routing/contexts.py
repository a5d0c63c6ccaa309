"""What the routers of a home may know: made anew of its lobes, its corrections, the sentence
encoder and the base."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from ..lobes.collection import Lobes
from ..lobes.rows import Vector
from ..lobes.store import Lobe
from .corrections import Correction, Corrections, corrected
from .encoder import generic_prompts, generic_vectors
from .fits import Birth, Key
from .router import BankContext
from .scores import MeanHidden, PromptScores


class Contexts:
    """Makes a `BankContext`, and the key of fits that are made in it, of the lobes that there are now.

    Args:
        threshold: embedding score that a lobe must reach; None calibrates it. scored_tokens: of a
            prompt, for log-prob.
    """

    def __init__(
        self, lobes: Lobes, corrections: Corrections, threshold: float | None = None, scored_tokens: int = 30
    ) -> None:
        self.lobes, self.corrections, self.threshold = lobes, corrections, threshold
        self._scores = PromptScores(lobes.bank, scored_tokens)
        self._hidden = MeanHidden(lobes.bank, self._scores)
        self._generic = generic_prompts()

    def context(self, corrections: Sequence[Correction] | None = None) -> BankContext:
        """What routers may know of the present lobes; the experts of complexity routing are for
        that router alone.

        Args:
            corrections: what people have said; None takes those in force.
        """
        everyone, encoder = list(self.lobes), self.lobes.encoder
        ids = {lobe.name: lobe.id for lobe in everyone}
        lobes = [lobe for lobe in everyone if not lobe.card.tier]

        def nll(texts: Sequence[str], wanted: Sequence[str]) -> Vector:
            return self._scores(texts, [ids[name] for name in wanted])

        context = BankContext(
            lobes=[lobe.name for lobe in lobes],
            rows=self.lobes.rows.among({lobe.name: lobe for lobe in lobes}),
            embed=encoder,
            nll=nll,
            generic=lambda: generic_vectors(encoder, self._generic),
            generic_prompts=self._generic,
            hidden=self._hidden,
            bank=self.lobes.bank,
            ids=ids,
            experts={tier: lobe.name for tier, lobe in self.lobes.experts.items()},
        )
        by_id = {lobe.id: lobe.name for lobe in lobes} | {"": None}
        labels = {c.prompt: by_id[c.lobe] for c in self._or_kept(corrections) if c.lobe in by_id}
        return corrected(context, labels)

    def key(self, corrections: Sequence[Correction] | None = None) -> Key:
        """What a fit belongs to: the encoder, the corrections (None: those in force), and the lobes
        by name and time of birth."""
        labels, digest = sorted((c.id, c.lobe) for c in self._or_kept(corrections)), ""
        if labels:
            digest = hashlib.sha256(repr(labels).encode()).hexdigest()[:16]
        return Key(self.lobes.encoder.name, str(self.threshold), tuple(births(self.lobes)), digest)

    def prompts(self) -> list[str]:
        """The prompts that lobes keep for routing."""
        rows = self.context().rows.values()
        return [prompt for one in rows for prompt in (*one.train_prompts, *one.validation_prompts)]

    def forget(self, prompts: Sequence[str]) -> None:
        """Drop what is remembered of these prompts (embeddings, scores), so that a decision takes
        as long as for a new one."""
        for memory in (self.lobes.encoder, self._scores, self._hidden):
            forget = getattr(memory, "forget", None)  # an encoder of a person's own may have none
            if forget is not None:
                forget(prompts)

    def _or_kept(self, corrections: Sequence[Correction] | None) -> Sequence[Correction]:
        return self.corrections.kept() if corrections is None else corrections


def births(lobes: Iterable[Lobe]) -> list[Birth]:
    """Name and time of birth of those lobes that routers choose among."""
    return [(lobe.name, lobe.card.created) for lobe in lobes if not lobe.card.tier]
