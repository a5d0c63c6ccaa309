"""MultiLobe UI: train small LoRA "lobes" on a frozen language model, and let a router choose which one answers.

    from multilobe_ui import MultiLobeModel

Importing this package imports nothing heavy: a public name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base.backbone import Backbone
    from .errors import MultiLobeError
    from .lobes.bank import LobeBank
    from .lobes.lobe import Lobe
    from .lobes.weights import Mix
    from .model import MultiLobeModel
    from .routers import RoutingDecision
    from .settings import SamplingConfig, TrainingConfig

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "base.backbone",
    "Lobe": "lobes.lobe",
    "LobeBank": "lobes.bank",
    "Mix": "lobes.weights",
    "MultiLobeError": "errors",
    "MultiLobeModel": "model",
    "RoutingDecision": "routers",
    "SamplingConfig": "settings",
    "TrainingConfig": "settings",
}
__all__ = [
    "Backbone",
    "Lobe",
    "LobeBank",
    "Mix",
    "MultiLobeError",
    "MultiLobeModel",
    "RoutingDecision",
    "SamplingConfig",
    "TrainingConfig",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
