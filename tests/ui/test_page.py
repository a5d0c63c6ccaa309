"""The page as a whole: what it is made of, how it is launched, and once in a real browser."""

from __future__ import annotations

import json
from pathlib import Path

import gradio as gr
import pytest
from fake_studio import FakeStudio
from gradio.server_messages import ProcessCompletedMessage

from multilobe_ui.ui.chat.tab import ChatTab
from multilobe_ui.ui.kit.pulse import Pulse, digest
from multilobe_ui.ui.kit.static import stylesheets
from multilobe_ui.ui.kit.theme import theme
from multilobe_ui.ui.lab.tab import LabTab
from multilobe_ui.ui.manage.tab import ManageTab
from multilobe_ui.ui.page import Header, build_page, launch_options, status_strip
from multilobe_ui.ui.routers.tab import RoutersTab
from multilobe_ui.ui.train.tab import TrainTab

CHROMIUM = Path("/usr/bin/chromium")


def test_the_strip_says_how_things_are(tmp_path):
    loading, failed = FakeStudio(0, state="loading"), FakeStudio(0, state="failed")
    assert "Loading the built-in base model" in status_strip(loading.status(), None)
    assert "is-failed" in status_strip(failed.status(), None)
    studio = FakeStudio(1)
    assert "1 lobe<" in status_strip(studio.status(), None)
    job = studio.train("Tea & <b>", studio.sample_files()["maths"])
    job = studio.advance(job.id, 30)
    strip = status_strip(studio.status(), job, 2)
    for words in ("12.5 M parameters", "Tea &amp; &lt;b&gt;", "50 %", "about 15 s left", "2 waiting"):
        assert words in strip


def test_the_one_timer_of_the_page_tells_what_changed():
    studio, skip = FakeStudio(2), gr.skip()
    with gr.Blocks() as page:
        pulse, header = Pulse(), Header(studio)
        pulse.when(header.draw)(lambda: None)
        pulse.when(studio.memory)(lambda: None)
        pulse.start()
    assert "2 lobes" in header.draw()
    seen = tuple(signal.value for signal in pulse.signals)
    assert pulse.probe(*seen) == (skip, skip)
    studio.delete("medical")
    strip, _ = pulse.probe(*seen)
    assert "1 lobe<" in header.draw() and strip not in (seen[0], skip)
    assert pulse.probe(strip, seen[1])[0] == skip
    assert sum(isinstance(block, gr.Timer) for block in page.blocks.values()) == 1
    assert sum(isinstance(block, gr.Timer) for block in build_page(studio).blocks.values()) == 1


def test_tabs_hear_that_a_home_without_lobes_is_ready():
    tab = ChatTab(FakeStudio(0, state="loading"))
    loading = tab.offered()
    tab.studio.become_ready()
    assert tab.offered() != loading


def test_what_a_tab_shows_changes_with_its_jobs():
    studio = FakeStudio(2)
    tabs = [TrainTab(studio), LabTab(studio), RoutersTab(studio), ManageTab(studio)]
    before = [digest(tab.shows()) for tab in tabs]
    assert before == [digest(tab.shows()) for tab in tabs], "as long as nothing happens"
    studio.train("Law", studio.sample_files()["maths"])
    after = [digest(tab.shows()) for tab in tabs]
    assert after[0] != before[0] and after[2:] != before[2:]


def test_the_page_builds_and_its_handlers_are_private():
    page = build_page(FakeStudio(6))
    named = json.dumps(page.get_api_info())
    for private in ("send", "probe", "refresh", "retry", "look_at"):
        assert f'"/{private}"' not in named


def test_events_that_show_no_progress_leave_their_outputs_alone():
    config = build_page(FakeStudio(6)).config
    first = config["layout"]["children"][0]["id"]
    shown = {d["show_progress"]: set() for d in config["dependencies"]}
    for d in config["dependencies"]:
        shown[d["show_progress"]].add(tuple(d["show_progress_on"] or ()))
    assert shown["hidden"] == {(first,)}
    assert all(first not in where for kind, found in shown.items() if kind != "hidden" for where in found)


def test_what_was_cancelled_ends_with_a_list_of_data():
    """Gradio's page looks into it: without one it takes the end for a failure, and covers the conversation."""
    build_page(FakeStudio(1))
    build_page(FakeStudio(1))

    def sent(output, success=True):
        return ProcessCompletedMessage(output=output, success=success, event_id="a").model_dump()

    cancelled = sent({})
    assert cancelled["output"] == {"data": []}
    assert (cancelled["msg"], cancelled["success"], cancelled["event_id"]) == ("process_completed", True, "a")
    assert sent({"data": ["b"]})["output"] == {"data": ["b"]}
    assert sent({"error": "c"}, success=False)["output"] == {"error": "c"}
    assert sent({}, success=False)["output"] == {}


def test_launch_options():
    options = launch_options(FakeStudio(1))
    assert options["ssr_mode"] is False
    assert options["run_history"] is False
    assert options["state_session_capacity"] <= 500  # each takes most of a MiB
    assert "server_name" not in options
    assert "img-src 'self'" in options["head"]
    assert stylesheets() in options["css"]
    assert "http" not in stylesheets()
    assert "googleapis" not in str(theme().to_dict())


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium")
@pytest.mark.parametrize(("width", "height", "scheme"), [(1400, 900, "light"), (390, 844, "dark")])
def test_a_conversation_in_a_browser(width, height, scheme):
    from playwright.sync_api import expect, sync_playwright

    studio = FakeStudio(6, delay=0.05)
    page = build_page(studio)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **launch_options(studio))
    foreign, errors = [], []
    try:
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=str(CHROMIUM))
            tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            tab.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else foreign.append(r.url))
            tab.on("pageerror", lambda error: errors.append(str(error)))
            tab.goto(url)
            tab.fill("#message textarea", "How does a vaccine protect a child?")
            tab.press("#message textarea", "Enter")
            expect(tab.locator("#why h3")).to_have_text("medical", timeout=20_000)
            expect(tab.locator("#chat .bot-row")).to_contain_text("fight a disease.", timeout=20_000)
            expect(tab.locator("#message .submit-button")).to_be_visible()
            label = "getComputedStyle(document.querySelector('#chat .bot-row [data-testid=bot]'), '::before').content"
            assert tab.evaluate(label).startswith('"medical')
            wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert tab.evaluate(wider) == 0
            browser.close()
    finally:
        page.close()
    assert foreign == []
    assert errors == []
