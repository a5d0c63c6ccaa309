"""Zip files: always written the same way, and unpacked only if every entry is a plain file of known
kind and sane size.

Nothing that an archive says of itself is believed: bytes are counted as they come out. It knows
nothing of lobes.
"""

from __future__ import annotations

import copy
import io
import os
import re
import secrets
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from ..errors import BundleError
from ..files import new_folder

EXTENSIONS = frozenset({".json", ".safetensors", ".md", ".txt", ".jinja"})
ARCHIVES = frozenset({".zip", ".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zst"})
MAX_FILES = 20_000
MAX_BYTES = 4 << 30
MAX_RATIO = 200.0

_MAX_LISTING = 16 << 20  # bytes of the archive's own list of files, which must be held in memory at once
_SMALL = 1 << 20  # below this many bytes any ratio is harmless
_CHUNK = 1 << 20
_DRIVE = re.compile(r"^[A-Za-z]:")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile unpacks the others in bites of any size
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError)


def has_known_extension(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def is_junk(name: str) -> bool:
    """Files that operating systems leave behind without being asked."""
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or parts[-1:] in ((".DS_Store",), ("Thumbs.db",), ("desktop.ini",))


def unzip(
    path: Path,
    target: Path,
    allowed: Callable[[str], bool] | None = None,
    max_files: int = MAX_FILES,
    max_bytes: int = MAX_BYTES,
    max_ratio: float = MAX_RATIO,
    wanted: Callable[[str], bool] | None = None,
) -> None:
    """Unpack a zip file into a new folder `target`, wholly or not at all.

    Args:
        allowed: says of a file's name whether it may be there (None: by its extension); one that
            may not refuses all.
        wanted: says which files to unpack; the others stay in the zip, whatever they are (None: all).
        max_ratio: most bytes that one packed byte may become.

    Raises:
        BundleError: not a zip, damaged, or with an entry that is unsafe, unexpected or too large;
            the message names it.
    """
    try:
        with _Zip(path) as file, zipfile.ZipFile(file) as archive:
            entries = _files(path.name, archive.infolist(), max_files, wanted)
            for info, name in entries:
                _check_kind(path.name, info, name, allowed or has_known_extension)
            _check_sizes(path.name, [info for info, _ in entries], path.stat().st_size, max_bytes, max_ratio)
            with new_folder(target) as folder:
                for info, name in entries:
                    _extract(path.name, archive, info, folder / name)
    except _DAMAGED as error:
        message = f"{path.name} is not a zip file, or a damaged one ({error}). Download or export it again."
        raise BundleError(message) from error
    except OSError as error:
        raise BundleError(f"{path.name} cannot be unpacked: {error.strerror or error}.") from error


def zip_folder(folder: Path, path: Path) -> None:
    """Pack all files of `folder` into a zip at `path`, in one step; equal folders make equal zips,
    byte for byte."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    files = sorted((p.relative_to(folder).as_posix(), p) for p in folder.rglob("*") if p.is_file())
    try:
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, file in files:
                info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                info.create_system = 3
                info.external_attr = (stat.S_IFREG | 0o644) << 16
                # weights do not get smaller; text does
                info.compress_type = zipfile.ZIP_STORED if file.suffix == ".safetensors" else zipfile.ZIP_DEFLATED
                info.file_size = file.stat().st_size  # tells zipfile early whether it needs the 64-bit format
                with file.open("rb") as source, archive.open(info, "w") as sink:
                    while chunk := source.read(_CHUNK):
                        sink.write(chunk)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def content_root(folder: Path, *markers: str) -> Path:
    """The folder that holds a file of one of these names: `folder` itself or, at the highest level,
    one in or below it.

    Raises:
        BundleError: there is none down to two levels, or several on the same level.
    """
    wanted = " or ".join(markers)
    for pattern in ("", "*", "*/*"):
        level = [p for p in sorted(folder.glob(pattern)) if p.is_dir() and not is_junk(p.name)] if pattern else [folder]
        found = [p for p in level if any((p / marker).is_file() for marker in markers)]
        if len(found) > 1:
            names = ", ".join(p.name for p in found[:3])
            raise BundleError(f"{folder.name} has {wanted} in {len(found)} folders ({names}, …). Choose one of them.")
        if found:
            return found[0]
    raise BundleError(f"{folder.name} is not a bundle: it has no {wanted}. Choose a bundle's folder or its zip file.")


class _Zip(io.FileIO):
    """A zip file whose list of files cannot fill the memory before it is counted."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_LISTING:
            raise BundleError(f"The zip's list of files takes {size:,} bytes; {_MAX_LISTING:,} is the most. Split it.")
        return super().read(_MAX_LISTING if size is None or size < 0 else size)


def _files(
    where: str, infos: Sequence[zipfile.ZipInfo], max_files: int, wanted: Callable[[str], bool] | None
) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """The entries to unpack with their checked names."""
    if len(infos) > max_files:
        raise BundleError(f"{where} holds {len(infos):,} files; {max_files:,} is the most. Split it.")
    named = [(info, _safe_name(where, info.orig_filename)) for info in infos]
    files = [(i, n) for i, n in named if not i.is_dir() and not is_junk(str(n)) and (wanted is None or wanted(str(n)))]
    seen: dict[str, PurePosixPath] = {}
    for _, name in files:
        first = seen.setdefault(_same(name), name)
        if first is not name:
            raise BundleError(f"{where} holds {_show(name)} twice (also as {_show(first)}). Keep one of them.")
    folders = {_same(parent) for _, name in files for parent in name.parents}
    if both := folders & seen.keys():
        raise BundleError(f"{where} holds {_show(seen[min(both)])} both as a file and as a folder. Export it again.")
    return files


def _safe_name(where: str, name: str) -> PurePosixPath:
    """The path of an entry, sure to stay inside the folder that it is unpacked to."""
    parts = name.split("/")
    faults = (
        (any(unicodedata.category(c) in ("Cc", "Cs") for c in name), "control characters in its name"),
        ("\\" in name, "a backslash in its name"),
        (name.startswith("/"), "an absolute path"),
        (any(_DRIVE.match(part) for part in parts), "a drive letter"),
        (".." in parts, "a path that climbs out of the folder (..)"),
        (name in ("", "."), "no name"),
    )
    for found, fault in faults:
        if found:
            raise BundleError(f"{where}: the entry {_show(name)} has {fault}. Pack it again with a common zip program.")
    return PurePosixPath(name)


def _check_kind(where: str, info: zipfile.ZipInfo, name: PurePosixPath, allowed: Callable[[str], bool]) -> None:
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        raise BundleError(f"{where}: {_show(name)} is a link or a special file. Pack plain files only.")
    if info.flag_bits & 0x2041:  # encrypted, strongly encrypted, encrypted listing
        raise BundleError(f"{where}: {_show(name)} is encrypted. Pack it without a password.")
    if name.suffix.lower() in ARCHIVES:
        raise BundleError(f"{where}: {_show(name)} is an archive inside the archive. Unpack it first.")
    if not allowed(str(name)):
        kinds = ", ".join(sorted(EXTENSIONS))
        raise BundleError(f"{where}: {_show(name)} does not belong there; only {kinds} files are read. Remove it.")
    if info.compress_type not in _METHODS:
        raise BundleError(f"{where}: {_show(name)} is packed by method {info.compress_type}. Pack it as a plain zip.")


def _check_sizes(where: str, infos: Sequence[zipfile.ZipInfo], packed: int, max_bytes: int, max_ratio: float) -> None:
    """What the entries declare; `_extract` holds them to it."""
    total = sum(info.file_size for info in infos)
    if total > max_bytes:
        raise BundleError(f"{where} would unpack to {total:,} bytes; {max_bytes:,} is the most. Split it.")
    if sum(info.compress_size for info in infos) > packed:
        raise BundleError(f"{where} is damaged: its entries lie over each other. Download or export it again.")
    for info in infos:
        if info.file_size > max_ratio * info.compress_size + _SMALL:
            raise BundleError(
                f"{where}: {_show(info.filename)} would swell from {info.compress_size:,} to {info.file_size:,} bytes, "
                "as a zip bomb does, so nothing was unpacked."
            )


def _extract(where: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    unbelieved = copy.copy(info)
    unbelieved.file_size += 2 * _CHUNK  # zipfile stops silently at the declared size; let it run on, to be caught
    count = 0
    with archive.open(unbelieved) as source, target.open("xb") as sink:
        while chunk := source.read(_CHUNK):
            if not count and chunk.startswith(b"PK\x03\x04"):
                raise BundleError(f"{where}: {_show(info.filename)} is an archive inside the archive. Unpack it first.")
            count += len(chunk)
            if count > info.file_size:
                break
            sink.write(chunk)
    if count != info.file_size:
        than = f"{'more' if count > info.file_size else 'less'} than the {info.file_size:,} bytes it declares"
        raise BundleError(f"{where}: {_show(info.filename)} holds {than}. Download or export it again.")


def _same(name: PurePosixPath) -> str:
    """Names that some file system takes for the same."""
    return unicodedata.normalize("NFC", str(name)).casefold()


def _show(name: object) -> str:
    text = str(name)
    return repr(text if len(text) <= 80 else f"{text[:79]}…")


def unpacked(path: Path, scratch: Path, wanted: Callable[[str], bool] | None = None) -> Path:
    """A folder as it is; a zip file unpacked below `scratch`."""
    path = path.expanduser().absolute()
    if path.is_dir():
        return path
    if not path.is_file():
        raise BundleError(f"There is no file or folder {str(path)!r}. Check the spelling.")
    unzip(path, scratch / "unpacked" / path.name, wanted=wanted)
    return scratch / "unpacked" / path.name
