"""Bundles: lobes of one base model in a folder or a zip file, to keep, move and share.

    bundle.json                          what it is: the base, and the sha256 of every file
    lobes/lobe_0001/adapter_config.json  adapter_model.safetensors  card.json  routing.safetensors  prompts.json
    routers/gate/fit.json                arrays.safetensors

JSON and safetensors only, so loading runs nobody's code; what the PyPI package `multilobe` 0.1.0 saves is read too. The
base model is never inside. This module knows no router and no model: fits and the features of the base come as arguments.

Loading reads all of a lobe but its weights, of which the header says what they are: each lobe keeps the sha256 that its weights
must have, and the bank holds them to it when it first reads them. `verify_bundle` reads everything.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import numpy as np

from ..errors import AdapterError, BundleError, LobeError, RoutingError
from ..files import new_folder, read_json, sha256_of, write_json
from ..lobes.adapter import CONFIG_FILE, WEIGHTS_FILE, check_fits, read_header, read_matrices
from ..lobes.card import CARD_FILE, SHA256, Card, now, write_card
from ..lobes.rows import PROMPTS_FILE, ROUTING_FILE, RoutingRows, fault_of_rows, write_routing_rows
from ..lobes.store import Lobe, LobeStore, check_name
from ..routing.fits import ARRAYS_FILE, FIT_FILE, Fit, read_fit, write_fit
from ..settings import from_json
from .zips import content_root, is_junk, unzip, zip_folder

MANIFEST_FILE = "bundle.json"
FORMAT_VERSION = 1
PEER_FILE = "multilobe_config.json"
PEER_ORIGIN = "multilobe 0.1.0"

OnClash = Literal["refuse", "rename", "replace"]
Progress = Callable[[int, int, str], None]
Mend = Callable[[Path, Card], Card]
"""Makes the rows for routing in a lobe's folder sound, or takes them out; returns the card that is right for them."""

_ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE)
_REQUIRED = (*_ADAPTER_FILES, CARD_FILE)
_LOBE_FILES = (*_REQUIRED, ROUTING_FILE, PROMPTS_FILE)
_FOLDER = re.compile(r"lobe_\d{4,9}")
_ROUTER = re.compile(r"[a-z]{1,40}")
_MAX_JSON = 256 << 20
_UNFORESEEN = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
_ODD = (AdapterError, LobeError, OSError, *_UNFORESEEN)
"""What reading a stranger's files can raise; the unforeseen where JSON holds values that nobody would write."""


@dataclass(frozen=True)
class Entry:
    """One lobe (or router) in the manifest: its folder's name, its own, and the sha256 of each of its files."""

    folder: str
    name: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class Manifest:
    """What bundle.json says.

    Attributes:
        base: name, fingerprint and more of the base model; the fingerprint is "" (unknown) in what `multilobe` saved.
        embedding_model: what made the routing rows. routers: those that have been fitted; they call lobes by their names.
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
        return [(folder, _card(folder)) for folder in folders]


# ---- saving ---------------------------------------------------------------------------------------------------------


def save_bundle(
    path: Path | str, lobes: Sequence[Lobe], base: Mapping[str, Any], embedding_model: str, fits: Mapping[str, Fit]
) -> Path:
    """Write a bundle: a zip file if `path` ends in .zip, else a folder. An older bundle there is replaced in one step.

    Args:
        fits: what routers have learned, by the router's name.

    Raises:
        BundleError: no lobes, lobes of another base, a lobe that cannot be read, or something else lies at `path`.
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
        rows = () if _fault_of_rows(lobe) else (ROUTING_FILE, PROMPTS_FILE)
        _copy(lobe.path, folder, (*_ADAPTER_FILES, *rows))
        read_matrices(read_header(folder))
        adapter = {key: value for key, value in lobe.card.adapter.items() if key != SHA256}
        write_card(folder, replace(lobe.card, owner="", adapter=adapter))
        entry = _entry(folder, lobe.name)
        if lobe.card.adapter.get(SHA256, entry.files[WEIGHTS_FILE]) != entry.files[WEIGHTS_FILE]:
            raise AdapterError(f"The weights of {lobe.name!r} are not those of the bundle that it came in. Load that again.")
        entries.append(entry)
    for name, fit in fits.items():
        write_fit(root / "routers" / name, fit)
    routers = tuple(_entry(root / "routers" / name, name) for name in fits)
    write_json(root / MANIFEST_FILE, asdict(replace(manifest, lobes=tuple(entries), routers=routers)))


def _entry(folder: Path, name: str) -> Entry:
    return Entry(folder.name, name, {p.name: sha256_of(p) for p in sorted(folder.iterdir())})


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy those of the named files that exist."""
    target.mkdir(parents=True)
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _move(source: Path, target: Path, names: Iterable[str]) -> None:
    target.mkdir(parents=True)
    for name in names:
        if (source / name).is_file():
            (source / name).rename(target / name)


def _check_replaceable(path: Path) -> None:
    """Only a bundle may be replaced by a bundle."""
    strange = ""
    if path.is_dir():
        names = {p.name for p in path.iterdir() if not is_junk(p.name)}
        missing = [f"no {MANIFEST_FILE}"] if names and MANIFEST_FILE not in names else []
        strange = ", ".join([*missing, *sorted(names - {MANIFEST_FILE, "lobes", "routers"})][:4])
    elif path.exists():
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            names = {PurePosixPath(name).name for name in archive.namelist()}
            strange = "" if MANIFEST_FILE in names else f"no {MANIFEST_FILE}"
    if strange:
        raise BundleError(f"{path.name} exists and is not just a bundle ({strange}). Choose another name.")


def _generator() -> str:
    try:
        return f"multilobe-ui {version('multilobe-ui')}"
    except PackageNotFoundError:
        return "multilobe-ui"


# ---- opening and checking -------------------------------------------------------------------------------------------


@contextmanager
def open_bundle(path: Path | str, scratch_in: Path | None = None) -> Iterator[Bundle]:
    """Open a bundle's folder or zip file, ours or one of `multilobe` 0.1.0. Its files may vanish when the block ends.

    Args:
        scratch_in: folder for what must be unpacked or converted; None is the system's.

    Raises:
        BundleError: not a bundle, unsafe, or with a manifest that cannot be read (`verify_bundle` checks the rest).
    """
    with tempfile.TemporaryDirectory(prefix="multilobe_", dir=scratch_in, ignore_cleanup_errors=True) as scratch:
        root = content_root(_folder(Path(path), Path(scratch)), MANIFEST_FILE, PEER_FILE)
        if not (root / MANIFEST_FILE).is_file():
            root = _converted(root, Path(scratch) / "converted")
        yield Bundle(root, _manifest(root))


def verify_bundle(path: Path | str) -> list[str]:
    """What is wrong with a bundle, one sentence each; empty if nothing is."""
    try:
        with open_bundle(path) as bundle:
            listed = {str(place / name) for place, entry in _entries(bundle.manifest) for name in entry.files}
            files = {p.relative_to(bundle.root).as_posix() for p in bundle.root.rglob("*") if not p.is_dir()}
            extra = sorted(name for name in files - listed - {MANIFEST_FILE} if not is_junk(name))
            return [*_problems(bundle), *(f"{name} is not listed in {MANIFEST_FILE}." for name in extra)]
    except (BundleError, OSError) as error:
        return [str(error)]


def _entries(manifest: Manifest) -> Iterator[tuple[PurePosixPath, Entry]]:
    """Every folder of a bundle, and what the manifest says of it."""
    for kind, entries in (("lobes", manifest.lobes), ("routers", manifest.routers)):
        yield from ((PurePosixPath(kind, entry.folder), entry) for entry in entries)


def _folder(path: Path, scratch: Path, wanted: Callable[[str], bool] | None = None) -> Path:
    """A folder as it is; a zip file unpacked below `scratch`."""
    path = path.expanduser().absolute()
    if path.is_dir():
        return path
    if not path.is_file():
        raise BundleError(f"There is no file or folder {str(path)!r}. Check the spelling.")
    unzip(path, scratch / "unpacked" / path.name, wanted=wanted)
    return scratch / "unpacked" / path.name


def _manifest(root: Path) -> Manifest:
    values = _json(root / MANIFEST_FILE)
    number = values.get("format_version")
    if isinstance(number, int) and number > FORMAT_VERSION:
        known = f"this multilobe-ui reads up to {FORMAT_VERSION}"
        raise BundleError(f"The bundle has format version {number}; {known}. Update multilobe-ui to load it.")
    try:
        lobes = tuple(from_json(Entry, entry) for entry in values["lobes"])
        routers = tuple(from_json(Entry, entry) for entry in values.get("routers", ()))
        manifest = from_json(Manifest, {**values, "lobes": lobes, "routers": routers})
        fault = _fault(manifest)
    except _ODD as error:
        fault = str(error)
    if fault:
        raise BundleError(f"{MANIFEST_FILE} does not describe a bundle: {fault}. Ask for a fresh copy of the bundle.")
    return manifest


def _fault(manifest: Manifest) -> str:
    """The first thing in a manifest that cannot be, or ""."""
    base = (manifest.base.get("name"), manifest.base.get("fingerprint"))
    names = (entry.name for _, entry in _entries(manifest))
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


def _problems(bundle: Bundle, *, weights: bool = True, rows: bool = True, fits: bool = True) -> Iterator[str]:
    """All that can be wrong with the lobes and fits of a bundle, whatever base is loaded.

    Args:
        weights: whether to read the lobes' weights too; else their headers alone. rows, fits: whether to read those.
    """
    seen: set[str] = set()
    for place, entry in _entries(bundle.manifest):
        kind = place.parts[0].removesuffix("s")
        folder, show = bundle.root / place, f"The {kind} {entry.name[:80]!r}"
        missing = [name for name in entry.files if not (folder / name).is_file()]
        read = {name: sha for name, sha in entry.files.items() if weights or name != WEIGHTS_FILE}
        changed = [name for name, sha in read.items() if name not in missing and sha256_of(folder / name) != sha]
        yield from (f"{show}: {name} is missing." for name in missing)
        yield from (f"{show}: {name} was changed after the bundle was saved." for name in changed)
        if missing or changed:
            continue
        if kind == "router":
            try:
                if fits:
                    read_fit(folder)
            except RoutingError as error:
                yield f"{show} cannot be read: {error}"
            continue
        try:
            card, header = _card(folder), read_header(folder)
            if weights:
                read_matrices(header)
        except (BundleError, *_ODD) as error:
            yield f"{show} cannot be read: {error}"
            continue
        if card.name != entry.name or card.base["fingerprint"] != bundle.manifest.base["fingerprint"]:
            yield f"{show}: {CARD_FILE} has another name or another base than {MANIFEST_FILE}."
        if card.name.casefold() in seen:
            yield f"{show}: another lobe of the bundle has the same name."
        seen.add(card.name.casefold())
        if rows and ROUTING_FILE in entry.files and (fault := _fault_of_rows(Lobe(entry.folder, folder, card))):
            yield f"{show}: {ROUTING_FILE} and {PROMPTS_FILE} do not hold rows for routing ({fault})."


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ValueError(f"it has more than {_MAX_JSON:,} bytes")
        values = read_json(path)
    except FileNotFoundError as error:
        raise BundleError(f"{path.name} is missing. Ask for a fresh copy of the bundle.") from error
    except _ODD as error:
        raise BundleError(f"{path.name} is not readable JSON ({error}). Ask for a fresh copy of the bundle.") from error
    if not isinstance(values, dict):
        raise BundleError(f"{path.name} holds a {type(values).__name__}, not an object. Ask for a fresh copy.")
    return values


def _card(folder: Path) -> Card:
    """Its card, with values of the types that it promises."""
    values = _json(folder / CARD_FILE)
    try:
        card = from_json(Card, values)
        texts = (card.name, card.created, card.origin, card.embedding_model, card.tier, card.base["fingerprint"])
        tables = (card.base, card.adapter, card.config, card.data, card.training, card.composition)
        if not (all(isinstance(t, str) for t in texts) and all(isinstance(t, dict) for t in tables)):
            raise TypeError("a value has the wrong type")
        return replace(card, name=check_name(card.name))
    except _ODD as error:
        raise BundleError(f"{CARD_FILE} is not the card of a lobe ({error}). Ask for a fresh copy.") from error


def _fault_of_rows(lobe: Lobe) -> str:
    """Why a lobe's rows for routing are no good, whatever the encoder; "" if they are."""
    rows = lobe.routing_rows()
    return "they cannot be read" if rows is None else fault_of_rows(rows)


# ---- loading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """What a bundle has brought.

    Attributes:
        lobes: the new ones, in the bundle's order. replaced: those in whose place they are; gone when all has gone well.
        fits: the routers' fits that can be read, by router; they call lobes by the names that those got here.
    """

    lobes: list[Lobe]
    replaced: list[Lobe]
    fits: dict[str, Fit]


def load_bundle(
    path: Path | str,
    store: LobeStore,
    base_fingerprint: str,
    base_name: str,
    features: Mapping[str, tuple[int, int]],
    on_clash: OnClash = "rename",
    owner: str = "",
    progress: Progress | None = None,
) -> tuple[list[Lobe], dict[str, Fit]]:
    """`loading_bundle` where nothing else has to be told of the lobes: (the new lobes, the routers' fits)."""
    with loading_bundle(path, store, base_fingerprint, base_name, features, on_clash, owner, progress) as loaded:
        return loaded.lobes, loaded.fits


@contextmanager
def loading_bundle(
    path: Path | str,
    store: LobeStore,
    base_fingerprint: str,
    base_name: str,
    features: Mapping[str, tuple[int, int]],
    on_clash: OnClash = "rename",
    owner: str = "",
    progress: Progress | None = None,
    mend: Mend | None = None,
) -> Iterator[Loaded]:
    """Add all lobes of a bundle to the store, or none. The block takes them in wherever else they are known; when it fails, the
    store is as it was before.

    All that can be refused is refused before the store changes.

    Args:
        features: linear layers of the base that is loaded (`adapter.linear_features`).
        on_clash: where a lobe of that name exists: refuse the bundle, rename the new lobe, or replace the old one.
        progress: called with (lobes added, lobes in all, name).
        mend: called for each lobe's folder, before anything is stored; None refuses a bundle whose rows for routing are in doubt.

    Raises:
        BundleError: damaged, unsafe, newer, of another base, or with a name that is taken. What `mend` and the block raise.
    """
    try:
        # beside the lobes, so that files that were copied or unzipped once are moved from then on
        with (
            tempfile.TemporaryDirectory(prefix=".bundle-", dir=store.folder, ignore_cleanup_errors=True) as scratch,
            open_bundle(path, Path(scratch)) as bundle,
        ):
            theirs = bundle.manifest.base
            if theirs["fingerprint"] not in ("", base_fingerprint):
                wanted, ours = f"{theirs['name']} ({theirs['fingerprint']})", f"{base_name} ({base_fingerprint})"
                raise BundleError(f"The bundle is for the base {wanted}, but {ours} is loaded. Load that base first.")
            mine = Bundle(Path(scratch) / "mine", bundle.manifest)  # that nobody changes meanwhile, and only what is listed
            take = _move if bundle.root.is_relative_to(scratch) else _copy
            for place, entry in _entries(bundle.manifest):
                take(bundle.root / place, mine.root / place, entry.files)
            for problem in _problems(mine, weights=False, rows=mend is None, fits=False):
                raise BundleError(f"{problem} Nothing was loaded; ask for a fresh copy of the bundle.")
            lobes = []
            for entry, (folder, card) in zip(mine.manifest.lobes, mine.lobe_folders, strict=True):
                try:
                    check_fits(read_header(folder), features, base_name)
                except AdapterError as error:
                    raise BundleError(f"The lobe {card.name!r} cannot be loaded: {error}") from error
                if on_clash == "refuse":
                    store.check_free(card.name)
                origin = "bundle" if card.origin == "trained here" else card.origin
                base = {**card.base, "fingerprint": base_fingerprint}
                adapter = {**card.adapter, SHA256: entry.files[WEIGHTS_FILE]}
                lobes.append((folder, replace(card, origin=origin, owner=owner, base=base, adapter=adapter)))
            if mend is not None:
                lobes = [(folder, mend(folder, card)) for folder, card in lobes]
            fits = _readable_fits(mine)
            with _adding(store, lobes, on_clash, progress) as (added, replaced):
                names = {card.name: lobe.name for (_, card), lobe in zip(lobes, added, strict=True)}
                yield Loaded(added, replaced, {name: fit.renamed(names) for name, fit in fits.items()})
    except (AdapterError, LobeError, OSError) as error:
        raise BundleError(f"The bundle was not loaded, and the lobes are as before: {error}") from error


def _readable_fits(bundle: Bundle) -> dict[str, Fit]:
    """A fit that cannot be read is as none: the router can be fitted again. `verify_bundle` names it."""
    found = {}
    for entry in bundle.manifest.routers:
        with suppress(RoutingError):
            found[entry.name] = read_fit(bundle.root / "routers" / entry.folder)
    return found


@contextmanager
def _adding(
    store: LobeStore, lobes: Sequence[tuple[Path, Card]], on_clash: OnClash, progress: Progress | None
) -> Iterator[tuple[list[Lobe], list[Lobe]]]:
    """Add every lobe, or none if adding them or the block fails: (new lobes, those that they replace). A lobe to be replaced steps
    aside under another name until the block is done."""
    added: list[Lobe] = []
    aside: list[tuple[Lobe, str]] = []
    try:
        for folder, card in lobes:
            if on_clash == "rename":
                card = replace(card, name=store.free_name(card.name))
            elif on_clash == "replace":
                for old in [lobe.name for lobe in store.called(card.name)]:
                    aside.append((store.rename(old, store.free_name(f"{old[:60]} (replaced)")), old))
            added.append(store.add(folder, card))
            if progress:
                progress(len(added), len(lobes), card.name)
        yield added, [lobe for lobe, _ in aside]
    except BaseException:
        for lobe in added:
            with suppress(LobeError, OSError):
                store.delete(lobe.name)
        for lobe, name in aside:
            with suppress(LobeError, OSError):
                store.rename(lobe.name, name)
        raise
    for lobe, _ in aside:
        with suppress(LobeError, OSError):
            store.delete(lobe.name)


# ---- what others made -----------------------------------------------------------------------------------------------


@contextmanager
def prepare_adapter(path: Path | str) -> Iterator[Path]:
    """A temporary folder with just the adapter_config.json and adapter_model.safetensors found in a folder or zip file.

    Looks down to three levels; checkpoints inside an adapter's own folder do not count.

    Raises:
        BundleError: there is no adapter, or there are several; or the zip is unsafe.
    """
    with tempfile.TemporaryDirectory(prefix="multilobe_") as scratch:
        source = _folder(Path(path), Path(scratch), lambda name: PurePosixPath(name).name in _ADAPTER_FILES)
        found = _adapter_folders(source, 3)
        if len(found) > 1:
            names = ", ".join(p.name for p in found[:3])
            raise BundleError(f"{source.name} holds {len(found)} adapters ({names}, …). Choose the folder of one.")
        if not found:
            hint = "An adapter_model.bin is a pickle and never opened: save it as safetensors"
            raise BundleError(f"{source.name} has no {CONFIG_FILE} with {WEIGHTS_FILE} beside it. {hint}.")
        target = Path(scratch) / "adapter" / (found[0].name or "adapter")
        _copy(found[0], target, _ADAPTER_FILES)
        yield target


def _adapter_folders(folder: Path, levels: int) -> list[Path]:
    if all((folder / name).is_file() for name in _ADAPTER_FILES):
        return [folder]
    below = sorted(p for p in folder.iterdir() if p.is_dir() and not is_junk(p.name)) if levels else []
    return [found for child in below for found in _adapter_folders(child, levels - 1)]


def _converted(root: Path, target: Path) -> Path:
    """Rewrite what `multilobe` saved: multilobe_config.json, lobes/NAME/metadata.json, lobes/NAME/adapter/ADAPTER/."""
    config = _json(root / PEER_FILE)
    base = {"name": str(config.get("model_name", "")), "fingerprint": ""}
    embedding_model = str(config.get("embedding_model", ""))
    entries = []
    names = config.get("lobes")
    if not (isinstance(names, list) and names):
        raise BundleError(f"{PEER_FILE} lists no lobes. Save the model again with multilobe.")
    for number, name in enumerate(names, 1):
        folder = target / "lobes" / f"lobe_{number:04d}"
        try:
            source = _inside(root, "lobes", name)
            metadata = _json(source / "metadata.json")
            file = PureWindowsPath(metadata.get("dataset_path", "")).name  # the name alone: paths are private
            _copy(_inside(source, "adapter", metadata["adapter_name"]), folder, _ADAPTER_FILES)
            header = read_header(folder)
            vector = metadata.get("representation_vector")
            if vector:
                write_routing_rows(folder, _peer_rows(vector))
            card = Card(
                name=check_name(name),
                created=now(),
                origin=PEER_ORIGIN,
                base=base,
                adapter={"r": header.r, "target_modules": list(header.target_modules), "bytes": header.nbytes},
                config={key: metadata[key] for key in ("epochs", "lora_r", "lora_alpha") if key in metadata},
                data={"name": file, "rows": metadata.get("dataset_size")},
                training={"train_loss": metadata.get("training_loss")},
                embedding_model=embedding_model if vector else "",
            )
        except (BundleError, *_ODD) as error:
            raise BundleError(f"The lobe {str(name)[:80]!r} that multilobe saved cannot be read: {error}") from error
        write_card(folder, card)
        entries.append(_entry(folder, card.name))
    write_json(target / MANIFEST_FILE, asdict(Manifest(base, tuple(entries), embedding_model, generator=PEER_ORIGIN)))
    return target


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
