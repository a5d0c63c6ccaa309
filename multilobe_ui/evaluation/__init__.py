"""Measuring lobes and routers: the Lab's experiments, in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazily import loader

if TYPE_CHECKING:
    from .forgetting.measure import ForgettingReport, forgetting_check
    from .labelled import LabelledRow, held_out_rows, own_rows, read_labelled
    from .losses import LossMatrix, lobe_losses, loss_matrix
    from .report import ReportCard, ReportSettings, RoutingReport, report_card, routing_report
    from .settings import ForgettingSettings, LossSettings
    from .tasks import exact_match, token_f1

__getattr__ = loader(
    __name__,
    {
        "forgetting.measure": (
            "ForgettingReport",
            "forgetting_check",
        ),
        "labelled": (
            "LabelledRow",
            "held_out_rows",
            "own_rows",
            "read_labelled",
        ),
        "losses": (
            "LossMatrix",
            "lobe_losses",
            "loss_matrix",
        ),
        "report": (
            "ReportCard",
            "ReportSettings",
            "RoutingReport",
            "report_card",
            "routing_report",
        ),
        "settings": ("ForgettingSettings", "LossSettings"),
        "tasks": (
            "exact_match",
            "token_f1",
        ),
    },
)
__all__ = [
    "ForgettingReport",
    "ForgettingSettings",
    "LabelledRow",
    "LossMatrix",
    "LossSettings",
    "ReportCard",
    "ReportSettings",
    "RoutingReport",
    "exact_match",
    "forgetting_check",
    "held_out_rows",
    "lobe_losses",
    "loss_matrix",
    "own_rows",
    "read_labelled",
    "report_card",
    "routing_report",
    "token_f1",
]
