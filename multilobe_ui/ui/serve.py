"""Serve the page: what `python app.py` and `multilobe-ui launch` do."""

from __future__ import annotations

import gc
import inspect
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..app.studio import Studio

DEFAULTS = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Environment variables that count only if they are there before Gradio and torch are imported."""
LONGEST_WITHOUT_COLLECTION = 60.0
"""Seconds."""


def serve(
    home: str | Path | None = None,
    base: str | None = None,
    port: int | None = None,
    share: bool | None = None,
    memory_budget_mib: float | None = None,
) -> None:
    """Serve until interrupted. What is None comes from MULTILOBE_HOME, MULTILOBE_BASE,
    MULTILOBE_MEMORY_MIB and Gradio's own variables.

    The model is loaded once the page answers: importing torch meanwhile would make the page wait.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    gc.disable()  # what is imported stays: to look through it again and again is a seventh of the time to ready
    from ..app.studio import Studio

    with without_stubs():
        from .page import build_page, launch_options

    base = base or os.environ.get("MULTILOBE_BASE")
    studio = Studio(home, base, memory_budget_mib=memory_budget_mib)
    page = build_page(studio)
    page.launch(server_port=port, share=share or None, prevent_thread_lock=True, **launch_options(studio))
    studio.start()
    threading.Thread(target=_collect_once_loaded, args=(studio,), name="collect-garbage", daemon=True).start()
    try:
        page.block_thread()
    finally:
        studio.close()


def _collect_once_loaded(studio: Studio) -> None:
    """Garbage is collected again when the model is there, or when that takes long: a base is being
    downloaded."""
    patience = time.monotonic() + LONGEST_WITHOUT_COLLECTION
    while studio.status().state == "loading" and time.monotonic() < patience:
        time.sleep(0.5)
    gc.enable()


@contextmanager
def without_stubs() -> Iterator[None]:
    """Gradio imported herein is the same, in about half the time.

    Whenever it is imported, it parses its own source and renders a .pyi stub for each of its 81
    components, for editors; but not for a component whose class has no source file. So that is what
    it hears of its own. (If it is imported already, or has stopped asking, nothing happens.)
    """
    real = inspect.getfile

    def getfile(object: Any) -> str:
        if inspect.isclass(object) and object.__module__.partition(".")[0] == "gradio":
            raise OSError(f"{object} needs no stub.")
        return real(object)

    inspect.getfile = getfile
    try:
        yield
    finally:
        inspect.getfile = real
