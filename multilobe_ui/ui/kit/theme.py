"""How the page looks: a Gradio theme and the stylesheet.

A laboratory instrument for minds: paper and ink, hairlines, figures in a fixed-width face, and one accent (cobalt) for
what can be operated. All other colour belongs to the lobes, so colour always says which lobe. Fonts come with Gradio;
no request leaves the machine.
"""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import gradio as gr
from gradio.themes.utils import colors, fonts, sizes

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
    light = {
        "body_background_fill": "#f6f7f4",
        "background_fill_primary": "#ffffff",
        "background_fill_secondary": "#f6f7f4",
        "body_text_color": "#171c20",
        "body_text_color_subdued": "#5c666b",
        "block_background_fill": "#ffffff",
        "block_border_color": "#dfe3de",
        "border_color_primary": "#dfe3de",
        "border_color_accent": "#9fb0ff",
        "border_color_accent_subdued": "#c3ceff",
        "color_accent": "#3450d6",
        "color_accent_soft": "#eef1ff",
        "link_text_color": "#3450d6",
        "link_text_color_hover": "#2a41b0",
        "link_text_color_active": "#2a41b0",
        "link_text_color_visited": "#3450d6",
        "input_background_fill": "#ffffff",
        "input_border_color": "#cfd5d0",
        "input_placeholder_color": "#7c868a",
        "button_primary_background_fill": "#3450d6",
        "button_primary_background_fill_hover": "#2a41b0",
        "button_primary_text_color": "#ffffff",
        "button_secondary_background_fill": "#ffffff",
        "button_secondary_background_fill_hover": "#f1f3ef",
        "button_secondary_border_color": "#cfd5d0",
        "button_secondary_text_color": "#171c20",
        "button_cancel_background_fill": "#ffffff",
        "button_cancel_background_fill_hover": "#fdf1ef",
        "button_cancel_border_color": "#dba79f",
        "button_cancel_text_color": "#a02c1c",
        "table_even_background_fill": "#ffffff",
        "table_odd_background_fill": "#f9faf8",
        "slider_color": "#3450d6",
        "code_background_fill": "#eff1ee",
        "checkbox_background_color": "#ffffff",
        "checkbox_border_color": "#aab2ad",
    }
    dark = {
        "body_background_fill": "#0c1013",
        "background_fill_primary": "#12171b",
        "background_fill_secondary": "#0c1013",
        "body_text_color": "#eaedec",
        "body_text_color_subdued": "#96a1a6",
        "block_background_fill": "#12171b",
        "block_border_color": "#262e34",
        "border_color_primary": "#262e34",
        "border_color_accent": "#4257c4",
        "border_color_accent_subdued": "#2d3a7d",
        "color_accent_soft": "#1a2142",
        "link_text_color": "#a9b6ff",
        "link_text_color_hover": "#c3ceff",
        "link_text_color_active": "#c3ceff",
        "link_text_color_visited": "#a9b6ff",
        "input_background_fill": "#171d22",
        "input_border_color": "#333d44",
        "input_placeholder_color": "#7e8a90",
        "button_primary_background_fill": "#4560e6",
        "button_primary_background_fill_hover": "#5a73f2",
        "button_primary_text_color": "#ffffff",
        "button_secondary_background_fill": "#1a2126",
        "button_secondary_background_fill_hover": "#222a30",
        "button_secondary_border_color": "#333d44",
        "button_secondary_text_color": "#eaedec",
        "button_cancel_background_fill": "#1a2126",
        "button_cancel_background_fill_hover": "#33201d",
        "button_cancel_border_color": "#7a3f36",
        "button_cancel_text_color": "#ff9d8c",
        "table_even_background_fill": "#12171b",
        "table_odd_background_fill": "#151b20",
        "slider_color": "#8c9dff",
        "code_background_fill": "#1d242a",
        "checkbox_background_color": "#171d22",
        "checkbox_border_color": "#4a565e",
    }
    both = {
        "block_border_width": "1px",
        "block_shadow": "none",
        "block_radius": "14px",
        "block_padding": "14px 16px",
        "block_label_background_fill": "transparent",
        "block_label_border_width": "0px",
        "block_label_text_color": "*body_text_color_subdued",
        "block_label_text_size": "*text_sm",
        "block_label_shadow": "none",
        "block_title_background_fill": "transparent",
        "block_title_border_width": "0px",
        "block_title_text_color": "*body_text_color",
        "block_title_text_size": "*text_sm",
        "block_title_text_weight": "700",
        "block_title_padding": "0",
        "container_radius": "14px",
        "input_radius": "10px",
        "input_border_width": "1px",
        "input_shadow": "none",
        "input_shadow_focus": "0 0 0 3px color-mix(in srgb, var(--color-accent) 22%, transparent)",
        "button_large_radius": "10px",
        "button_medium_radius": "10px",
        "button_small_radius": "8px",
        "button_primary_shadow": "none",
        "button_secondary_shadow": "none",
        "button_large_text_weight": "700",
        "button_medium_text_weight": "700",
        "button_small_text_weight": "400",
        "button_transform_hover": "none",
        "layout_gap": "16px",
        "form_gap_width": "1px",
        "section_header_text_weight": "700",
        "prose_header_text_weight": "700",
        "checkbox_label_shadow": "none",
        "shadow_drop": "none",
        "shadow_drop_lg": "0 8px 28px rgba(10, 16, 20, .14)",
    }
    given = {**both, **light, **{f"{name}_dark": value for name, value in dark.items()}}
    # what is the same by day and by night must be said twice, for Base has opinions of its own about the night
    known = signature(base.set).parameters
    given |= {f"{name}_dark": value for name, value in both.items() if f"{name}_dark" in known}
    return base.set(**given)


def css() -> str:
    """The stylesheets of `ui/static`, that of the whole page first."""
    sheets = sorted((Path(__file__).parents[1] / "static").glob("*.css"), key=lambda path: (path.name != "theme.css", path.name))
    return "\n".join(sheet.read_text("utf-8") for sheet in sheets)
