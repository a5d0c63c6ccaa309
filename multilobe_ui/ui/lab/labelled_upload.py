"""The box for labelled files, which several sections of the Lab have, and what it holds as files
that may be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from ...errors import ConfigError
from ..kit import guard

FILE_TYPES = [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt"]
MOST_FILES = 50


def upload(place: str, label: str = "Labelled files") -> gr.File:
    """The box; `place` is its id on the page."""
    return gr.File(
        label=label, file_count="multiple", type="filepath", height=180, file_types=FILE_TYPES, elem_id=place,
        elem_classes="rc-files",
    )  # fmt: skip


def uploads(value: Any) -> list[tuple[str, Path]]:
    """(what the person calls it, where it is) of every uploaded file: one, several or none.

    Raises:
        ConfigError: something that is no upload, or too many files.
    """
    if not value:
        return []
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(listed) > MOST_FILES:
        raise ConfigError(
            f"{len(listed)} files are too many; {MOST_FILES} is the most. Put their rows into fewer files."
        )
    return [(path.name, path) for path in (guard.an_upload(one, "A labelled file") for one in listed)]
