"""The real app in a process of its own, and visitors with a real browser.

At the end of every test a visitor's page must have stayed on this machine and be free of script errors, the server's log
must be free of tracebacks, and only the demo lobes are left.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from visitor import DEMO, PATIENCE, ROOT, App, Visitor, until

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """`python app.py` with an empty home, as on a newcomer's machine; one for all tests, each of which leaves it as it was."""
    if not CHROMIUM.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{CHROMIUM} is missing: these tests must run in CI")
        pytest.skip(f"{CHROMIUM} is missing")
    folder, port = tmp_path_factory.mktemp("app"), free_port()
    environment = {key: value for key, value in os.environ.items() if key.lower() not in PROXIES}
    environment |= {
        "MULTILOBE_HOME": str(folder / "home"), "GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_TEMP_DIR": str(folder / "uploads"), "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    for unwanted in ("MULTILOBE_SHARED", "MULTILOBE_BASE", "SYSTEM"):
        environment.pop(unwanted, None)
    with (folder / "app.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=log, stderr=log)
        running = App(f"http://127.0.0.1:{port}/", folder / "home", folder / "app.log", process)
        try:
            until("the page answers", running.answers)
            yield running
        finally:
            for client in running.clients:
                client.close()
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def browser(app: App) -> Iterator[Any]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def visit(app: App, browser: Any) -> Iterator[Callable[..., Visitor]]:
    """visit(**context options) -> a new Visitor, on the page, with the model ready."""
    visitors: list[Visitor] = []
    logged = app.log.stat().st_size

    def come(**options: Any) -> Visitor:
        visitors.append(Visitor(browser, app, **options))
        return visitors[-1]

    yield come
    try:
        for visitor in visitors:
            visitor.leave()
    finally:
        app.stop_training()
        for name in app.lobes():
            if name not in DEMO:
                app.call("delete_lobe", name)
    assert "Traceback" not in app.log.read_text(errors="replace")[logged:]
    assert app.lobes() == list(DEMO)


@pytest.fixture
def visitor(visit: Callable[..., Visitor]) -> Visitor:
    return visit()
