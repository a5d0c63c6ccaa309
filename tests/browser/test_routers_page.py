"""Routers and mixtures in the real app: what a person picks, sees and fits, in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from visitor import DEMO, TRAINED, App, Visitor, until

pytestmark = [pytest.mark.browser, pytest.mark.builtin]
INSULIN = "What does insulin do?"


def pick_router(visitor: Visitor, title: str) -> None:
    if not visitor.on("#routing-router input").is_visible():
        visitor.on("#routing > button").click()
    visitor.on("#routing-router input").click()
    visitor.page.get_by_role("option", name=re.compile(f"^{re.escape(title)}")).first.click()
    visitor.sees("#routing", title)


def pick_row(visitor: Visitor, router: str) -> None:
    visitor.on(f'[data-row="{router}"]').click()
    visitor.page.wait_for_selector(f'[data-row="{router}"][aria-pressed="true"]')


def test_an_answer_is_shown_token_by_token(visitor: Visitor) -> None:
    visitor.set(Temperature=0)
    pick_router(visitor, "X-LoRA")
    answer = visitor.ask(INSULIN)
    visitor.sees("#why", "Mean weight")
    tokens = visitor.on("#tokens .ml-strip [data-w]")
    until("every token is in the strip", lambda: "".join(tokens.all_text_contents()).strip() == answer)
    assert tokens.count() > 4
    colours = {token.evaluate("e => getComputedStyle(e).backgroundColor") for token in tokens.all()}
    assert "rgba(0, 0, 0, 0)" not in colours
    assert visitor.on("#tokens img").first.evaluate("e => e.naturalWidth") > 4  # the layer by token map
    pick_router(visitor, "Hybrid")
    visitor.ask(INSULIN)
    assert not visitor.on("#tokens").is_visible()


def test_words_that_decided_are_marked(visitor: Visitor) -> None:
    pick_router(visitor, "Keywords")
    visitor.ask("Write Python code to sort a list")
    assert visitor.chip().startswith("python")
    assert "python" in " ".join(visitor.on("#why mark").all_text_contents()).lower()


def test_a_mixture_by_hand_lights_both_lobes(visitor: Visitor) -> None:
    visitor.choose("Mix by hand")
    for name in ("python", "maths"):
        box = visitor.on(f"#mix-{DEMO.index(name)} input[type=number]")
        box.fill("0.5")
        box.press("Tab")
        visitor.sees("#mix-sum", name)
    visitor.ask("Write Python code to solve quadratic equations")
    visitor.sees("#why", "python")
    visitor.sees("#why", "maths")
    assert re.search(r"python \d+ %.*maths \d+ %|maths \d+ %.*python \d+ %", visitor.chip())


def test_all_routers_answer_the_same_prompt_and_the_map_shows_it(visitor: Visitor) -> None:
    visitor.tab("Routers")
    visitor.on("#compare-prompt textarea").fill(INSULIN)
    visitor.on("#compare-ask").click()
    visitor.page.wait_for_selector("#router-map .main-svg")
    cards = visitor.on("#compare-results article")
    assert cards.count() >= 7
    assert sum("medical" in card.inner_text() for card in cards.all()) == cards.count()
    chosen = [card.inner_text().split("\n") for card in cards.all()]
    assert sum(any(line.startswith("medical") for line in lines[:4]) for lines in chosen) >= 5


def test_a_new_lobe_makes_the_gate_stale_and_one_click_fits_it(visitor: Visitor, app: App, tmp_path: Path) -> None:
    from gradio_client import handle_file

    visitor.tab("Routers")
    pick_row(visitor, "gate")
    visitor.on("#router-fit").click()  # an earlier test may have left other lobes behind
    visitor.sees('[data-row="gate"]', "Ready")
    words = tmp_path / "colours.jsonl"
    lines = [{"input": f"Which colour has flag number {i}?", "output": "It is teal."} for i in range(24)]
    words.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    job = app.call("train", handle_file(words), "colours", {"epochs": 1})["id"]
    until("the lobe is trained", lambda: app.call("train_status", job)["state"] == "finished", TRAINED)
    visitor.sees('[data-row="gate"]', "Stale")
    visitor.sees("#router-detail", "fit it again")
    visitor.open()  # the mark outlives the page
    visitor.tab("Routers")
    pick_row(visitor, "gate")
    visitor.sees('[data-row="gate"]', "Stale")
    visitor.on("#router-fit").click()
    visitor.sees('[data-row="gate"]', "Ready")
    assert app.call("route", "Which colour has flag number 99?", router="gate")["chosen"] == "colours"
    visitor.on("#router-plot .main-svg").first.wait_for()
    visitor.sees("#router-report", "Accuracy")
