"""What a bundle is, and what can be wrong with it.

    bundle.json                          what it is: the base, and the sha256 of every file
    lobes/lobe_0001/adapter_config.json  adapter_model.safetensors  card.json  routing.safetensors  prompts.json
    routers/gate/fit.json                arrays.safetensors

JSON and safetensors only, so loading runs nobody's code. The base model is never inside.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import AdapterError, BundleError, LobeError, RoutingError
from ..files import read_json, sha256_of
from ..lobes.adapter import CONFIG_FILE, WEIGHTS_FILE, read_header, read_matrices
from ..lobes.card import CARD_FILE, Card
from ..lobes.rows import PROMPTS_FILE, ROUTING_FILE, fault_of_rows
from ..lobes.store import Lobe, check_name
from ..routing.fits import ARRAYS_FILE, FIT_FILE, read_fit
from ..settings import from_json

MANIFEST_FILE = "bundle.json"
FORMAT_VERSION = 1
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE)
_REQUIRED = (*ADAPTER_FILES, CARD_FILE)
_LOBE_FILES = (*_REQUIRED, ROUTING_FILE, PROMPTS_FILE)
_FOLDER = re.compile(r"lobe_\d{4,9}")
_ROUTER = re.compile(r"[a-z]{1,40}")
_MAX_JSON = 256 << 20
_UNFORESEEN = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
ODD = (AdapterError, LobeError, OSError, *_UNFORESEEN)
"""What reading a stranger's files can raise; the unforeseen where JSON holds values that nobody
would write."""


@dataclass(frozen=True)
class Entry:
    """One lobe (or router) in the manifest: its folder's name, its own, and the sha256 of each of
    its files."""

    folder: str
    name: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class Manifest:
    """What bundle.json says.

    Attributes:
        base: name, fingerprint and more of the base model; the fingerprint is "" (unknown) in what
            `multilobe` saved.
        embedding_model: what made the routing rows. routers: those that have been fitted; they call
            lobes by their names.
    """

    base: Mapping[str, Any]
    lobes: tuple[Entry, ...]
    embedding_model: str = ""
    routers: tuple[Entry, ...] = ()
    created: str = ""
    generator: str = ""
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Bundle:
    """An open bundle."""

    root: Path
    manifest: Manifest

    @cached_property
    def lobe_folders(self) -> list[tuple[Path, Card]]:
        """Every lobe's folder and card. Raises BundleError if a card cannot be read."""
        folders = [self.root / "lobes" / entry.folder for entry in self.manifest.lobes]
        return [(folder, card_in(folder)) for folder in folders]


def read_manifest(root: Path) -> Manifest:
    values = read_object(root / MANIFEST_FILE)
    number = values.get("format_version")
    if isinstance(number, int) and number > FORMAT_VERSION:
        known = f"this multilobe-ui reads up to {FORMAT_VERSION}"
        raise BundleError(f"The bundle has format version {number}; {known}. Update multilobe-ui to load it.")
    try:
        lobes = tuple(from_json(Entry, entry) for entry in values["lobes"])
        routers = tuple(from_json(Entry, entry) for entry in values.get("routers", ()))
        manifest = from_json(Manifest, {**values, "lobes": lobes, "routers": routers})
        fault = _fault(manifest)
    except ODD as error:
        fault = str(error)
    if fault:
        raise BundleError(f"{MANIFEST_FILE} does not describe a bundle: {fault}. Ask for a fresh copy of the bundle.")
    return manifest


def _fault(manifest: Manifest) -> str:
    """The first thing in a manifest that cannot be, or ""."""
    base = (manifest.base.get("name"), manifest.base.get("fingerprint"))
    names = (entry.name for _, entry in entries_of(manifest))
    texts = (*base, manifest.embedding_model, manifest.created, manifest.generator, *names)
    if manifest.format_version != FORMAT_VERSION:
        return f"format_version is {manifest.format_version!r}"
    if not all(isinstance(text, str) for text in texts):
        return "a value has the wrong type"
    if not manifest.lobes:
        return "it lists no lobes"
    folders = Counter(entry.folder for entry in manifest.lobes)
    if odd := [folder for folder, count in folders.items() if count > 1 or not _FOLDER.fullmatch(folder)]:
        return f"the folder {odd[0][:80]!r} is misnamed or listed twice"
    for entry in manifest.lobes:
        if not set(_REQUIRED) <= set(entry.files) <= set(_LOBE_FILES):
            return f"{entry.folder} lists other files than a lobe has ({', '.join(entry.files)[:200]})"
    for entry in manifest.routers:
        if entry.folder != entry.name or not _ROUTER.fullmatch(entry.name):
            return f"the router {entry.folder[:80]!r} is misnamed"
        if not {FIT_FILE} <= set(entry.files) <= {FIT_FILE, ARRAYS_FILE}:
            return f"{entry.folder} lists other files than a router has ({', '.join(entry.files)[:200]})"
    return ""


def entries_of(manifest: Manifest) -> Iterator[tuple[PurePosixPath, Entry]]:
    """Every folder of a bundle, and what the manifest says of it."""
    for kind, entries in (("lobes", manifest.lobes), ("routers", manifest.routers)):
        yield from ((PurePosixPath(kind, entry.folder), entry) for entry in entries)


def entry_of(folder: Path, name: str) -> Entry:
    return Entry(folder.name, name, {p.name: sha256_of(p) for p in sorted(folder.iterdir())})


def problems_of(bundle: Bundle, *, weights: bool = True, rows: bool = True, fits: bool = True) -> Iterator[str]:
    """All that can be wrong with the lobes and fits of a bundle, whatever base is loaded.

    Args:
        weights: whether to read the lobes' weights too; else their headers alone. rows, fits:
            whether to read those.
    """
    names: set[str] = set()
    for place, entry in entries_of(bundle.manifest):
        kind, folder = place.parts[0].removesuffix("s"), bundle.root / place
        show = f"The {kind} {entry.name[:80]!r}"
        faults = list(_faults_of_files(folder, entry, weights))
        if not faults and kind == "router":
            faults = list(_faults_of_fit(folder, fits))
        elif not faults:
            faults = list(_faults_of_lobe(folder, entry, bundle.manifest, weights, rows))
            if entry.name.casefold() in names:
                faults.append(": another lobe of the bundle has the same name.")
            names.add(entry.name.casefold())
        yield from (show + fault for fault in faults)


def _faults_of_files(folder: Path, entry: Entry, weights: bool) -> Iterator[str]:
    for name, checksum in entry.files.items():
        if not (folder / name).is_file():
            yield f": {name} is missing."
        elif (weights or name != WEIGHTS_FILE) and sha256_of(folder / name) != checksum:
            yield f": {name} was changed after the bundle was saved."


def _faults_of_fit(folder: Path, read: bool) -> Iterator[str]:
    try:
        if read:
            read_fit(folder)
    except RoutingError as error:
        yield f" cannot be read: {error}"


def _faults_of_lobe(folder: Path, entry: Entry, manifest: Manifest, weights: bool, rows: bool) -> Iterator[str]:
    try:
        card, header = card_in(folder), read_header(folder)
        if weights:
            read_matrices(header)
    except (BundleError, *ODD) as error:
        yield f" cannot be read: {error}"
        return
    if card.name != entry.name or card.base["fingerprint"] != manifest.base["fingerprint"]:
        yield f": {CARD_FILE} has another name or another base than {MANIFEST_FILE}."
    if rows and ROUTING_FILE in entry.files and (fault := why_rows_are_no_good(Lobe(entry.folder, folder, card))):
        yield f": {ROUTING_FILE} and {PROMPTS_FILE} do not hold rows for routing ({fault})."


def read_object(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ValueError(f"it has more than {_MAX_JSON:,} bytes")
        values = read_json(path)
    except FileNotFoundError as error:
        raise BundleError(f"{path.name} is missing. Ask for a fresh copy of the bundle.") from error
    except ODD as error:
        raise BundleError(f"{path.name} is not readable JSON ({error}). Ask for a fresh copy of the bundle.") from error
    if not isinstance(values, dict):
        raise BundleError(f"{path.name} holds a {type(values).__name__}, not an object. Ask for a fresh copy.")
    return values


def card_in(folder: Path) -> Card:
    """Its card, with values of the types that it promises."""
    values = read_object(folder / CARD_FILE)
    try:
        card = from_json(Card, values)
        texts = (card.name, card.created, card.origin, card.embedding_model, card.tier, card.base["fingerprint"])
        tables = (card.base, card.adapter, card.config, card.data, card.training, card.composition)
        if not (all(isinstance(t, str) for t in texts) and all(isinstance(t, dict) for t in tables)):
            raise TypeError("a value has the wrong type")
        return replace(card, name=check_name(card.name))
    except ODD as error:
        raise BundleError(f"{CARD_FILE} is not the card of a lobe ({error}). Ask for a fresh copy.") from error


def why_rows_are_no_good(lobe: Lobe) -> str:
    """Why a lobe's rows for routing are no good, whatever the encoder; "" if they are."""
    rows = lobe.routing_rows()
    if rows is None:
        return "they cannot be read"
    return fault_of_rows(rows)


def copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy those of the named files that exist."""
    target.mkdir(parents=True)
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def move_files(source: Path, target: Path, names: Iterable[str]) -> None:
    target.mkdir(parents=True)
    for name in names:
        if (source / name).is_file():
            (source / name).rename(target / name)
