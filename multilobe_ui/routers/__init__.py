"""Routers: each turns a prompt into weights over lobes. A new one is a file here and a line in ROUTERS."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .base import Router, RoutingContext, RoutingDecision, RoutingRows
from .embedding import EmbeddingRouter
from .gate import GateRouter
from .hybrid import HybridRouter
from .keyword import KeywordRouter
from .logprob import LogprobRouter

ROUTERS: Mapping[str, Callable[[RoutingContext, float | None], Router]] = {
    "hybrid": lambda context, threshold: HybridRouter(context, EmbeddingRouter(context, threshold)),
    "embedding": lambda context, threshold: EmbeddingRouter(context, threshold),
    "logprob": lambda context, threshold: LogprobRouter(context),
    "keyword": lambda context, threshold: KeywordRouter(context),
    "gate": lambda context, threshold: GateRouter(context),
}
"""Name → (context, embedding threshold or None to calibrate it) → router."""

__all__ = ["ROUTERS", "Router", "RoutingContext", "RoutingDecision", "RoutingRows"]
