"""States of routers that came from elsewhere: of another version, or with a stranger's bundle. None
of them may stop routing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import MultiLobeError
from .router import Router, State

PROBE = "What is this about?"
"""A prompt that a router with a stranger's state must be able to decide."""
_FORESEEABLE = (
    *(MultiLobeError, LookupError, TypeError, ValueError),
    *(AttributeError, ArithmeticError, RuntimeError, MemoryError),
)
"""What a router can raise over a state that is not its own."""


def adapts(router: Router, state: State) -> bool:
    """Let a new router take up a state; False where it cannot. What half of that left is not to be
    trusted then."""
    try:
        router.adapt(state)
    except _FORESEEABLE:
        return False
    return True


def serves(router: Router, values: Mapping[str, Any]) -> bool:
    """Whether a new router with a stranger's state decides a prompt, by finite numbers."""
    if not adapts(router, State(values, exact=router.asks_for_fit)):
        return False
    try:
        with np.errstate(all="ignore"):  # what overflows shows in the numbers
            decision = router.route(PROBE)
        numbers = [decision.confidence, *decision.scores.values(), *decision.probabilities.values()]
        return bool(np.isfinite(numbers).all())
    except _FORESEEABLE:
        return False


def set_by_hand(router: Router, values: Mapping[str, Any]) -> dict[str, Any]:
    """`Router.by_hand` of a state; {} where it is not one of this router's."""
    try:
        return router.by_hand(values)
    except _FORESEEABLE:
        return {}
