"""multilobe_ui.bundles.zips: zips are written the same way every time, and bad ones leave nothing behind."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from multilobe_ui.bundles import zips as archive
from multilobe_ui.bundles.zips import content_root, unzip, zip_folder
from multilobe_ui.errors import BundleError

GOOD = "lobes/lobe_0001/card.json"
Entries = list[tuple[str | zipfile.ZipInfo, bytes]]


def make_zip(path: Path, entries: Entries, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in entries:
            file.writestr(name, data)
    return path


def info(name: str, mode: int = 0, method: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo("x")
    entry.filename = name  # the constructor would cut a name at NUL
    entry.create_system = 3
    entry.external_attr = mode << 16
    entry.compress_type = method
    return entry


def patch(path: Path, change: Callable[[bytearray], None]) -> Path:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return path


def set_flag(data: bytearray) -> None:
    """Mark the only entry as encrypted, in its own header and in the list."""
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(signature) + offset] |= 1


def declare(size: int, crc: int | None = None) -> Callable[[bytearray], None]:
    """Let the only entry say that it holds so many bytes, in its own header and in the list."""

    def change(data: bytearray) -> None:
        for signature, crc_at, size_at in ((b"PK\x03\x04", 14, 22), (b"PK\x01\x02", 16, 24)):
            start = data.find(signature)
            struct.pack_into("<I", data, start + size_at, size)
            if crc is not None:
                struct.pack_into("<I", data, start + crc_at, crc)

    return change


def bad_cases() -> dict[str, tuple[Callable[[Path], Path], str]]:
    """name → (makes the file, a piece of the message)."""

    def entries(*pairs: tuple[str | zipfile.ZipInfo, bytes]) -> Callable[[Path], Path]:
        return lambda path: make_zip(path, [(GOOD, b"{}"), *pairs])

    def of_text(path: Path) -> Path:
        path.write_text("not a zip at all")
        return path

    def truncated(path: Path) -> Path:
        make_zip(path, [(GOOD, b"{}" * 5000)])
        path.write_bytes(path.read_bytes()[:60])
        return path

    def flipped(path: Path) -> Path:
        make_zip(path, [(GOOD, b"hello " * 50)], zipfile.ZIP_STORED)
        return patch(path, lambda data: data.__setitem__(60, data[60] ^ 255))

    def lying(path: Path) -> Path:
        make_zip(path, [("a.json", bytes(8 << 20))])
        return patch(path, declare(100))

    def lying_well(path: Path) -> Path:
        make_zip(path, [("a.json", bytes(8 << 20))])
        return patch(path, declare(100, zlib.crc32(bytes(100))))

    def boasting(path: Path) -> Path:
        return patch(make_zip(path, [("a.json", b"{}")]), declare(3000))

    def lying_slightly(path: Path) -> Path:
        return patch(make_zip(path, [("a.json", b"{}" * 100)]), declare(100))

    def overlapping(path: Path) -> Path:
        make_zip(path, [("a.json", b"x" * 4000), ("b.json", b"y")], zipfile.ZIP_STORED)

        def change(data: bytearray) -> None:  # the second entry's compressed size in the list
            second = data.rfind(b"PK\x01\x02")
            struct.pack_into("<I", data, second + 20, 1 << 20)

        return patch(path, change)

    nested = zipfile.ZipInfo("weights.safetensors")
    return {
        "text": (of_text, "not a zip file"),
        "empty file": (lambda path: (path.write_bytes(b""), path)[1], "not a zip file"),
        "no file": (lambda path: path, "No such file"),
        "truncated": (truncated, "not a zip file, or a damaged one"),
        "damaged content": (flipped, "Bad CRC-32"),
        "encrypted": (lambda path: patch(make_zip(path, [(GOOD, b"{}")]), set_flag), "without a password"),
        "absolute": (entries(("/etc/cron.json", b"{}")), "an absolute path"),
        "drive": (entries(("C:/x.json", b"{}")), "a drive letter"),
        "drive below": (entries(("a/c:x.json", b"{}")), "a drive letter"),
        "backslash": (entries((info("a\\b.json"), b"{}")), "a backslash"),
        "climbs": (entries(("../x.json", b"{}")), "climbs out"),
        "climbs inside": (entries(("a/../../x.json", b"{}")), "climbs out"),
        "climbing folder": (entries(("../x/", b"")), "climbs out"),
        "nul": (entries((info("a.json\0.exe"), b"{}")), "control characters"),
        "newline": (entries(("a\nb.json", b"{}")), "control characters"),
        "no name": (entries((info("."), b"")), "no name"),
        "symlink": (entries((info("a.json", stat.S_IFLNK | 0o777), b"/etc/passwd")), "a link or a special file"),
        "fifo": (entries((info("a.json", stat.S_IFIFO | 0o666), b"")), "a link or a special file"),
        "twice": (entries((GOOD, b"[]")), "twice"),
        "twice by dot": (entries((info("./" + GOOD), b"[]")), "twice"),
        "case clash": (entries(("Lobes/LOBE_0001/Card.json", b"[]")), "twice"),
        "unicode clash": (entries(("\u00e9.json", b"1"), ("e\u0301.json", b"2")), "twice"),
        "file and folder": (entries(("lobes/LOBE_0001", b"x"), ("lobes/LOBE_0001.json", b"")), "file and as a folder"),
        "pickle": (entries(("adapter_model.bin", b"\x80\x04.")), "'adapter_model.bin' does not belong"),
        "python": (entries(("modeling.py", b"import os")), "does not belong"),
        "nested by name": (entries(("more.zip", b"PK")), "archive inside the archive"),
        "nested by content": (entries((nested, b"PK\x03\x04rest")), "archive inside the archive"),
        "bzip2": (entries((info("a.json", method=zipfile.ZIP_BZIP2), b"{}")), "packed by method 12"),
        "lzma": (entries((info("a.json", method=zipfile.ZIP_LZMA), b"{}")), "packed by method 14"),
        "bomb": (lambda path: make_zip(path, [("a.json", bytes(8 << 20))]), "as a zip bomb does"),
        "lying bomb": (lying, "Bad CRC-32|holds more than the 100 bytes"),
        "lying bomb, right checksum": (lying_well, "holds more than the 100 bytes"),
        "a little more": (lying_slightly, "holds more than the 100 bytes"),
        "less than declared": (boasting, "holds less than the 3,000 bytes"),
        "overlapping": (overlapping, "lie over each other|would swell"),
    }


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", bad_cases())
def test_bad_zip_is_refused_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    make, message = bad_cases()[case]
    path = make(tmp_path / "bad.zip")
    allowed = (lambda name: True) if case == "file and folder" else None
    with pytest.raises(BundleError, match=message) as caught:
        unzip(path, tmp_path / "out", allowed)
    assert len(str(caught.value)) < 300
    assert {p.name for p in tmp_path.iterdir()} <= {"bad.zip"}


def test_too_many_files_and_bytes(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", [(f"{i}.json", b"{}" * 50) for i in range(5)])
    with pytest.raises(BundleError, match="holds 5 files; 4 is the most"):
        unzip(path, tmp_path / "out", max_files=4)
    with pytest.raises(BundleError, match="unpack to 500 bytes; 499 is the most"):
        unzip(path, tmp_path / "out", max_bytes=499)
    unzip(path, tmp_path / "out", max_files=5, max_bytes=500)


def test_a_list_of_files_too_long_for_memory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(tmp_path / "a.zip", [(f"{i:0>90}.json", b"") for i in range(100)])
    monkeypatch.setattr(archive, "_MAX_LISTING", 8000)
    with pytest.raises(BundleError, match="list of files takes"):
        unzip(path, tmp_path / "out")


def test_junk_is_ignored_and_unwanted_files_stay(tmp_path: Path) -> None:
    junk: Entries = [("__MACOSX/._a.json", b"x"), ("b/.DS_Store", b"x"), ("empty/", b""), (info("./"), b"")]
    path = make_zip(tmp_path / "a.zip", [("b/a.json", b"{}"), *junk])
    unzip(path, tmp_path / "out")
    assert [p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*")] == ["b", "b/a.json"]
    path = make_zip(tmp_path / "b.zip", [("a.json", b"{}"), ("training_args.bin", b"\x80\x04.")])
    unzip(path, tmp_path / "out2", wanted=lambda name: name == "a.json")
    assert [p.name for p in (tmp_path / "out2").iterdir()] == ["a.json"]
    with pytest.raises(BundleError, match="climbs out"):
        unzip(make_zip(path, [("../a.bin", b"")]), tmp_path / "out3", wanted=lambda name: False)


def test_zip_folder_is_deterministic_and_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "b").mkdir(parents=True)
    contents = {"z.json": b"{}", "b/é.safetensors": bytes(range(256)) * 9000, "b/empty.txt": b""}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    zip_folder(folder, tmp_path / "1.zip")
    (folder / "z.json").touch()
    zip_folder(folder, tmp_path / "2.zip")
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    unzip(tmp_path / "1.zip", tmp_path / "out")
    found = {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*.*")}
    assert found == contents


def test_zip_folder_that_fails_keeps_the_older_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.json").write_text("{}")
    (tmp_path / "old.zip").write_text("older")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile._ZipWriteFile, "write", full)  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="No space left"):
        zip_folder(tmp_path / "in", tmp_path / "old.zip")
    assert (tmp_path / "old.zip").read_text() == "older"
    assert {p.name for p in tmp_path.iterdir()} == {"in", "old.zip"}


def test_content_root(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    (deep / "c").mkdir(parents=True)
    (deep / "c" / "bundle.json").write_text("{}")
    with pytest.raises(BundleError, match=r"has no bundle\.json or other.json"):
        content_root(tmp_path, "bundle.json", "other.json")
    (deep / "bundle.json").write_text("{}")
    assert content_root(tmp_path, "bundle.json") == deep
    (tmp_path / "a" / "other.json").write_text("{}")
    assert content_root(tmp_path, "bundle.json", "other.json") == tmp_path / "a"
    (tmp_path / "a2").mkdir()
    (tmp_path / "a2" / "bundle.json").write_text("{}")
    with pytest.raises(BundleError, match=r"in 2 folders \(a, a2"):
        content_root(tmp_path, "bundle.json", "other.json")
    (tmp_path / "bundle.json").write_text("{}")
    assert content_root(tmp_path, "bundle.json") == tmp_path
