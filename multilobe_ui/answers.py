"""From a conversation to an answer: who answers, what generation needs for it, and what it cost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .base.backbone import Messages
from .errors import AdapterError, ConfigError
from .generation.decode import Request, prepare
from .lobes.collection import Lobes
from .routers.fitted import Routers
from .routing.decision import AUTO, Mixing, RoutingDecision, manual_decision
from .settings import SamplingConfig

FEW_WORDS = 4


class Answers:
    """Decides and prepares answers of the lobes of one home."""

    def __init__(self, lobes: Lobes, routers: Routers) -> None:
        self._lobes, self._routers, self._bank = lobes, routers, lobes.bank

    def route(self, prompt: str, router: str | None = None, mixing: Mixing = AUTO) -> RoutingDecision:
        """Decide which lobes should answer a prompt, by the router of that name. Lobes whose
        weights turn out to be damaged when they are first read are left out, and the others decided
        among."""
        while True:
            self._lobes.leave_damaged()
            known = len(self._lobes.broken)
            try:
                return self._routers.named(router).route(prompt, mixing)
            except AdapterError:
                self._lobes.leave_damaged()
                if len(self._lobes.broken) == known:
                    raise

    def decide(
        self,
        messages: Messages,
        lobe: str | None = None,
        weights: Mapping[str, float] | None = None,
        *,
        router: str | None = None,
        mixing: Mixing = AUTO,
    ) -> RoutingDecision:
        """The decision for a conversation: by hand (`lobe`, or `weights` by name; {} is the base),
        else by the router.

        A very short message that fits no lobe ("and why?") is routed again, together with the
        user's message before it.
        """
        if lobe is not None:
            weights = {lobe: 1.0}
        if weights is not None:
            return manual_decision(weights, self._lobes.names)
        prompts = [message["content"] for message in messages if message["role"] == "user"] or [""]
        decision = self.route(prompts[-1], router, mixing)
        if decision.abstained and len(prompts) > 1 and len(prompts[-1].split()) < FEW_WORDS:
            return self.route(" ".join(prompts[-2:]), router, mixing)
        return decision

    def request(
        self,
        messages: Messages,
        decision: RoutingDecision,
        sampling: SamplingConfig,
        *,
        mixing: Mixing = AUTO,
        stop: threading.Event | None = None,
        watch: Callable[[Tensor], None] | None = None,
        ids: Sequence[int] | None = None,
    ) -> Request:
        """What `generation` needs to answer a conversation as it was decided.

        Args:
            stop, watch: see `generation.Request`. ids: what `generation.prepare` gave for these
                messages, if that is known.

        Raises:
            ConfigError: the prompt is empty or too long. LobeError: a lobe has been deleted since.
        """
        if ids is None:
            ids, _ = prepare(self._bank.backbone, messages, sampling.max_new_tokens)
        mixer = None
        if decision.per_token:
            mixer = self._routers.named(decision.router).mixer(mixing)
        return Request(ids, self.weights(decision), sampling, stop or threading.Event(), mixer, watch)

    def weights(self, decision: RoutingDecision) -> dict[str, float]:
        """A decision's weights by lobe id, as the bank wants them. Raises LobeError if a lobe has
        been deleted since."""
        return {self._lobes.named(name).id: weight for name, weight in decision.weights.items()}

    def cost(
        self, decision: RoutingDecision, request: Request, answer_tokens: int, seconds: float
    ) -> dict[str, Any]:
        """What an answer cost that has just been made: prompt_tokens, answer_tokens, seconds of
        generation, tokens_per_second, route_ms (None where a person decided), and of the lobes in
        memory their names (resident) and size (resident_bytes)."""
        names = {lobe.id: lobe.name for lobe in self._lobes.store.all()}
        return {
            "route_ms": None if decision.router == "manual" else decision.elapsed_ms,
            "prompt_tokens": len(request.ids),
            "answer_tokens": answer_tokens,
            "seconds": seconds,
            "tokens_per_second": answer_tokens / seconds if seconds > 0 else 0.0,
            "resident": [names.get(lobe, lobe) for lobe in self._bank.memory.resident],
            "resident_bytes": self._bank.memory.resident_bytes,
        }


def metadata(decision: RoutingDecision) -> dict[str, Any]:
    """A decision in the words of the peer's API."""
    return {
        "selected_lobe": decision.chosen,
        "router_confidence": decision.confidence,
        "router_type": "manual" if decision.router == "manual" else decision.stage,
        "router_scores": dict(decision.scores),
        "router_ms": decision.elapsed_ms,
        "decision": decision,
    }


def checked_messages(prompt: str | Messages) -> list[dict[str, str]]:
    """A prompt as a conversation.

    Raises:
        ConfigError: a message without a role or a text.
    """
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    messages = [dict(message) for message in prompt]
    for message in messages:
        if message.get("role") not in ("system", "user", "assistant") or not isinstance(
            message.get("content"), str
        ):
            raise ConfigError(
                f"A message must have a role (system, user, assistant) and a text content, not {message!r}."
            )
    return messages
