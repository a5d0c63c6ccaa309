"""Several people and programs at the real app at once. The conftest beside it says what holds at any time."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import pytest
from uploads import rows
from visitor import DEMO, INSULIN, App, Visit, Visitor, until

pytestmark = [pytest.mark.browser, pytest.mark.builtin]

ENDPOINTS = (
    "train", "train_status", "stop", "chat", "route", "routers", "fit_router", "lobes", "save_bundle", "load_bundle",
    "delete_lobe",
)  # fmt: skip


def test_two_people_on_two_lobes_do_not_disturb_each_other_while_a_third_trains(
    visit: Visit, app: App, tmp_path: Path
) -> None:
    from gradio_client import handle_file

    questions = {
        "Always medical": (INSULIN, "And what do veins do?", "Why do joints need cartilage?"),
        "Always python": ("How do I write a text file?", "And how do I read it again?", "How do I sort a list?"),
    }

    def arrive(who: str) -> Visitor:
        visitor = visit()
        visitor.set(Temperature=0, Longest_answer=60)
        visitor.choose(who)
        return visitor

    pair = {who: arrive(who) for who in questions}
    alone = {who: [visitor.ask(text) for text in questions[who]] for who, visitor in pair.items()}
    for visitor in pair.values():
        visitor.clear()
    data = tmp_path / "words.jsonl"
    data.write_bytes(rows(40))
    job = app.call("train", handle_file(data), "third", {"epochs": 1000})["id"]
    until("the third lobe trains", lambda: app.call("train_status", job)["step"] > 0)
    together: dict[str, list[str]] = {who: [] for who in questions}
    for turn in range(3):
        for who, visitor in pair.items():
            assert visitor.send(questions[who][turn]) == turn + 1
        for who, visitor in pair.items():
            together[who].append(visitor.answered(turn + 1))
            assert visitor.chip() == who.removeprefix("Always ")
    assert together == alone
    assert app.call("train_status", job)["state"] == "running"


def test_the_named_endpoints_are_these_and_all_work(visit: Visit, app: App, tmp_path: Path) -> None:
    from gradio_client import handle_file

    visit()  # the model is ready, and what this test makes is cleared away
    named = app.api.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert sorted(named) == sorted(f"/{name}" for name in ENDPOINTS)
    assert app.lobes() == list(DEMO)
    route = app.call("route", INSULIN)
    assert route["chosen"] == "medical"
    assert route["probabilities"]["medical"] == route["confidence"] > 0.9 and route["evidence"]["none"] < 0.1
    assert app.call("route", INSULIN, router="gate")["chosen"] == "medical"
    assert {view["name"] for view in app.call("routers") if view["fitted"]} >= {"hybrid", "gate", "xlora", "arrow"}
    fit = app.call("fit_router", "gate")
    until("the gate is fitted", lambda: app.call("train_status", fit["id"])["state"] == "finished")
    events = list(app.api.submit(INSULIN, "automatic", None, 60, 0, api_name="/chat"))
    assert events[0]["text"] == ""
    assert events[0]["decision"]["chosen"] == "medical"
    assert events[-1]["done"]
    assert "blood sugar" in events[-1]["text"]
    assert app.call("chat", INSULIN, "base", None, 20, 0)["decision"]["chosen"] is None

    data = tmp_path / "words.csv"
    with data.open("w", newline="") as sink:
        csv.writer(sink).writerows([("input", "output"), *[(f"Number {i}?", f"Word {i}.") for i in range(12)]])
    job = app.call("train", handle_file(data), "words", {"epochs": 1000, "lora_r": 4})
    assert job["state"] in ("queued", "running")
    until("a step", lambda: app.call("train_status", job["id"])["step"] > 0)
    assert app.call("train_status", job["id"], True)["curve"][-1]["step"] > 0
    assert app.call("stop", job["id"])["state"] in ("stopping", "stopped")
    assert app.ended(job["id"])["state"] == "stopped"
    assert app.lobes() == [*DEMO, "words"]

    bundle = app.call("save_bundle", ["words"])
    assert zipfile.is_zipfile(bundle)
    assert app.call("delete_lobe", "words") == list(DEMO)
    assert app.call("load_bundle", handle_file(bundle)) == ["words"]
    assert app.call("load_bundle", handle_file(bundle), "rename") == ["words (2)"]
    assert app.call("delete_lobe", "words (2)") == [*DEMO, "words"]
