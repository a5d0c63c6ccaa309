"""Opening a bundle, checking it, and adding its lobes to a home: all of them or none.

Loading reads all of a lobe but its weights, of which the header says what they are: each lobe keeps
the sha256 that its weights must have, and the bank holds them to it when it first reads them.
`verify_bundle` reads everything.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..errors import AdapterError, BundleError, LobeError, RoutingError
from ..lobes.adapter import WEIGHTS_FILE, check_fits, read_header
from ..lobes.card import SHA256, Card
from ..lobes.store import Lobe, LobeStore
from ..routing.fits import Fit, read_fit
from .manifest import MANIFEST_FILE, Bundle, copy_files, entries_of, move_files, problems_of, read_manifest
from .peer import PEER_FILE, converted
from .zips import content_root, is_junk, unpacked

OnClash = Literal["refuse", "rename", "replace"]
Mend = Callable[[Path, Card], Card]
"""Makes the rows for routing in a lobe's folder sound, or takes them out; returns the card that is
right for them."""


@dataclass(frozen=True)
class Base:
    """The base that is loaded. `features`: its linear layers (`adapter.linear_features`)."""

    name: str
    fingerprint: str
    features: Mapping[str, tuple[int, int]]


@contextmanager
def open_bundle(path: Path | str, scratch_in: Path | None = None) -> Iterator[Bundle]:
    """Open a bundle's folder or zip file, ours or one of `multilobe` 0.1.0. Its files may vanish
    when the block ends.

    Args:
        scratch_in: folder for what must be unpacked or converted; None is the system's.

    Raises:
        BundleError: not a bundle, unsafe, or with a manifest that cannot be read (`verify_bundle`
            checks the rest).
    """
    with tempfile.TemporaryDirectory(prefix="multilobe_", dir=scratch_in, ignore_cleanup_errors=True) as scratch:
        root = content_root(unpacked(Path(path), Path(scratch)), MANIFEST_FILE, PEER_FILE)
        if not (root / MANIFEST_FILE).is_file():
            root = converted(root, Path(scratch) / "converted")
        yield Bundle(root, read_manifest(root))


def verify_bundle(path: Path | str) -> list[str]:
    """What is wrong with a bundle, one sentence each; empty if nothing is."""
    try:
        with open_bundle(path) as bundle:
            listed = {str(place / name) for place, entry in entries_of(bundle.manifest) for name in entry.files}
            files = {p.relative_to(bundle.root).as_posix() for p in bundle.root.rglob("*") if not p.is_dir()}
            extra = sorted(name for name in files - listed - {MANIFEST_FILE} if not is_junk(name))
            return [*problems_of(bundle), *(f"{name} is not listed in {MANIFEST_FILE}." for name in extra)]
    except (BundleError, OSError) as error:
        return [str(error)]


@dataclass(frozen=True)
class Loaded:
    """What a bundle has brought.

    Attributes:
        lobes: the new ones, in the bundle's order. replaced: those in whose place they are; gone
            when all has gone well.
        fits: the routers' fits that can be read, by router; they call lobes by the names that those got here.
    """

    lobes: list[Lobe]
    replaced: list[Lobe]
    fits: dict[str, Fit]


@contextmanager
def loading_bundle(
    path: Path | str,
    store: LobeStore,
    base: Base,
    on_clash: OnClash = "rename",
    owner: str = "",
    mend: Mend | None = None,
) -> Iterator[Loaded]:
    """Add all lobes of a bundle to the store, or none. The block takes them in wherever else they
    are known; when it fails, the store is as it was before.

    All that can be refused is refused before the store changes.

    Args:
        on_clash: where a lobe of that name exists: refuse the bundle, rename the new lobe, or
            replace the old one.
        mend: called for each lobe's folder, before anything is stored; None refuses a bundle whose
            rows for routing are in doubt.

    Raises:
        BundleError: damaged, unsafe, newer, of another base, or with a name that is taken. What
            `mend` and the block raise.
    """
    try:
        # beside the lobes, so that files that were copied or unzipped once are moved from then on
        with tempfile.TemporaryDirectory(prefix=".bundle-", dir=store.folder, ignore_cleanup_errors=True) as scratch:
            mine = _taken(path, Path(scratch), base)
            for problem in problems_of(mine, weights=False, rows=mend is None, fits=False):
                raise BundleError(f"{problem} Nothing was loaded; ask for a fresh copy of the bundle.")
            lobes = list(_checked_lobes(mine, base, owner))
            if on_clash == "refuse":
                for _, card in lobes:
                    store.check_free(card.name)
            if mend is not None:
                lobes = [(folder, mend(folder, card)) for folder, card in lobes]
            fits = _readable_fits(mine)
            with _adding(store, lobes, on_clash) as (added, replaced):
                names = {card.name: lobe.name for (_, card), lobe in zip(lobes, added, strict=True)}
                yield Loaded(added, replaced, {name: fit.renamed(names) for name, fit in fits.items()})
    except (AdapterError, LobeError, OSError) as error:
        raise BundleError(f"The bundle was not loaded, and the lobes are as before: {error}") from error


def _taken(path: Path | str, scratch: Path, base: Base) -> Bundle:
    """A copy of a bundle in `scratch`, which nobody changes meanwhile, with only the files that it lists."""
    with open_bundle(path, scratch) as bundle:
        theirs = bundle.manifest.base
        if theirs["fingerprint"] not in ("", base.fingerprint):
            wanted, ours = f"{theirs['name']} ({theirs['fingerprint']})", f"{base.name} ({base.fingerprint})"
            raise BundleError(f"The bundle is for the base {wanted}, but {ours} is loaded. Load that base first.")
        take = copy_files
        if bundle.root.is_relative_to(scratch):
            take = move_files
        mine = Bundle(scratch / "mine", bundle.manifest)
        for place, entry in entries_of(bundle.manifest):
            take(bundle.root / place, mine.root / place, entry.files)
        return mine


def _checked_lobes(bundle: Bundle, base: Base, owner: str) -> Iterator[tuple[Path, Card]]:
    """Each lobe's folder, and its card as it is to be stored here. Raises BundleError: it does not
    fit the base."""
    for entry, (folder, card) in zip(bundle.manifest.lobes, bundle.lobe_folders, strict=True):
        try:
            check_fits(read_header(folder), base.features, base.name)
        except AdapterError as error:
            raise BundleError(f"The lobe {card.name!r} cannot be loaded: {error}") from error
        origin = card.origin
        if origin == "trained here":
            origin = "bundle"
        yield (
            folder,
            replace(
                card,
                origin=origin,
                owner=owner,
                base={**card.base, "fingerprint": base.fingerprint},
                adapter={**card.adapter, SHA256: entry.files[WEIGHTS_FILE]},
            ),
        )


def _readable_fits(bundle: Bundle) -> dict[str, Fit]:
    """A fit that cannot be read is as none: the router can be fitted again. `verify_bundle` names it."""
    found = {}
    for entry in bundle.manifest.routers:
        with suppress(RoutingError):
            found[entry.name] = read_fit(bundle.root / "routers" / entry.folder)
    return found


@contextmanager
def _adding(
    store: LobeStore, lobes: Sequence[tuple[Path, Card]], on_clash: OnClash
) -> Iterator[tuple[list[Lobe], list[Lobe]]]:
    """Add every lobe, or none if adding them or the block fails: (new lobes, those that they
    replace). A lobe to be replaced steps aside under another name until the block is done."""
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
