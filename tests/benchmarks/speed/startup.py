"""From an empty process to the page, and to the first answer.

Every measurement starts a fresh process with a fresh home on a free port, and ends it by its id. Files are in the system's
cache: the first round, which does not count, brings them there.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from contest import Result, race
from settings import Settings
from world import BUILTIN, SHORT, World

from multilobe_ui.assets import builtin_base

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 300.0
MANY = 1000
PLAIN = """
import sys, gradio
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompt = sys.argv[1:]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=1, do_sample=False)
"""
"""What any page with this base has to do before its first token: no lobes, no router, not even the page."""


def results(world: World, settings: Settings) -> Iterator[Result]:
    starts = Starts(world.scratch / "startup", settings.threads)
    runs: dict[str, Callable[[], float]] = {"page": starts.page, "import": lambda: starts.script("import gradio")}
    if settings.full:
        lobes = world.home(BUILTIN, MANY) / "lobes"
        runs |= {
            "crowded": lambda: starts.page(lobes),
            "answer": starts.answer,
            "plain": lambda: starts.script(PLAIN, str(builtin_base()), SHORT),
        }
    taken = race(settings.rounds, runs)
    yield Result(
        "page served", BUILTIN, "`python -c 'import gradio'`", taken["page"], taken["import"], "s", 1.5, "at most",
        "Process start to complete answers of / and /config; ours imports Gradio without having it write its .pyi stubs.",
    )  # fmt: skip
    if not settings.full:
        return
    yield Result(
        f"page served, {MANY:,} lobes", BUILTIN, "a new home", taken["crowded"], taken["page"], "s", sense="at most"
    )
    yield Result(
        "first text, a new home", BUILTIN, "a script's first token", taken["answer"], taken["plain"], "s", sense="at most",
        note="Process start to the first text over the API: page, base, demo lobes, sentence encoder, router, first tokens. "
        "The script imports Gradio and transformers, loads the base and generates one token.",
    )  # fmt: skip


class Starts:
    """Processes that are started, timed and ended.

    Args:
        scratch: where homes are made; threads: of torch.
    """

    def __init__(self, scratch: Path, threads: int) -> None:
        self.scratch = scratch
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("GRADIO_", "MULTILOBE_"))} | {
            "OMP_NUM_THREADS": str(threads), "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SERVER_NAME": "127.0.0.1",
            "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        # Python keeps its bytecode, as it does for everybody: else ours alone would be compiled at every start
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def script(self, program: str, *arguments: str) -> float:
        """Seconds that a program takes from start to end."""
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", program, *arguments], env=self.environment, check=True, capture_output=True
        )
        return time.perf_counter() - start

    def page(self, lobes: Path | None = None) -> float:
        """Seconds until the page and its description are answered, in a new home or one that has these lobes."""
        with self._app(lobes) as (port, start):
            return _answered(port) - start

    def answer(self) -> float:
        """Seconds until the first text of an answer in a new home, asked for as soon as the page is there."""
        with self._app() as (port, start):
            _answered(port)
            return _first_text(port) - start

    @contextmanager
    def _app(self, lobes: Path | None = None) -> Iterator[tuple[int, float]]:
        """A free port with the app starting up on it, and when it was started."""
        port, home = _free_port(), self.scratch / "home"
        home.mkdir(parents=True)
        if lobes is not None:
            (home / "lobes").symlink_to(lobes)
            (home / "demo_installed.json").write_text("{}", encoding="utf-8")  # or the demo would be put among them
        environment = self.environment | {"MULTILOBE_HOME": str(home), "GRADIO_SERVER_PORT": str(port)}
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield port, start
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(home)


def _answered(port: int) -> float:
    """When / and /config had both been answered in full."""
    for path in ("/", "/config"):
        _until_answered(port, path)
    return time.perf_counter()


def _first_text(port: int) -> float:
    """When the first event with text came from the API's `chat`."""
    asked = json.dumps({"data": [SHORT, "automatic", None, 8, 0.0, None, "hybrid", "top_1", 2, None]})
    status, body = _ask(port, "POST", "/gradio_api/call/chat", asked)
    if status != 200:
        raise RuntimeError(f"The API answered {status}: {body[:200]!r}")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", f"/gradio_api/call/chat/{json.loads(body)['event_id']}")
    line = b""
    for line in connection.getresponse():
        if line.startswith(b'data: [{"text"') and json.loads(line[6:])[0]["text"]:
            return time.perf_counter()
    raise RuntimeError(f"No text came; the last line was {line[:500]!r}.")


def _ask(port: int, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _until_answered(port: int, path: str) -> None:
    """Ask a hundred times a second; nobody listens at first."""
    end = time.perf_counter() + PATIENCE
    while time.perf_counter() < end:
        with suppress(OSError):
            if _ask(port, "GET", path)[0] == 200:
                return
        time.sleep(0.01)
    raise RuntimeError(f"The app did not answer {path}.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
