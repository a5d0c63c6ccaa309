"""Chat in the real app and a real browser, as a newcomer would use it. The conftest beside it says what holds at any time."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect
from visitor import DEMO, INSULIN, Visit, Visitor, until

pytestmark = [pytest.mark.browser, pytest.mark.builtin]

STORY = "Tell me a very long story about the sea."
BREAD = "How do I bake sourdough bread?"


def test_a_newcomer_asks_and_sees_which_lobe_answers_and_why(visitor: Visitor) -> None:
    visitor.sees("body", "One frozen language model, many small experts.")
    visitor.sees("#status", "6 lobes")
    answer = visitor.ask(INSULIN)
    assert "blood sugar" in answer
    assert visitor.chip().startswith("medical")
    assert "%" in visitor.chip()
    lit = visitor.on("#why .ml-brain-cell.is-lit title")
    assert lit.all_text_contents() == ["medical: answers"]
    bars = visitor.on("#why .ml-bars").first.locator("> ol > li")
    assert {*bars.locator("span").all_text_contents()} - {"none of these"} == {*DEMO}
    expect(visitor.on("#why .ml-verdict h3")).to_have_text("medical")
    expect(visitor.on("#why .ml-sure")).to_have_text(re.compile(r"\d %\s*sure of the choice"))
    sure = visitor.on("#why .ml-sure b").text_content()
    expect(visitor.on("#why .ml-bars > ol > li.is-chosen")).to_have_text(re.compile(rf"medical\s*{sure}"))
    assert visitor.chip() == f"medical \u00b7 {sure} sure of the choice"
    facts = dict(zip(visitor.on("#why dt").all_text_contents(), visitor.on("#why dd").all_text_contents(), strict=True))
    assert facts["Decided by"] in ("embedding", "log-prob")
    assert re.fullmatch(r"[\d.]+ (ms|s)", facts["Routing took"])
    assert "tokens/s" in facts["Speed"]
    assert visitor.on("#why .ml-near li").count() == 3


def test_what_no_lobe_knows_goes_to_the_base_model_and_the_panel_says_why(visitor: Visitor) -> None:
    visitor.ask(BREAD)
    assert visitor.chip().startswith("Base model")
    expect(visitor.on("#why .ml-verdict h3")).to_have_text("Base model")
    visitor.sees("#why .ml-reason", re.compile(r"Nothing that a lobe has learned is near|no lobe", re.I))
    expect(visitor.on("#why svg.ml-brain")).to_have_attribute("aria-label", re.compile("The base model is lit"))
    assert visitor.on("#why .ml-brain-cell.is-lit").count() == 0
    expect(visitor.on("#why .ml-sure")).to_have_text(re.compile(r"\d %\s*sure that no lobe fits"))
    expect(visitor.on("#why .ml-bars > ol > li.is-chosen span")).to_have_text("none of these")
    # another turn, of another kind: every answer keeps its own label and its own panel
    visitor.ask(INSULIN)
    assert visitor.chip().startswith("medical")
    visitor.on('#chat .bot-row [data-testid="bot"]').first.click()
    expect(visitor.on("#why .ml-verdict h3")).to_have_text("Base model")


def test_a_starter_is_one_click(visitor: Visitor) -> None:
    visitor.page.get_by_text("How does a vaccine protect a child?").click()
    assert visitor.answered()
    assert visitor.chip().startswith("medical")


def test_a_person_can_say_who_answers(visitor: Visitor) -> None:
    visitor.set(Longest_answer=24)
    visitor.choose("Base model only")
    visitor.ask(INSULIN)
    assert visitor.chip() == "Base model"
    visitor.sees("#why .ml-facts", "chosen by you")
    visitor.choose("Always legal")
    visitor.ask(INSULIN)
    assert visitor.chip() == "legal"
    assert visitor.on("#why .ml-brain-cell.is-lit title").all_text_contents() == ["legal: answers"]
    visitor.choose("Automatic: the router decides")
    visitor.ask(INSULIN)
    assert visitor.chip().startswith("medical")


def says_stopped(visitor: Visitor) -> None:
    visitor.sees("#why .ml-note", re.compile(r"Stopped after \d+ token"))
    until("the label says so too", lambda: visitor.chip().endswith("stopped"))


def test_stop_retry_edit_and_undo(visitor: Visitor) -> None:
    page = visitor.page
    visitor.choose("Base model only")
    visitor.set(Longest_answer=1024, Temperature=0, Repetition_penalty=0.8)  # what was said is said again: it never ends
    begun = visitor.interrupt(STORY)
    assert len(begun) > 3
    says_stopped(visitor)

    visitor.set(Longest_answer=40, Repetition_penalty=1.1)
    visitor.choose("Always medical")
    page.get_by_role("button", name="Retry", exact=True).click()
    visitor.sees("#why .ml-verdict h3", "medical")
    retried = visitor.answered()
    assert visitor.chip() == "medical"
    assert retried != begun

    page.get_by_role("button", name="Edit", exact=True).click()
    visitor.on("#chat textarea").fill(INSULIN)
    page.get_by_role("button", name="Submit", exact=True).click()
    visitor.sees("#chat .bot-row", "blood sugar")
    visitor.answered()
    visitor.sees("#chat .user-row", INSULIN)

    page.get_by_role("button", name="Undo", exact=True).click()
    expect(visitor.on("#chat .bot-row")).to_have_count(0)
    expect(visitor.on("#message textarea")).to_have_value(INSULIN)
    page.get_by_role("button", name="Send", exact=True).click()
    assert "blood sugar" in visitor.answered()

    visitor.choose("Base model only")
    visitor.set(Longest_answer=1024, Repetition_penalty=0.8)
    begun = visitor.interrupt_with_a_busy_page(STORY)
    says_stopped(visitor)
    visitor.set(Longest_answer=40, Repetition_penalty=1.1)
    visitor.choose("Always medical")
    page.get_by_role("button", name="Retry", exact=True).click()
    visitor.sees("#why .ml-verdict h3", "medical")
    assert visitor.answered(2) != begun


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_of_a_phone(visit: Visit, scheme: str) -> None:
    visitor = visit(viewport={"width": 390, "height": 844}, color_scheme=scheme)

    def fits(where: str) -> None:
        script = """() => [...document.querySelectorAll('body, body *')].reduce((most, e) => {
            for (let p = e.parentElement; p; p = p.parentElement)
                if (['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(p).overflowX) && p !== document.body
                    && p.getBoundingClientRect().right <= innerWidth + 1) return most;
            const right = e.getBoundingClientRect().right;
            return right > most[0] ? [right, e.tagName + '.' + e.className] : most;
        }, [0, ''])"""
        assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390, where
        right, who = visitor.page.evaluate(script)
        assert right <= 391, f"{where}: {who} ends at {right}"

    fits("Chat, empty")
    visitor.ask(INSULIN)
    fits("Chat")
    visitor.tab("Train")
    visitor.on("#train-sample-maths").click()
    visitor.sees("#train-report", "Format")
    visitor.sees("#train-lengths", "tokens")
    visitor.on("#train-settings .label-wrap").click()
    fits("Train")
    visitor.tab("Manage")
    visitor.on("#manage-table .ml-name").first.click()
    visitor.sees("#manage-detail", "Validation loss")
    fits("Manage")
    dark = "document.body.classList.contains('dark') || !!document.querySelector('.dark')"
    assert visitor.page.evaluate(dark) is (scheme == "dark")
