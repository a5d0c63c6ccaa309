"""X-LoRA router: a trained head weighs the lobes for every token and layer while the answer is
written (see `..xlora`).

The decision that is shown before the answer is the head's mean over the prompt's own tokens and all layers:

    s(l) = mean of w(token, layer, l)          p(l) = softmax(log s / T)_l, T calibrated on held-out prompts (Guo et al. 2017)

Whether any lobe fits at all is read off the same mean hidden state, by a logistic regression of the
lobes' prompts against everyday ones; its threshold lets at most `FALSE_ABSTENTION` of the held-out
prompts go to the base by mistake.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...errors import RoutingError
from ...evenly import evenly
from ...lobes.rows import RoutingRows, Vector
from ...routing.calibration import fit_temperature, softmax
from ...routing.decision import Mixing, Verdict
from ...routing.router import BankContext, FitOutcome, Learning, Router, State
from ...settings import XLoraSettings, settings_of

if TYPE_CHECKING:  # torch: not before a head is made
    from .mixer import ScalingHead, XLoraMixer
    from .rows import LabelledRow

VERSION = 1
FALSE_ABSTENTION = 0.03
FEWEST_GENERIC = 20
"""Everyday prompts without which nothing is learned about what fits no lobe."""
READOUT_ROWS = 256
"""Most prompts of all lobes together that the logistic regression learns from."""
LOGIT_SCALE = 10.0
"""`fit_temperature` looks from 0.02 to 1; of logarithms divided by ten that is T from 0.2 to 10."""
MOST_TOKENS = 120
"""Prompt tokens whose weights are kept as evidence."""


@dataclass(frozen=True)
class _Fitted:
    """What a fit made. names: of the lobes, in the order of the head's outputs. layers: module
    names, likewise.

    none: (hidden + 1,) weights and bias of the log-odds that a prompt belongs to some lobe; empty
    if that was not learned.
    """

    head: ScalingHead
    names: list[str]
    layers: list[str]
    temperature: float
    none: Vector
    threshold: float


@dataclass(frozen=True)
class _Reading:
    """A prompt seen by the head: its own tokens' ids, weights (tokens, lobes) averaged over layers,
    mean hidden state."""

    ids: list[int]
    weights: Vector
    state: Vector

    @property
    def mean(self) -> Vector:
        return np.asarray(self.weights.mean(0), np.float32)


class XLoraRouter(Router):
    """See the module's text."""

    name: ClassVar[str] = "xlora"
    title: ClassVar[str] = "X-LoRA"
    sentence: ClassVar[str] = (
        "A small trained head reads what the base makes of each token and weighs the lobes anew for it, layer by layer."
    )
    learns_labels: ClassVar[bool] = False
    settings: ClassVar[type[Any] | None] = XLoraSettings
    per_token: ClassVar[bool] = True
    needs_model: ClassVar[bool] = True
    asks_for_fit: ClassVar[bool] = True

    def __init__(self, context: BankContext) -> None:
        super().__init__(context)
        self.context: BankContext = context
        self._fitted: _Fitted | None = None

    @property
    def is_fitted(self) -> bool:
        return self._fitted is not None

    # ---- deciding ---------------------------------------------------------------------------------------------------------

    def judge(self, prompt: str) -> Verdict:
        fitted = self._fitted
        if fitted is None:
            reason = "X-LoRA's head has not been trained yet; fit it under Routers."
            return Verdict.base("not fitted", reason, certain=False)
        seen = self._read(fitted, prompt)
        shares = dict(zip(fitted.names, map(float, seen.mean), strict=True))
        likely = softmax(np.log(seen.mean + 1e-9) / fitted.temperature)
        by_lobe = dict(zip(fitted.names, map(float, likely), strict=True))
        best = max(shares, key=shares.__getitem__)
        odds = _log_odds(fitted, seen.state)
        none = 0.0 if odds is None else float(1 / (1 + np.exp(np.clip(odds - fitted.threshold, -50, 50))))
        reason = f"{best} has {shares[best]:.0%} of the weight over the prompt's tokens{self._unknown(fitted)}."
        if none >= 0.5:
            reason = f"The prompt reads more like everyday ones than like those of any lobe{self._unknown(fitted)}."
        return Verdict(
            scores=shares,
            probabilities={name: (1 - none) * by_lobe.get(name, 0.0) for name in self.context.lobes},
            none=none,
            stage=self.name,
            reason=reason,
            evidence={"tokens": self._by_token(fitted.names, seen)},
            weights={name: share for name, share in shares.items() if share > 0},
        )

    def mixer(self, mixing: Mixing) -> XLoraMixer:
        """Top-1 and top-k keep each token's best lobes in each layer; soft mixes all.

        Raises:
            RoutingError: the head has not been trained.
        """
        from .mixer import XLoraMixer

        if self._fitted is None:
            raise RoutingError("X-LoRA's head has not been trained yet. Fit it under Routers.")
        top_k = {"top_1": 1, "top_k": mixing.k}.get(mixing.mode)
        return XLoraMixer(self._fitted.head, tuple(self.context.ids[n] for n in self._fitted.names), top_k)

    def _read(self, fitted: _Fitted, prompt: str) -> _Reading:
        import torch

        from .mixer import Reading, last_hidden

        backbone = self.context.bank.backbone
        opening, words = backbone.encode_prompt(prompt)
        ids = backbone.encode_chat([{"role": "user", "content": prompt}])[: backbone.context_length]
        own = slice(len(opening), min(len(opening) + len(words), len(ids)))
        if own.start >= own.stop:  # a format that leaves nothing of the prompt
            own = slice(0, len(ids))
        with torch.inference_mode():
            hidden = last_hidden(backbone, None, input_ids=torch.tensor([ids], device=backbone.device))
            given = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
            weights = fitted.head(Reading(fitted.head.shape.reads)(hidden, given=given))[0, own].float().mean(1)
            state = hidden[0, own].float().mean(0)
        shares = weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)  # a head without softmax
        return _Reading(ids[own], shares.cpu().numpy(), state.cpu().numpy())

    def _by_token(self, names: Sequence[str], seen: _Reading, most: int = 4) -> list[dict[str, Any]]:
        """Each prompt token with its heaviest lobes, for a strip of coloured words."""
        decode, found = self.context.bank.backbone.decode, []
        for token, row in zip(seen.ids[:MOST_TOKENS], seen.weights, strict=False):
            heaviest = [i for i in np.argsort(-row)[:most] if row[i] >= 0.005]
            found.append({"text": decode([token]), "weights": {names[i]: round(float(row[i]), 3) for i in heaviest}})
        return found

    def _unknown(self, fitted: _Fitted) -> str:
        """The end of a reason: which lobes the head has not learned."""
        names = [name for name in self.context.lobes if name not in fitted.names]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return f"; it has not learned {shown}" if names else ""

    # ---- learning ---------------------------------------------------------------------------------------------------------

    def learn(self, settings: Mapping[str, Any], stop: threading.Event) -> Learning:
        """Train the head on the lobes' rows, and calibrate it on held-out ones.

        Args:
            settings: fields of `XLoraSettings`.
        Raises:
            ConfigError: a setting that is unknown or out of range. RoutingError: no model, or no
                lobe with rows.
        """
        chosen = settings_of(XLoraSettings, settings)
        names = self._names()
        if self.context.bank is None:
            raise RoutingError("X-LoRA learns through the language model, and none is loaded.")
        if not names:
            raise RoutingError("X-LoRA has nothing to learn from: no lobe came with training rows. Train a lobe first.")
        from .training import train_head

        ids = [self.context.ids[name] for name in names]
        train, held_out = self._labelled(names)
        known = [rows for name in names if not _holds_out(rows := self.context.rows[name])]
        result = yield from train_head(self.context.bank, ids, train, held_out, chosen, stop)
        layers = list(self.context.bank.layers(ids))
        fitted = _Fitted(result.head, names, layers, 1.0, np.zeros(0, np.float32), 0.0)
        self._fitted, facts = self._calibrated(fitted)
        report = {
            "accuracy": result.accuracy,
            "mixture_loss": result.loss,
            "own_lobe_loss": result.own_loss,
            "base_loss": result.base_loss,
            "scale": result.head.shape.scale,
            "rows": len(train),
            "held_out_rows": len(held_out),
            "known_to_lobes": sum(len(_pairs(rows)[1]) for rows in known),
            "lobes": names,
            "stopped": result.stopped,
            **facts,
            "seconds": result.seconds,
        }
        return FitOutcome(report)

    def _names(self) -> list[str]:
        """Lobes with rows that the bank can run."""
        rows, ids = self.context.rows, self.context.ids
        return [n for n in self.context.lobes if n in rows and n in ids and len(rows[n].train_prompts)]

    def _labelled(self, names: Sequence[str]) -> tuple[list[LabelledRow], list[LabelledRow]]:
        from .rows import LabelledRow

        train: list[LabelledRow] = []
        held_out: list[LabelledRow] = []
        for i, name in enumerate(names):
            learn, keep = _pairs(self.context.rows[name])
            train += [LabelledRow(i, *pair) for pair in learn]
            held_out += [LabelledRow(i, *pair) for pair in keep]
        return train, held_out

    def _unseen(self, names: Sequence[str], most: int = 256) -> tuple[list[str], list[int]]:
        """(prompts, owner): evenly from every lobe, prompts that the head was not trained on.

        Of a lobe with too few rows to keep any from the head these are all of its prompts.
        """
        each = max(4, min(24, most // len(names)))
        prompts: list[str] = []
        owner: list[int] = []
        for i, name in enumerate(names):
            learned, kept = _pairs(self.context.rows[name])
            chosen = evenly(kept or learned, each)
            prompts += [prompt for prompt, _ in chosen]
            owner += [i] * len(chosen)
        return prompts, owner

    def _calibrated(self, fitted: _Fitted) -> tuple[_Fitted, dict[str, Any]]:
        """The fit with its temperature and its sense of what fits no lobe; and what was measured."""
        prompts, owner = self._unseen(fitted.names)
        seen = [self._read(fitted, prompt) for prompt in prompts]
        facts: dict[str, Any] = {}
        if len(set(owner)) > 1:
            scores = np.log(np.stack([reading.mean for reading in seen]) + 1e-9) / LOGIT_SCALE
            fitted = replace(fitted, temperature=fit_temperature(scores, np.array(owner)) * LOGIT_SCALE)
        generic = [prompt for prompt in self.context.generic_prompts if prompt.strip()]
        if len(generic) < FEWEST_GENERIC or not seen:
            return fitted, facts
        each = max(8, READOUT_ROWS // len(fitted.names))
        own = [p for name in fitted.names for p in evenly(_pairs(self.context.rows[name])[0], each)]
        inside = np.stack([self._read(fitted, prompt).state for prompt, _ in own])
        outside = np.stack([self._read(fitted, prompt).state for prompt in generic])
        last = np.arange(len(outside)) % 4 == 3
        none = _logistic(inside, outside[~last])
        odds, generic_odds = (
            (np.stack(rows) @ none[:-1]) + none[-1] for rows in ([r.state for r in seen], outside[last])
        )
        # zero is where both are equally likely; lower where that would send too many of the lobes'
        # own prompts away
        threshold = min(0.0, float(np.quantile(odds, FALSE_ABSTENTION)))
        facts["false_abstention"] = float((odds < threshold).mean())
        facts["everyday_prompts_abstained"] = float((generic_odds < threshold).mean())
        return replace(fitted, none=none, threshold=threshold), facts

    # ---- keeping ----------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        fitted = self._fitted
        if fitted is None:
            return {}
        tensors = {f"head.{name}": t.float().cpu().numpy() for name, t in fitted.head.state_dict().items()}
        return {
            "version": VERSION,
            "names": list(fitted.names),
            "layers": list(fitted.layers),
            # one string, so that no word of it is taken for a lobe's name when lobes are renamed
            "shape": json.dumps({"hidden_size": fitted.head.hidden_size, **asdict(fitted.head.shape)}),
            "temperature": fitted.temperature,
            "threshold": fitted.threshold,
            "none": fitted.none,
            **tensors,
        }

    def adapt(self, state: State) -> None:
        """Exactly the head that was saved, without the columns of lobes that went and the layers
        that only they adapted."""
        values = state.values
        if not values.get("names"):
            self._fitted = None
            return
        bank, ids = self.context.bank, self.context.ids
        if bank is None:
            raise RoutingError("X-LoRA's head needs the language model, and none is loaded.")
        if values.get("version") != VERSION:
            raise RoutingError(f"X-LoRA's fit has version {values.get('version')!r}, not {VERSION}. Fit it again.")
        names = [str(name) for name in values["names"]]
        kept = [name for name in names if name in self.context.lobes and ids.get(name) in bank]
        if not kept:
            raise RoutingError("All lobes that X-LoRA was fitted for are gone. Fit it again.")
        layers = [str(layer) for layer in values["layers"]]
        now = list(bank.layers(ids[name] for name in kept))
        if not set(now) <= set(layers):
            raise RoutingError("X-LoRA was fitted for lobes on other layers. Fit it again.")
        head = _restored_head(values, [names.index(n) for n in kept], [layers.index(l) for l in now], len(layers))
        if head.hidden_size != bank.backbone.hidden_size:
            raise RoutingError("X-LoRA was fitted on another base model. Fit it again.")
        none = np.asarray(values["none"], np.float32)
        numbers = float(values["temperature"]), none, float(values["threshold"])
        self._fitted = _Fitted(head.to(bank.backbone.device), kept, now, *numbers)


def _restored_head(state: Mapping[str, Any], columns: list[int], layers: list[int], all_layers: int) -> ScalingHead:
    """The saved head, reduced to these lobes (places among the saved ones) and layers.

    Raises:
        RoutingError: its tensors do not fit each other.
    """
    import torch

    from .mixer import HeadShape, ScalingHead

    values = json.loads(state["shape"])
    hidden_size, lobes = int(values.pop("hidden_size")), len(state["names"])
    try:
        head = ScalingHead(hidden_size, lobes, all_layers, HeadShape(**values))
        tensors = {name: torch.tensor(np.asarray(state[f"head.{name}"], np.float32)) for name in head.state_dict()}
        head.load_state_dict(tensors)
    except (RuntimeError, KeyError, TypeError) as error:
        raise RoutingError(f"X-LoRA's head is damaged ({error}). Fit it again.") from error
    reduced = ScalingHead(hidden_size, len(columns), len(layers), head.shape)
    rows = layers if head.shape.layerwise else [0]
    with torch.no_grad():
        reduced.inner.load_state_dict(head.inner.state_dict())
        for ours, theirs in zip(reduced.last.parameters(), head.last.parameters(), strict=True):
            by_layer = theirs.view(-1, lobes, *theirs.shape[1:])
            ours.copy_(by_layer[rows][:, columns].flatten(0, 1))
    return reduced.eval().requires_grad_(False)


def _log_odds(fitted: _Fitted, state: Vector) -> float | None:
    return float(state @ fitted.none[:-1] + fitted.none[-1]) if len(fitted.none) else None


def _logistic(inside: Vector, outside: Vector, steps: int = 300) -> Vector:
    """(features + 1,) weights and bias of the log-odds of `inside`, both classes of equal weight,
    with an L2 penalty."""
    import torch

    x = torch.from_numpy(np.concatenate([inside, outside]))
    y = torch.cat([torch.ones(len(inside)), torch.zeros(len(outside))])
    each = torch.where(y == 1, 0.5 / len(inside), 0.5 / len(outside))
    mean, spread = x.mean(0), x.std(0) + 1e-6
    scaled = (x - mean) / spread
    weight, bias = torch.zeros(x.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.05)
    for _ in range(steps):
        losses = torch.nn.functional.binary_cross_entropy_with_logits(scaled @ weight + bias, y, reduction="none")
        loss = (losses * each).sum() + 1e-2 * weight.square().sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    own = weight.detach() / spread  # the scaling folded in
    return np.asarray(torch.cat([own, bias.detach() - own @ mean]).numpy(), np.float32)


def _holds_out(rows: RoutingRows) -> bool:
    """Whether a lobe has enough rows that it was not trained on."""
    return len(rows.validation_prompts) >= 5


def _pairs(rows: RoutingRows) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """((prompt, answer) to learn from, those to hold out).

    Held out are the lobe's own held-out rows where there are at least five, else every fifth of those that it
    was trained on, which are then held out from the head alone.
    """
    train = list(zip(rows.train_prompts, rows.train_answers or [""] * len(rows.train_prompts), strict=False))
    held_out = list(
        zip(rows.validation_prompts, rows.validation_answers or [""] * len(rows.validation_prompts), strict=False)
    )
    if _holds_out(rows):
        return train, held_out
    return [pair for i, pair in enumerate(train) if i % 5 != 4 or len(train) < 5], train[4::5]
