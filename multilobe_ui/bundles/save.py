"""Saving lobes as a bundle, a folder or a zip file."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import AdapterError, BundleError
from ..files import new_folder, write_json
from ..lobes.adapter import WEIGHTS_FILE, read_header, read_matrices
from ..lobes.card import SHA256, now, write_card
from ..lobes.rows import PROMPTS_FILE, ROUTING_FILE
from ..lobes.store import Lobe
from ..routing.fits import Fit, write_fit
from .manifest import ADAPTER_FILES, MANIFEST_FILE, Manifest, copy_files, entry_of, why_rows_are_no_good
from .zips import is_junk, zip_folder


def save_bundle(
    path: Path | str, lobes: Sequence[Lobe], base: Mapping[str, Any], embedding_model: str, fits: Mapping[str, Fit]
) -> Path:
    """Write a bundle: a zip file if `path` ends in .zip, else a folder. An older bundle there is
    replaced in one step.

    Args:
        fits: what routers have learned, by the router's name.

    Raises:
        BundleError: no lobes, lobes of another base, a lobe that cannot be read, or something else
            lies at `path`.
    """
    path = Path(path).expanduser().resolve()
    if not lobes:
        raise BundleError("There is no lobe to save. Train or import one first.")
    for lobe in lobes:
        if (theirs := lobe.card.base.get("fingerprint")) != base["fingerprint"]:
            raise BundleError(f"The lobe {lobe.name!r} is for another base ({theirs}). Leave it out.")
    _check_replaceable(path)
    manifest = Manifest(
        base={key: value for key, value in base.items() if key not in ("device", "dtype")},
        lobes=(),
        embedding_model=embedding_model,
        created=now(),
        generator=_generator(),
    )
    try:
        if path.suffix.lower() == ".zip":
            with tempfile.TemporaryDirectory(prefix="multilobe_") as scratch:
                _write(Path(scratch), lobes, fits, manifest)
                zip_folder(Path(scratch), path)
        else:
            with new_folder(path) as folder:
                _write(folder, lobes, fits, manifest)
    except (AdapterError, OSError) as error:
        raise BundleError(f"{path.name} was not saved, and nothing there has changed: {error}") from error
    return path


def _write(root: Path, lobes: Sequence[Lobe], fits: Mapping[str, Fit], manifest: Manifest) -> None:
    entries = []
    for number, lobe in enumerate(lobes, 1):
        folder = root / "lobes" / f"lobe_{number:04d}"
        files: tuple[str, ...] = ADAPTER_FILES
        if not why_rows_are_no_good(lobe):
            files = (*files, ROUTING_FILE, PROMPTS_FILE)
        copy_files(lobe.path, folder, files)
        read_matrices(read_header(folder))
        adapter = {key: value for key, value in lobe.card.adapter.items() if key != SHA256}
        write_card(folder, replace(lobe.card, owner="", adapter=adapter))
        entry = entry_of(folder, lobe.name)
        if lobe.card.adapter.get(SHA256, entry.files[WEIGHTS_FILE]) != entry.files[WEIGHTS_FILE]:
            raise AdapterError(
                f"The weights of {lobe.name!r} are not those of the bundle that it came in. Load that again."
            )
        entries.append(entry)
    for name, fit in fits.items():
        write_fit(root / "routers" / name, fit)
    routers = tuple(entry_of(root / "routers" / name, name) for name in fits)
    write_json(root / MANIFEST_FILE, asdict(replace(manifest, lobes=tuple(entries), routers=routers)))


def _check_replaceable(path: Path) -> None:
    """Only a bundle may be replaced by a bundle."""
    strange: list[str] = []
    names = {MANIFEST_FILE}
    if path.is_dir():
        names = {p.name for p in path.iterdir() if not is_junk(p.name)}
        strange = sorted(names - {MANIFEST_FILE, "lobes", "routers"})
    elif path.exists():
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            names = {PurePosixPath(name).name for name in archive.namelist()}
    if names and MANIFEST_FILE not in names:
        strange.insert(0, f"no {MANIFEST_FILE}")
    if strange:
        listed = ", ".join(strange[:4])
        raise BundleError(f"{path.name} exists and is not just a bundle ({listed}). Choose another name.")


def _generator() -> str:
    try:
        return f"multilobe-ui {version('multilobe-ui')}"
    except PackageNotFoundError:
        return "multilobe-ui"
