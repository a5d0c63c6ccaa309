"""Files that visitors bring: rows to train on, bundles and adapters."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visitor import ROOT

Files = dict[str, bytes]


def rows(count: int) -> bytes:
    words = ("amber", "birch", "cedar", "daisy", "elder", "fern", "gorse", "hazel", "iris", "jasmine")
    lines = [
        {"input": f"Which word belongs to number {i}?", "output": f"The word of number {i} is {words[i % 10]}."}
        for i in range(count)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def file(name: str, content: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": content}


def demo_files(lobe: str = "medical") -> Files:
    """A bundle of one demo lobe, as {path: bytes}."""
    root = ROOT / "assets" / "demo_bundle"
    manifest = json.loads((root / "bundle.json").read_text())
    manifest["lobes"], manifest["routers"] = [entry for entry in manifest["lobes"] if entry["name"] == lobe], []
    folder = manifest["lobes"][0]["folder"]
    names = [f"lobes/{folder}/{name}" for name in manifest["lobes"][0]["files"]]
    return {"bundle.json": json.dumps(manifest).encode(), **{name: (root / name).read_bytes() for name in names}}


def adapter_files(lobe: str = "medical") -> Files:
    wanted = ("adapter_config.json", "adapter_model.safetensors")
    files = demo_files(lobe)
    return {name: content for path, content in files.items() if (name := Path(path).name) in wanted}


def zipped(files: Mapping[str, bytes], *more: tuple[zipfile.ZipInfo | str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in [*files.items(), *more]:
            archive.writestr(name, content)
    return sink.getvalue()
