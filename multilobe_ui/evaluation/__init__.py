"""Measuring lobes and routers: the Lab's experiments, in Python."""

from __future__ import annotations

from .labelled import LabelledRow, held_out_rows, read_labelled
from .losses import loss_matrix
from .report import RoutingReport, routing_report

__all__ = ["LabelledRow", "RoutingReport", "held_out_rows", "loss_matrix", "read_labelled", "routing_report"]
