"""Routers: each turns a prompt into weights over lobes. A new one is a file here and a line in ROUTERS."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..lobes.rows import RoutingRows
from ..routing.decision import Mixing, RoutingDecision, Verdict
from ..routing.router import BankContext, Router, RoutingContext
from .arrow.router import ArrowRouter
from .chain import ChainRouter
from .complexity.router import ComplexityRouter
from .embedding import EmbeddingRouter
from .gate import GateRouter
from .hybrid import HybridRouter
from .keyword.router import KeywordRouter
from .logprob import LogprobRouter
from .xlora.router import XLoraRouter

ROUTERS: Mapping[str, Callable[[BankContext, float | None], Router]] = {
    "hybrid": lambda context, threshold: HybridRouter(context, lambda: EmbeddingRouter(context), threshold),
    "embedding": lambda context, threshold: EmbeddingRouter(context, threshold),
    "logprob": lambda context, threshold: LogprobRouter(context),
    "keyword": lambda context, threshold: KeywordRouter(context),
    "gate": lambda context, threshold: GateRouter(context),
    "xlora": lambda context, threshold: XLoraRouter(context),
    "arrow": lambda context, threshold: ArrowRouter(context),
    "complexity": lambda context, threshold: ComplexityRouter(context),
    "chain": lambda context, threshold: _chain(context, threshold),
}
"""Name → (context, embedding threshold or None to calibrate it) → router. Only those that weigh
tokens, or train through the base, take more of the context than a `RoutingContext`."""

STAGES = ("keyword", "gate", "embedding", "logprob", "complexity", "hybrid")
"""What a chain can be made of: routers that choose once for a prompt."""


def _chain(context: BankContext, threshold: float | None) -> ChainRouter:
    """A chain whose stages are made here, so that routers need not know each other."""
    return ChainRouter(context, lambda name: ROUTERS[name](context, threshold), STAGES)


__all__ = ["ROUTERS", "Mixing", "Router", "RoutingContext", "RoutingDecision", "RoutingRows", "Verdict"]
