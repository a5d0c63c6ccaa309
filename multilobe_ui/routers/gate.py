"""Gate router: one linear layer, learned from which lobe a row came from, reads the prompt's
embedding. No language model runs.

    s(x) = W e(x) + b     over the lobes with rows, and one class for the generic prompts

e(x) is the sentence embedding, or the mean hidden state of the base's last layer
(`GateSettings.embedding`). The decision's weights are the gate's, as in MixLoRA (Li et al. 2024,
arXiv:2404.15159): those of the best lobe, of the k best made to sum to 1, of those that stand out,
or of all (`base.Mixing`).

W and b are ridge regression, solved at once; scores then estimate how much of each lobe is in a
prompt, and leaving each row out, which costs nothing, calibrates them (`regression`). A softmax
layer trained step by step on fewer rows was right as often.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from ..errors import RoutingError
from ..lobes.rows import RoutingRows, Vector
from ..progress import Progress
from ..routing.decision import RoutingDecision, Verdict
from ..routing.regression import (
    FALSE_ABSTENTION,
    Calibration,
    Regression,
    Rows,
    how_known,
    lobes_with_rows,
    rows_of,
    shares_of,
)
from ..routing.router import FitOutcome, Learning, Router, RoutingContext, State
from ..settings import check_all, setting, settings_of

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class GateSettings:
    """How the gate is learned."""

    embedding: Literal["sentence", "base"] = setting(
        "sentence", "Embedding", "What it reads: the sentence encoder, or the base's own hidden state."
    )
    ridge: float = setting(
        1.0,
        "Ridge",
        "How strongly small weights are preferred; between 0.1 and 3 it hardly matters.",
        above=0,
        high=1000,
    )
    false_abstention: float = setting(
        FALSE_ABSTENTION, "False abstention", "Share of held-out rows that may go to the base although a lobe fits.",
        low=0, below=1,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_all(self)


class GateRouter(Router):
    """See the module's text."""

    name: ClassVar[str] = "gate"
    title: ClassVar[str] = "Gate"
    sentence: ClassVar[str] = (
        "A linear layer that learned from the lobes' rows how much of each lobe is in a prompt."
    )
    settings: ClassVar[type[Any] | None] = GateSettings
    asks_for_fit: ClassVar[bool] = True

    def __init__(self, context: RoutingContext) -> None:
        super().__init__(context)
        self.names = lobes_with_rows(context)
        self.chosen = GateSettings()
        self._weight: Array | None = None  # (lobes + 1, d), the generic prompts' class last
        self._bias: Array = np.zeros(0, np.float32)
        self._middle: Array = np.zeros(0, np.float32)  # of the base's hidden states
        self._calibration = Calibration(1.0, 0.0, 0.0, 0.0, 1.0)
        self._rows: Rows | None = None

    @property
    def is_fitted(self) -> bool:
        return self._weight is not None

    def judge(self, prompt: str) -> Verdict:
        if self._weight is None:
            return Verdict.base(
                "gate", "The gate has not been fitted yet; fit it under Routers.", certain=False
            )
        if not self.names:
            return Verdict.base("gate", "No lobe that the gate knows is left; fit it again.", certain=False)
        vector = self._vectors([prompt])
        scores = self.scores(vector)
        if self._rows is None:
            self._rows = rows_of(self._read(), self.names)
        value = how_known(scores, vector @ self._rows.vectors.T, self._rows.known)
        none = self._calibration.none(float(value[0]))
        likely = (1 - none) * self._calibration.probabilities(scores[0])
        best = self.names[int(likely.argmax())]
        known = set(self.names)
        unknown = [name for name in self.context.lobes if name not in known]
        reason = f"The gate gives the prompt to {best}{_left_out(unknown)}."
        if none >= 0.5:
            reason = f"The prompt is like no lobe's rows; {best} comes closest{_left_out(unknown)}."
        return Verdict(
            scores=dict(zip(self.names, map(float, scores[0]), strict=False)),
            probabilities={
                **dict.fromkeys(unknown, 0.0),
                **dict(zip(self.names, map(float, likely), strict=True)),
            },
            none=none,
            stage="gate",
            reason=reason,
            certain=none < 0.5
            or not unknown,  # a lobe that the gate does not know could still fit: a later stage must say so
            evidence={
                "everyday": float(scores[0, -1]),
                "known": float(value[0]),
                "floor": self._calibration.floor,
            },
        )

    def scores(self, vectors: Vector) -> Vector:
        """(n, lobes + 1) of embeddings (n, d), the generic prompts' class last.

        Raises:
            RoutingError: the gate has not been fitted.
        """
        if self._weight is None:
            raise RoutingError("The gate has not been fitted yet. Fit it first: model.fit_router('gate').")
        return np.asarray(vectors @ self._weight.T + self._bias, np.float32)

    def shares(self, prompt: str, decision: RoutingDecision) -> Mapping[str, float]:
        return shares_of(decision.scores)

    def learn(self, settings: Mapping[str, Any], stop: threading.Event) -> Learning:
        """Solve; the same rows and settings give the same gate."""
        self.chosen = settings_of(GateSettings, settings)
        self.names, start = lobes_with_rows(self.context), time.perf_counter()
        self._middle, self._rows = np.zeros(0, np.float32), None
        if not self.names:
            return FitOutcome({"rows": 0, "seconds": 0.0})
        yield Progress(0, 1, "Reading the rows", {})
        self._rows = rows_of(self._read(), self.names)
        # a row of ones beside e(x) makes b one of the weights
        fitted = Regression(
            self._rows, lambda cosines: cosines + 1, self.chosen.ridge, self.chosen.false_abstention
        )
        self._weight, self._bias = fitted.weights.T @ self._rows.vectors, fitted.weights.sum(0)
        self._calibration = fitted.calibration
        told = {"accuracy": self._calibration.accuracy, "ece": self._calibration.ece}
        yield Progress(1, 1, "Solving", told)
        seconds = round(time.perf_counter() - start, 3)
        return FitOutcome(
            {**told, "rows": len(self._rows.vectors), "seconds": seconds, "embedding": self.chosen.embedding}
        )

    def _vectors(self, texts: Sequence[str]) -> Vector:
        """(n, d) unit vectors of what the settings say that the gate reads.

        Raises:
            RoutingError: the base's hidden states, and no base is loaded.
        """
        if self.chosen.embedding == "sentence":
            return self.context.embed(texts)
        if self.context.hidden is None:
            raise RoutingError("The gate reads the base model's hidden states, and no base model is loaded.")
        if not texts:
            return np.zeros((0, len(self._middle)), np.float32)
        states = self.context.hidden(texts)
        if not len(self._middle):  # what all prompts share says nothing
            self._middle = states.mean(0)
        states = states - self._middle
        return np.asarray(
            states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-9), np.float32
        )

    def _read(self) -> RoutingContext:
        """The context as the gate reads it: with the base's hidden states for vectors, if it reads those."""
        if self.chosen.embedding == "sentence":
            return self.context
        everyday = self._vectors(
            list(self.context.generic_prompts)
        )  # first, so that it says what all prompts share

        def reread(rows: RoutingRows) -> RoutingRows:
            train = self._vectors(list(rows.train_prompts))
            return replace(
                rows,
                prototypes=train[:1],
                train=train,
                validation=self._vectors(list(rows.validation_prompts)),
            )

        return replace(
            self.context,
            generic=lambda: everyday,
            rows={name: reread(self.context.rows[name]) for name in self.names},
        )

    def state(self) -> dict[str, Any]:
        if self._weight is None:
            return {"lobes": []}
        return {
            "lobes": list(self.names),
            "embedding": self.chosen.embedding,
            "calibration": asdict(self._calibration),
            "weight": self._weight,
            "bias": self._bias,
            "middle": self._middle,
        }

    def adapt(self, state: State) -> None:
        """The gate as it was, without the lobes that went."""
        values = state.values
        self._rows = None
        if values.get("weight") is None:
            self._weight = None
            return
        lobes = list(values["lobes"])
        weight, bias = np.asarray(values["weight"], np.float32), np.asarray(values["bias"], np.float32)
        if "calibration" not in values:
            raise RoutingError("The gate was fitted by an earlier version. Fit it again.")
        if weight.ndim != 2 or not len(weight) == len(bias) == len(lobes) + 1:
            raise RoutingError("The gate's weights do not fit its lobes.")
        here = set(lobes_with_rows(self.context))
        kept = [i for i, name in enumerate(lobes) if name in here]
        self.names = [lobes[i] for i in kept]
        self._weight, self._bias = weight[[*kept, len(lobes)]], bias[[*kept, len(lobes)]]
        self.chosen = GateSettings(embedding=values["embedding"])
        self._middle = np.asarray(values["middle"], np.float32)
        self._calibration = Calibration(
            **{name: float(value) for name, value in values["calibration"].items()}
        )


def _left_out(names: Sequence[str]) -> str:
    """The end of a reason: which lobes the gate cannot know."""
    if not names:
        return ""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"; {shown} had no rows when the gate was fitted, so it cannot choose {'it' if len(names) == 1 else 'them'}"
