"""What others made: single PEFT adapters, and what the package `multilobe` 0.1.0 saves."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from ..errors import BundleError
from ..files import write_json
from ..lobes.adapter import CONFIG_FILE, WEIGHTS_FILE, read_header
from ..lobes.card import Card, now, write_card
from ..lobes.rows import RoutingRows, write_routing_rows
from ..lobes.store import check_name
from .manifest import ADAPTER_FILES, MANIFEST_FILE, ODD, Manifest, copy_files, entry_of, read_object
from .zips import is_junk, unpacked

PEER_FILE = "multilobe_config.json"
PEER_ORIGIN = "multilobe 0.1.0"


@contextmanager
def prepare_adapter(path: Path | str) -> Iterator[Path]:
    """A temporary folder with just the adapter_config.json and adapter_model.safetensors found in a
    folder or zip file.

    Looks down to three levels; checkpoints inside an adapter's own folder do not count.

    Raises:
        BundleError: there is no adapter, or there are several; or the zip is unsafe.
    """
    with tempfile.TemporaryDirectory(prefix="multilobe_") as scratch:
        source = unpacked(Path(path), Path(scratch), lambda name: PurePosixPath(name).name in ADAPTER_FILES)
        found = _adapter_folders(source, 3)
        if len(found) > 1:
            names = ", ".join(p.name for p in found[:3])
            raise BundleError(f"{source.name} holds {len(found)} adapters ({names}, …). Choose the folder of one.")
        if not found:
            hint = "An adapter_model.bin is a pickle and never opened: save it as safetensors"
            raise BundleError(f"{source.name} has no {CONFIG_FILE} with {WEIGHTS_FILE} beside it. {hint}.")
        target = Path(scratch) / "adapter" / (found[0].name or "adapter")
        copy_files(found[0], target, ADAPTER_FILES)
        yield target


def _adapter_folders(folder: Path, levels: int) -> list[Path]:
    if all((folder / name).is_file() for name in ADAPTER_FILES):
        return [folder]
    if levels == 0:
        return []
    below = sorted(p for p in folder.iterdir() if p.is_dir() and not is_junk(p.name))
    return [found for child in below for found in _adapter_folders(child, levels - 1)]


def converted(root: Path, target: Path) -> Path:
    """Rewrite what `multilobe` saved: multilobe_config.json, lobes/NAME/metadata.json,
    lobes/NAME/adapter/ADAPTER/."""
    config = read_object(root / PEER_FILE)
    base = {"name": str(config.get("model_name", "")), "fingerprint": ""}
    embedding_model = str(config.get("embedding_model", ""))
    entries = []
    names = config.get("lobes")
    if not (isinstance(names, list) and names):
        raise BundleError(f"{PEER_FILE} lists no lobes. Save the model again with multilobe.")
    for number, name in enumerate(names, 1):
        folder = target / "lobes" / f"lobe_{number:04d}"
        try:
            card = _converted_lobe(_inside(root, "lobes", name), folder, name, base, embedding_model)
        except (BundleError, *ODD) as error:
            raise BundleError(f"The lobe {str(name)[:80]!r} that multilobe saved cannot be read: {error}") from error
        write_card(folder, card)
        entries.append(entry_of(folder, card.name))
    write_json(target / MANIFEST_FILE, asdict(Manifest(base, tuple(entries), embedding_model, generator=PEER_ORIGIN)))
    return target


def _converted_lobe(source: Path, folder: Path, name: str, base: dict[str, str], embedding_model: str) -> Card:
    """Copy the adapter and the routing rows of one lobe; returns its card."""
    metadata = read_object(source / "metadata.json")
    copy_files(_inside(source, "adapter", metadata["adapter_name"]), folder, ADAPTER_FILES)
    header = read_header(folder)
    vector = metadata.get("representation_vector")
    if vector:
        write_routing_rows(folder, _peer_rows(vector))
    else:
        embedding_model = ""
    data_name = PureWindowsPath(metadata.get("dataset_path", "")).name  # the name alone: paths are private
    return Card(
        name=check_name(name),
        created=now(),
        origin=PEER_ORIGIN,
        base=base,
        adapter={"r": header.r, "target_modules": list(header.target_modules), "bytes": header.nbytes},
        config={key: metadata[key] for key in ("epochs", "lora_r", "lora_alpha") if key in metadata},
        data={"name": data_name, "rows": metadata.get("dataset_size")},
        training={"train_loss": metadata.get("training_loss")},
        embedding_model=embedding_model,
    )


def _peer_rows(vector: Any) -> RoutingRows:
    """The peer keeps one mean embedding a lobe, as a list in JSON: it becomes the only prototype."""
    prototype = np.asarray(vector, np.float32)
    length = float(np.linalg.norm(prototype))
    if prototype.ndim != 1 or not np.isfinite(length) or not length:
        raise ValueError("representation_vector must be a list of finite numbers, not all zero")
    none = np.zeros((0, len(prototype)), np.float32)
    return RoutingRows(prototype[None] / length, none, none)


def _inside(root: Path, *parts: str) -> Path:
    """A path from names in a stranger's file, which may have slashes but must not lead out of `root`."""
    path = root.joinpath(*parts)
    if not path.resolve().is_relative_to(root.resolve()):
        raise BundleError(f"{PEER_FILE} names {parts[-1][:80]!r}, which lies outside the bundle. It was not opened.")
    return path
