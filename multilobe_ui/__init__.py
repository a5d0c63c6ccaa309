"""MultiLobe UI: train small LoRA "lobes" on a frozen language model, and let a router choose which
one answers.

    from multilobe_ui import MultiLobeModel

Importing this package imports nothing heavy: a public name is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazily import loader

if TYPE_CHECKING:
    from .base.backbone import Backbone
    from .errors import MultiLobeError
    from .lobes.bank import LobeBank
    from .lobes.store import Lobe
    from .lobes.weights import Mix
    from .model import MultiLobeModel
    from .routers import RoutingDecision
    from .settings import SamplingConfig, TrainingConfig

__version__ = "0.1.0"

__getattr__ = loader(
    __name__,
    {
        "base.backbone": ("Backbone",),
        "lobes.store": ("Lobe",),
        "lobes.bank": ("LobeBank",),
        "lobes.weights": ("Mix",),
        "errors": ("MultiLobeError",),
        "model": ("MultiLobeModel",),
        "routers": ("RoutingDecision",),
        "settings": (
            "SamplingConfig",
            "TrainingConfig",
        ),
    },
)
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
