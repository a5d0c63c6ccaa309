"""Fields of forms from settings: what a setting says of itself (`settings.About`) is what its field says."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ...settings import EMPTY_IS, about, kind_of


def words_of(settings: type[Any], name: str) -> dict[str, Any]:
    """Label and help of a setting, for a component of any kind."""
    of = about(settings.__dataclass_fields__[name])
    return {"label": of.label, "info": of.help}


def field_of(settings: type[Any], name: str, value: Any, **more: Any) -> Any:
    """The component of a setting. `more` are arguments of the component, such as `elem_id`."""
    kind, choices, optional = kind_of(settings, name)
    of = about(settings.__dataclass_fields__[name])
    more |= words_of(settings, name)
    if choices:
        return gr.Dropdown(list(choices), value=value, interactive=True, **more)
    if optional:
        return gr.Textbox(value or "", placeholder=EMPTY_IS, max_length=2000, **more)
    if kind is bool:
        return gr.Checkbox(value, **more)
    if kind is int:
        return gr.Number(value, precision=0, minimum=of.low, maximum=of.high, **more)
    if (of.low, of.high) == (0, 1):
        return gr.Slider(0, 1, value, step=0.01, buttons=[], **more)
    # a text box, because a number box shows 0.0003 as 0 once it has been emptied
    return gr.Textbox(f"{value:g}", max_length=20, **more)
