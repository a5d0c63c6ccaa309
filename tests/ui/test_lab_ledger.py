"""The Lab's section "Cost", and the line under an answer: HTML and files as data, handlers as plain calls."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from fake_lab import FakeLab, some_costs
from fake_studio import FakeStudio

from multilobe_ui.evaluation.frames import COSTS
from multilobe_ui.routing.decision import manual_decision
from multilobe_ui.ui.chat.why_panel import Reply, why_panel
from multilobe_ui.ui.kit.ledger_card import cost_line, cost_note
from multilobe_ui.ui.lab.ledger import LATEST, LedgerSection
from multilobe_ui.ui.lab.ledger_tables import ledger_csv, ledger_json, ledger_table, recent_table
from multilobe_ui.ui.lab.tab import LabTab

SKIP = gr.skip()
EVIL = "<img src=x onerror=alert(1)>"
NOBODY = SimpleNamespace(username=None)
LOBES = ["medical", "legal", "python"]
COLOURS = {"medical": "#e5484d", "legal": "#c9880b", "python": "#2f8fe0"}
TITLES = {"hybrid": "Hybrid", "gate": "Gate", "xlora": "X-LoRA"}


@pytest.fixture
def studio():
    studio = FakeStudio(3)
    FakeLab(studio)
    return studio


@pytest.fixture
def filled(studio):
    for cost in some_costs(LOBES):
        studio.lab.ledger.add(cost)
    return studio


@pytest.fixture
def one():
    return replace(
        some_costs(LOBES)[0], route_ms=14.2, prompt_tokens=38, answer_tokens=61, tokens_per_second=92.3, resident=("a", "b", "c"),
        resident_bytes=4_240_000,
    )  # fmt: skip


# ---- the line under an answer ----------------------------------------------------------------------------------------


def test_the_line_says_units(one):
    assert cost_line(one).replace("\u00a0", " ") == "routed in 14 ms · 38 + 61 tokens · 92 tokens/s · 3 lobes in memory, 4.2 MB"
    by_hand = replace(one, route_ms=None, resident=(), resident_bytes=0, answer_tokens=0, tokens_per_second=0.0)
    assert cost_line(by_hand) == "chosen by hand · 38 + 0 tokens · no lobe in memory"
    assert "<img" not in cost_note(replace(one, resident=(EVIL,)))


def test_the_panel_shows_it_when_the_answer_is_complete(one):
    decision = manual_decision({"medical": 1.0}, LOBES)
    page = why_panel(Reply(decision, done=True, cost=replace(one, route_ms=None)))
    assert "chosen by hand · 38 + 61 tokens" in page and "0.0 ms" not in page
    assert "ml-cost" not in why_panel(Reply(decision))


def test_a_conversation_carries_its_cost(studio):
    *_, last = studio.chat([{"role": "user", "content": "How does a vaccine protect a child?"}])
    assert last.cost.answer_tokens == last.answer_tokens and last.cost.lobes == ("medical",)


# ---- tables ----------------------------------------------------------------------------------------------------------


def cells(page, part):
    """Texts of the cells, by rows, of the part of the first table."""
    import re

    body = page.split(f"<{part}>")[1].split(f"</{part}>")[0]
    plain = lambda cell: " ".join(re.sub(r"<[^>]+>", " ", cell).split())  # noqa: E731
    return [[plain(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in body.split("</tr>")[:-1]]


def test_the_table_shows_the_totals(filled):
    totals = filled.lab.ledger_totals()
    page = ledger_table(totals, TITLES, COLOURS)
    rows = cells(page, "tbody")
    assert [row[0] for row in rows] == ["Hybrid", "Gate", "By hand", "X-LoRA"]
    hybrid = totals["hybrid"]
    assert rows[0][1:7] == [
        "24", f"{hybrid['route_ms']:.0f} mean {hybrid['route_ms_mean']:.0f}", f"{hybrid['first_token_ms']:.0f}",
        f"{hybrid['prompt_tokens']:,}", f"{hybrid['answer_tokens']:,} in {hybrid['seconds']:.0f} s",
        f"{hybrid['tokens_per_second']:.0f}",
    ]  # fmt: skip
    assert rows[2][2] == "by hand" and rows[3][1] == "12 1 stopped"
    (everything,) = cells(page, "tfoot")
    assert everything[:2] == ["All", "60 1 stopped"]
    assert everything[4] == f"{sum(total['prompt_tokens'] for total in totals.values()):,}"
    seconds = sum(total["seconds"] for total in totals.values())
    assert everything[6] == f"{sum(total['answer_tokens'] for total in totals.values()) / seconds:.0f}"


def test_one_router_needs_no_sum_and_none_says_what_to_do(filled):
    totals = filled.lab.ledger_totals()
    assert "<tr>" not in ledger_table({"gate": totals["gate"]}, TITLES, {}).split("</tbody>")[1]
    assert "Ask something in Chat" in ledger_table({}, {}, {}) and recent_table([], {}, {}) == ""


def test_latest_answers(filled):
    costs = filled.lab.ledger_recent(5)
    rows = cells(recent_table(costs, TITLES, COLOURS), "tbody")
    assert len(rows) == 5 and rows[0][1] == "medical legal stopped" and rows[0][2] == "X-LoRA"
    assert rows[1][2:4] == ["By hand", "by hand"]
    assert rows[3][2] == "Hybrid, log-prob" and rows[4][1] == "Base model"
    assert rows[0][5] == f"{costs[0].prompt_tokens:,} + {costs[0].answer_tokens:,}"


def test_names_are_escaped(one):
    costs = [replace(one, router=EVIL, stage=EVIL, lobes=(EVIL,) * 5, time=EVIL)]
    page = recent_table(costs, {}, {EVIL: EVIL})
    numbers = ("replies", "stopped", "prompt_tokens", "answer_tokens", "seconds", "route_ms", "route_ms_mean", "tokens_per_second")
    totals = {**dict.fromkeys(numbers, 1), "first_token_ms": None, "by_lobe": {EVIL: 1, "": 1}}
    page += ledger_table({EVIL: totals}, {}, {})
    assert "<img" not in page and "&lt;img" in page and "and 2 more" in page


# ---- files -----------------------------------------------------------------------------------------------------------


def test_files_hold_every_answer_oldest_first(filled):
    costs = filled.lab.ledger_recent(1000)
    rows = list(csv.DictReader(io.StringIO(ledger_csv(costs))))
    assert list(rows[0]) == COSTS and len(rows) == 60 and rows[0]["time"] == costs[-1].time
    assert float(rows[0]["seconds"]) == costs[-1].seconds and rows[3]["route_ms"] == ""
    told = json.loads(ledger_json(filled.lab.ledger_totals(), costs))
    assert told["answers"][-1] == json.loads(json.dumps(costs[0].to_json())) and told["routers"]["gate"]["replies"] == 12


def test_a_name_is_no_formula(one):
    (row,) = csv.DictReader(io.StringIO(ledger_csv([replace(one, lobes=('=HYPERLINK("x")',), resident=("a, b", "c"))])))
    assert row["lobes"] == "'=HYPERLINK(\"x\")" and row["resident"] == "a, b, c" and row["route_ms"] == "14.2"


# ---- handlers --------------------------------------------------------------------------------------------------------


def test_it_looks_when_there_is_another_answer(filled):
    section = LedgerSection(filled)
    table, heading, latest = section.look()
    assert "Hybrid" in table and heading["visible"] and latest["value"].count("<tr>") == LATEST + 1
    shown = repr(section.shows())
    assert repr(section.shows()) == shown
    filled.lab.ledger.add(filled.lab.ledger_recent(1)[0])
    assert repr(section.shows()) != shown


def test_before_the_first_answer(studio):
    table, heading, latest = LedgerSection(studio).look()
    assert "No answer yet" in table and heading["visible"] is False and latest["visible"] is False


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_saving(filled, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    update = LedgerSection(filled).save(kind)
    path = Path(update["value"])
    assert path.name == f"multilobe-ledger.{kind}" and path.is_relative_to(tmp_path) and update["visible"]
    assert "medical" in path.read_text("utf-8") and f"{kind} (" in update["label"]


def test_beginning_anew_is_asked_twice_and_not_on_a_shared_server(filled):
    section = LedgerSection(filled)
    assert [update["visible"] for update in section.ask()] == [False, True, True]
    assert [update["visible"] for update in section.do_clear(NOBODY, "")] == [True, False, False]
    assert filled.lab.ledger_totals() == {}
    shared = FakeStudio(2, shared=True)
    FakeLab(shared).ledger.add(some_costs(LOBES)[0])
    with pytest.raises(gr.Error, match="shared"):
        LedgerSection(shared).do_clear(NOBODY, "t" * 20)
    assert shared.lab.ledger_totals() and LedgerSection(shared).calm()[0]["visible"] is False


def test_wiring(filled):
    tab = LabTab(filled)
    tab.sections = [LedgerSection(filled)]
    with gr.Blocks() as page:
        tab.build()
    assert page.fns and all(fn.api_visibility == "private" for fn in page.fns.values())
