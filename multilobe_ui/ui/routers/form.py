"""The settings of every router as fields: a router's own settings class says what they are
(`settings.About`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import cache
from typing import Any

import gradio as gr

from ...routers.kept import without_lobes
from ...settings import about
from ..kit import guard
from ..kit.forms import field_of


class RouterSettings:
    """All fields of all routers, in the order in which they were drawn."""

    def __init__(self) -> None:
        self.names: list[tuple[str, str]] = []
        self.components: list[Any] = []

    def build(self, router: str) -> None:
        """Fields under "Settings", for those that a form has and that are not drawn yet."""
        known = [name for name in settings_of(router) if (router, name) not in self.names]
        if not known:
            return
        with gr.Accordion("Settings", open=False), gr.Row(elem_classes="router-form"):
            for name in known:
                self.field(router, name)

    def field(self, router: str, name: str) -> Any:
        """The component of one setting."""
        kind: Any = _classes()[router]
        value, place = settings_of(router)[name], f"router-{router}-{name}"
        component = field_of(kind, name, value, min_width=150, elem_id=place)
        self.names.append((router, name))
        self.components.append(component)
        return component

    def given(self, router: str, values: Sequence[Any]) -> dict[str, Any]:
        """What a person set for this router. Raises ConfigError."""
        fields = zip(self.names, values, strict=True)
        return guard.router_settings(
            settings_of(router), {name: value for (own, name), value in fields if own == router}
        )


@cache
def _classes() -> dict[str, type[Any] | None]:
    """The settings class of every router."""
    return {router.name: router.settings for router in without_lobes()}


def settings_of(router: str) -> dict[str, Any]:
    """The settings of a router that have a label, with their defaults."""
    kind = _classes()[router]
    if kind is None:
        return {}
    defaults = asdict(kind())
    return {field.name: defaults[field.name] for field in fields(kind) if about(field).label}
