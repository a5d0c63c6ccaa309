"""The running app and a person at its page, as the browser tests see them.

Nothing here asserts how long anything takes: what is waited for is always something that shows on the page.
"""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ("legal", "maths", "medical", "python", "sentiment", "summarisation")
PATIENCE = 120.0  # seconds; a CI machine has two slow cores
TRAINED = 300.0  # seconds
INSULIN = "Could you tell me what insulin does once it is in the blood?"
BUG = re.compile(r"Traceback|File \"[^\"]+\", line|Something went wrong")

LOOKOUT = """
window.covered = 0;  // how often Gradio has laid "Error" over the conversation, if only for a moment
new MutationObserver(() => {
    window.covered += document.querySelectorAll('#chat [data-testid="status-tracker"] .error').length;
}).observe(document, { childList: true, subtree: true });
"""
PRESS_STOP = """(count) => { window.pressed = false; const looking = setInterval(() => {
    const stop = document.querySelector('#message .stop-button');
    const answer = document.querySelectorAll('#chat .bot-row [data-testid="bot"]')[count - 1]?.innerText ?? '';
    if (!stop || !/\\w+ \\w+/.test(answer)) return;
    clearInterval(looking);
    window.hold?.();
    stop.click();
    window.pressed = true;
}, 5); }"""
HOLD_STREAM = """() => {
    const ask = window.fetch;
    window.hold = () => { window.hold = undefined; window.held = new Promise((free) => { window.release = free; }); };
    window.fetch = async (...asked) => {
        const answer = await ask(...asked);
        if (!String(asked[0].url ?? asked[0]).includes('/queue/data')) return answer;
        const gate = new TransformStream({ async transform(part, out) { await window.held; out.enqueue(part); } });
        return new Response(answer.body.pipeThrough(gate), { status: answer.status, headers: answer.headers });
    };
}"""


def until(what: str, check: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What `check` returns, as soon as that is true."""
    end = time.monotonic() + seconds
    while not (value := check()):
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(0.2)
    return value


@dataclass
class App:
    """The running app. `api` is a client of its named endpoints."""

    url: str
    home: Path
    log: Path
    process: subprocess.Popen[bytes]
    clients: list[Any] = field(default_factory=list)

    @property
    def api(self) -> Any:
        if not self.clients:
            from gradio_client import Client

            self.clients.append(Client(self.url, verbose=False, analytics_enabled=False))
        return self.clients[0]

    def call(self, endpoint: str, *args: Any, **values: Any) -> Any:
        return self.api.predict(*args, api_name=f"/{endpoint}", **values)

    def lobes(self) -> list[str]:
        return [lobe["name"] for lobe in self.call("lobes")]

    def answers(self) -> bool:
        if self.process.poll() is not None:
            pytest.fail(f"the app has ended:\n{self.log.read_text()[-3000:]}")
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(self.url, timeout=5) as page:
                return bool(page.status == 200)
        except OSError:
            return False

    @contextmanager
    def slow(self) -> Iterator[None]:
        """The server runs a sixth of the time only."""
        over = threading.Event()

        def hinder() -> None:
            while not over.wait(0.05):
                self.process.send_signal(signal.SIGSTOP)
                over.wait(0.25)
                self.process.send_signal(signal.SIGCONT)

        hindering = threading.Thread(target=hinder)
        hindering.start()
        try:
            yield
        finally:
            over.set()
            hindering.join()

    def stop_training(self) -> None:
        """Stop every job that is still at work. Its ids are the names of their folders."""
        for folder in sorted((self.home / "jobs").glob("*")):
            if (folder / "job.json").is_file():
                self.ended(folder.name)

    def ended(self, job: str) -> dict[str, Any]:
        state = self.call("train_status", job)
        if state["state"] in ("queued", "running"):
            self.call("stop", job)
        over = ("finished", "stopped", "failed", "interrupted")
        return until("the job ends", lambda: (s := self.call("train_status", job))["state"] in over and s, TRAINED)


class Visitor:
    """A person at the page, in a browser context of their own."""

    def __init__(self, browser: Any, app: App, **options: Any) -> None:
        self.app = app
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
        self.context.set_default_timeout(PATIENCE * 1000)
        self.requests: list[str] = []
        self.script_errors: list[str] = []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.context.on("weberror", lambda error: self.script_errors.append(str(error.error)))
        self.context.add_init_script(LOOKOUT)
        self.page = self.context.new_page()
        self.open()

    def open(self) -> None:
        """Go to the page, or load it anew, and wait until the model is there."""
        from playwright.sync_api import expect

        self.page.goto(self.app.url)
        expect(self.page.locator("#status")).to_contain_text("Ready")

    def on(self, css: str) -> Any:
        return self.page.locator(css)

    def sees(self, css: str, text: str | re.Pattern[str]) -> None:
        from playwright.sync_api import expect

        expect(self.on(css).first).to_contain_text(text)

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    def toast(self, fragment: str) -> None:
        """Wait for a message that has these words, then put all messages away."""
        from playwright.sync_api import expect

        expect(self.page.get_by_test_id("toast-body").filter(has_text=fragment).first).to_be_visible()
        self.check()
        self.page.evaluate("document.querySelectorAll('[data-testid=toast-close]').forEach((cross) => cross.click())")
        expect(self.page.get_by_test_id("toast-body")).to_have_count(0)

    # ---- chat --------------------------------------------------------------------------------------------------------

    def send(self, text: str) -> int:
        """Send a message; returns how many answers there will be."""
        count = self.on("#chat .bot-row").count()
        self.on("#message textarea").fill(text)
        self.page.get_by_role("button", name="Send", exact=True).click()
        return int(count) + 1

    def answered(self, count: int = 1) -> str:
        """Wait until the answer with this number is complete; returns it."""
        from playwright.sync_api import expect

        expect(self.on("#chat .bot-row")).to_have_count(count)
        expect(self.page.get_by_role("button", name="Send", exact=True)).to_be_visible()
        expect(self.on("#why .ml-eyebrow")).to_have_text("Answered by")
        return self.answer()

    def interrupt(self, text: str) -> str:
        """Send a message, and press Stop once two words of the answer are there; returns what came.

        The page itself presses, and the server is slow: else a browser that shares two cores may come after the last word.
        """
        self.page.evaluate(PRESS_STOP, self.on("#chat .bot-row").count() + 1)
        with self.app.slow():
            count = self.send(text)
            self.page.wait_for_function("window.pressed")
            return self.answered(count)  # slow until then: what Stop asks for has to reach the server before the last word

    def interrupt_with_a_busy_page(self, text: str) -> str:
        """The same on a page that has much to draw: it hears that the answer has ended once all that Stop asked for is done."""
        self.page.evaluate(HOLD_STREAM)
        with self.page.expect_response(re.compile("/gradio_api/reset$")):
            begun = self.interrupt(text)
        self.page.evaluate("window.release()")
        return begun

    def answer(self) -> str:
        return str(self.on('#chat .bot-row [data-testid="bot"]').last.inner_text()).strip()

    def ask(self, text: str) -> str:
        return self.answered(self.send(text))

    def clear(self) -> None:
        """Begin another conversation; the panel says that the server has done so too."""
        from playwright.sync_api import expect

        self.page.get_by_role("button", name="Clear", exact=True).click()
        expect(self.on("#chat .bot-row")).to_have_count(0)
        self.sees("#why", "Who will answer?")

    def chip(self) -> str:
        """The label above the last answer: it is drawn by the stylesheet."""
        script = "element => getComputedStyle(element, '::before').content"
        return str(self.on('#chat .bot-row [data-testid="bot"]').last.evaluate(script)).strip('"')

    def choose(self, option: str) -> None:
        self.page.get_by_role("combobox", name="Who answers").click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def set(self, **knobs: float) -> None:
        """Knobs under Advanced: Temperature=0."""
        inside = self.on("#advanced .label-wrap.open")
        if not inside.count():
            self.on("#advanced .label-wrap").click()
        names = {label.replace("_", " "): str(value) for label, value in knobs.items()}

        def taken() -> bool:
            """Whether the page knows: the slider beside the number follows it. (One that is still loading may not listen yet.)"""
            for name, value in names.items():
                slider = self.page.get_by_label(f"range slider for {name}", exact=True)
                if float(slider.input_value()) != float(value):
                    box = self.page.get_by_label(f"number input for {name}", exact=True)
                    box.fill(value)
                    box.press("Tab")
                    return False
            return True

        until("the page knows of the knobs", taken)

    # ---- files -------------------------------------------------------------------------------------------------------

    def upload(self, css: str, file: Any) -> None:
        """Put a file into a box, in place of the one that is there."""
        from playwright.sync_api import expect

        clear = self.on(css).get_by_role("button", name="Clear", exact=True)
        if clear.count():
            clear.click()
        expect(self.on(f"{css} input[type=file]")).to_have_count(1)
        self.on(f"{css} input[type=file]").set_input_files(file)

    def rows(self) -> list[str]:
        """Names in the table of lobes."""
        return [name.strip() for name in self.on("#manage-table .ml-name").all_inner_texts()]

    # ---- always ------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """What must hold at any time."""
        assert not BUG.search(self.page.locator("body").inner_text())
        assert self.script_errors == []
        assert self.page.evaluate("window.covered") == 0
        own = (self.app.url, self.app.url.replace("http:", "ws:"), "data:", "blob:", "about:")
        assert [url for url in self.requests if not url.startswith(own)] == []

    def leave(self) -> None:
        try:
            self.check()
        finally:
            self.context.close()


Visit = Callable[..., Visitor]
