"""The settings of sampling under "Advanced"."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ...errors import ConfigError, MultiLobeError
from ...settings import SamplingConfig

KNOBS = 6
"""How many there are; `build_knobs` and `sampling_of` have them in the same order."""


def build_knobs() -> list[Any]:
    """Call it inside gr.Blocks, where they belong."""
    with gr.Row():
        limit = gr.Slider(1, 1024, 200, step=1, label="Longest answer", info="tokens")
        temperature = gr.Slider(
            0, 2, 0.3, step=0.05, label="Temperature", info="0 is always the likeliest token"
        )
        top_p = gr.Slider(0.05, 1, 0.9, step=0.05, label="Top-p", info="share of probability to draw from")
        top_k = gr.Slider(0, 200, 0, step=1, label="Likeliest tokens", info="so many to draw from, 0 for all")
        penalty = gr.Slider(0.8, 2, 1.1, step=0.05, label="Repetition penalty", info="1 is none")
        # gr.Number would show an empty value as 0
        seed = gr.Textbox(
            "", label="Seed", info="a number draws the same again", placeholder="random", max_length=20
        )
    return [limit, temperature, top_p, top_k, penalty, seed]


def sampling_of(
    limit: Any, temperature: Any, top_p: Any, top_k: Any, penalty: Any, seed: Any
) -> SamplingConfig:
    """Raises ConfigError: a value that is no number, or out of its range."""
    try:
        number = None
        if str(seed or "").strip():
            number = int(seed) % 2**63
        return SamplingConfig(
            max_new_tokens=min(int(limit), 4096), temperature=float(temperature), top_p=float(top_p),
            top_k=int(top_k), repetition_penalty=float(penalty), seed=number,
        )  # fmt: skip
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, MultiLobeError):
            raise
        raise ConfigError(
            "A setting under Advanced is empty or not a number. Fill it in, or reload the page."
        ) from None
