"""How the page looks: a Gradio theme, whose values are in `static/theme.json`; the stylesheets lie beside it.

A laboratory instrument for minds: paper and ink, hairlines, figures in a fixed-width face, and one
accent (cobalt) for what can be operated. All other colour belongs to the lobes, so colour always
says which lobe. Fonts come with Gradio; no request leaves the machine.
"""

from __future__ import annotations

import json
from inspect import signature

import gradio as gr
from gradio.themes.utils import colors, fonts, sizes

from .static import FOLDER

# IBM Plex's bundled SemiBold has a few glyphs only, so bold is 700 everywhere.
_SANS = (fonts.LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif")
_MONO = (fonts.LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "Menlo", "monospace")

_COBALT = colors.Color(
    "#eef1ff", "#dfe5ff", "#c3ceff", "#9fb0ff", "#7b8ffb", "#5069ec", "#3450d6", "#2a41b0", "#25388c",
    "#20306f", "#141d45",
    name="cobalt",
)  # fmt: skip
_INK = colors.Color(
    "#f7f8f6", "#eff1ee", "#e0e3df", "#c7ccc8", "#98a09f", "#6b7476", "#4f585c", "#374046", "#20272d",
    "#151a1f", "#0d1114",
    name="ink",
)  # fmt: skip


def theme() -> gr.themes.Base:
    base = gr.themes.Base(
        primary_hue=_COBALT, secondary_hue=_COBALT, neutral_hue=_INK, font=_SANS, font_mono=_MONO,
        radius_size=sizes.radius_md, spacing_size=sizes.spacing_md, text_size=sizes.text_md,
    )  # fmt: skip
    values = json.loads((FOLDER / "theme.json").read_text("utf-8"))
    light, dark, both = values["light"], values["dark"], values["both"]
    given = {**both, **light, **{f"{name}_dark": value for name, value in dark.items()}}
    # what is the same by day and by night must be said twice, for Base has opinions of its own
    # about the night
    known = signature(base.set).parameters
    given |= {f"{name}_dark": value for name, value in both.items() if f"{name}_dark" in known}
    return base.set(**given)
