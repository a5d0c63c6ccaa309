"""Small file habits that the whole package shares: JSON in and out, and replacing a file or folder
in one step."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")
_log = logging.getLogger(__name__)


def home_folder(home: str | os.PathLike[str] | None) -> Path:
    """Where lobes and jobs are kept: `home`, else MULTILOBE_HOME, else ~/.multilobe. It need not be there."""
    return Path(home or os.environ.get("MULTILOBE_HOME") or Path.home() / ".multilobe").expanduser().resolve()


def made_home(home: str | os.PathLike[str] | None) -> Path:
    """`home_folder`, made if it is not there. Raises ConfigError if it cannot be made."""
    path = home_folder(home)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The home {str(path)!r} cannot be made ({error.strerror}). Choose another: --home, or MULTILOBE_HOME."
        ) from None
    return path


def read_json(path: Path) -> Any:
    """Raises OSError or ValueError as `open` and `json` do (also for a file nested too deeply to be read)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_ours(path: Path, kind: type[T], what: str) -> T:
    """The JSON of a file that we wrote; `kind()` where there is none, or it is damaged: then it is set aside.

    Raises:
        ConfigError: the file may not be read.
    """
    try:
        found = read_json(path)
    except FileNotFoundError:
        return kind()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}). Check the rights of the file.") from None
    except ValueError as error:
        set_aside(path, what, str(error))
        return kind()
    if isinstance(found, kind):
        return found
    set_aside(path, what, f"it holds no {kind.__name__}")
    return kind()


def set_aside(path: Path, what: str, why: str) -> None:
    """Keep a copy of a damaged file, which is about to be written anew without what could not be read.

    Args:
        what: is left out, for the log. why: it cannot be read.
    """
    aside = path.with_name(f"{path.name}.damaged-{sha256_of(path)[:8]}")
    if not aside.exists():
        shutil.copyfile(path, aside)
        _log.warning("%s cannot be read (%s): %s left out. It is kept as %s.", path, why, what, aside.name)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path` against other processes (and threads) that change it by this function; where a
    file system has no locks, not."""
    with path.with_name(f".{path.name}.lock").open("a") as file:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_json(path: Path, value: Any) -> None:
    """Replace `path` in one step: a reader sees the old text or the new, never half of it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes `target` when the block succeeds and vanishes
    when it fails.

    An existing `target` is replaced, and comes back if the last rename fails.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(4)
    temporary = target.with_name(f".{target.name}.{mark}.new")
    temporary.mkdir()
    try:
        yield temporary
        retired = target.with_name(f".{target.name}.{mark}.old")
        if target.exists():
            os.replace(target, retired)
        try:
            os.replace(temporary, target)
        except OSError:
            if retired.exists():
                os.replace(retired, target)
            raise
        shutil.rmtree(retired, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_size(path: Path) -> int:
    """Bytes of all files below `path`."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
