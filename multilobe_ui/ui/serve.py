"""Serve the page: what `python app.py` and `multilobe-ui launch` do."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULTS = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # torch's idle threads sleep instead of spinning
}
"""Environment variables that count only if they are there before Gradio and torch are imported."""


def serve(
    home: str | Path | None = None, base: str | None = None, port: int | None = None, share: bool | None = None
) -> None:
    """Serve until interrupted. What is None comes from MULTILOBE_HOME, MULTILOBE_BASE and Gradio's own variables.

    The model is loaded once the page answers: importing torch meanwhile would make the page wait.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    from ..studio import Studio
    from .page import build_page, launch_options

    studio = Studio(home or os.environ.get("MULTILOBE_HOME"), base or os.environ.get("MULTILOBE_BASE"))
    page = build_page(studio)
    page.launch(server_port=port, share=share or None, prevent_thread_lock=True, **launch_options(studio))
    studio.start()
    try:
        page.block_thread()
    finally:
        studio.close()
