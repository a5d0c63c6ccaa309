"""The Report card section: numbers on the page equal the result, clicks go down to prompts, corrections go back up."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from fake_lab import FakeLab, failed_router, refit_result, report_result, router_result
from fake_studio import FakeStudio
from gradio.utils import get_upload_folder
from read_html import read

from multilobe_ui.errors import BusyError, ConfigError
from multilobe_ui.ui.kit.text import milliseconds
from multilobe_ui.ui.lab.corrections_card import corrections_list, refit_card, since_the_fit
from multilobe_ui.ui.lab.drawing import report_page
from multilobe_ui.ui.lab.report import LOBE, ReportSection, taken_away, then_picked
from multilobe_ui.ui.lab.report_curves import (
    abstention_points,
    abstention_sentence,
    calibration_points,
    calibration_sentence,
    curves_of,
)
from multilobe_ui.ui.lab.report_figures import (
    MOST_PROMPTS,
    best_router,
    best_values,
    cell_prompts,
    headline,
    prompt_card,
    prompts_of,
    report_card,
    router_details,
)

LOBES = ["medical", "legal", "python"]
COLOURS = {"medical": "#e5484d", "legal": "#c9880b", "python": "#2f8fe0"}
EVIL = '"><img src=x onerror=alert(1)>'
NOBODY = SimpleNamespace(username=None)


def percent(value):
    return "–" if value is None else f"{100 * value:.1f} %"


def event(id):
    return SimpleNamespace(_data={"id": id})


@pytest.fixture
def result():
    return report_result(LOBES)


def summary(result):
    """{title: cells as said} of the table of all routers."""
    rows = read(report_card(result, COLOURS)).one("table", "rc-table").rows()[1:]
    return {row[0].text: [cell.text for cell in row[1:]] for row in rows}


def test_made_up_results_have_the_fields_of_real_ones(result):
    """The rest of this file draws what fake_lab makes up; here that is held against the core."""
    from dataclasses import fields

    from multilobe_ui.evaluation.labelled import LabelledRow
    from multilobe_ui.evaluation.refit import Refit
    from multilobe_ui.evaluation.report import ReportCard, score
    from multilobe_ui.routing.decision import RoutingDecision, base_decision

    rows = [LabelledRow("one", "", "medical", "a.jsonl"), LabelledRow("two", "", None, "a.jsonl")]
    to_legal = RoutingDecision("gate", "gate", {}, {}, {"legal": 1.0}, "legal", 0.8)
    decisions = [to_legal, base_decision("gate", "gate", "no", confidence=0.7)]
    labels = [*LOBES, ""]
    card = ReportCard(labels, rows, {"gate": score("gate", labels, rows, decisions)}, False, 1.0).to_json()
    assert card.keys() == result.keys() and card["prompts"][1].keys() == result["prompts"][0].keys()
    assert card["routers"]["gate"].keys() == result["routers"]["gate"].keys() == failed_router("x", "y").keys()
    for key in ("calibration", "abstention"):
        assert card["routers"]["gate"][key][0].keys() == result["routers"]["gate"][key][0].keys()
    assert {field.name for field in fields(Refit)} - {"ids"} == refit_result(result, []).keys()
    assert summary(card)["Gate"][:3] == ["50.0 % 1 of 2", percent(card["routers"]["gate"]["ece"]), "100.0 %"]
    assert matrix(router_details(card, COLOURS, "gate")) == {(0, 1): 1, (3, 3): 1}
    assert "one" in cell_prompts(card, COLOURS, "gate", (0, 1))


# ---- the summary -----------------------------------------------------------------------------------------------------


def test_every_router_has_its_numbers(result):
    rows = summary(result)
    assert list(rows) == [own["title"] for own in result["routers"].values()]
    for own in result["routers"].values():
        right = f"{percent(own['accuracy'])} {own['right']} of {own['of']}"
        assert rows[own["title"]] == [right, percent(own["ece"]), percent(own["strangers"]), milliseconds(own["ms"])]
        assert own["right"] == round(own["accuracy"] * own["of"])


def test_the_best_of_each_column_is_marked_and_ties_all_are(result):
    result["routers"]["gate"]["strangers"] = result["routers"]["hybrid"]["strangers"] = 0.99
    rows = read(report_card(result, COLOURS)).one("table", "rc-table").rows()[1:]
    for place, (key, best) in enumerate((("accuracy", max), ("ece", min), ("strangers", max), ("ms", min)), start=1):
        values = [own[key] for own in result["routers"].values()]
        marked = ["is-best" in row[place].classes for row in rows]
        assert marked == [value == best(values) for value in values]
    assert best_values({"one": result["routers"]["gate"]}) == {}


def test_what_to_know_when_reading_the_numbers_is_said_first_and_escaped():
    noted = {**report_result(LOBES), "notes": ["2 of 3 lobes <held> nothing out."]}
    drawn = report_card(noted, COLOURS)
    assert read(drawn).one("p", "train-ask").text == "2 of 3 lobes <held> nothing out."
    assert drawn.index("nothing out") < drawn.index("<table") and "<held>" not in drawn
    old = {key: value for key, value in noted.items() if key != "notes"}  # of an earlier version
    assert not read(report_card(old, COLOURS)).all("p", "train-ask")


def test_the_headline_names_the_best(result):
    names = {name: own["accuracy"] for name, own in result["routers"].items()}
    best = max(names, key=names.__getitem__)
    said = read(headline(result)).text
    title = result["routers"][best]["title"]
    assert said.startswith(f"{title} is right most often: {percent(names[best])} of 140 prompts.")
    alone = {**result, "routers": {"gate": result["routers"]["gate"]}}
    assert read(headline(alone)).text.startswith("Gate is right: ")
    both = {**result, "routers": {"gate": result["routers"]["gate"], "twin": {**result["routers"]["gate"], "title": "Twin"}}}
    assert read(headline(both)).text.startswith("Gate and Twin are right most often")


def test_a_router_that_could_not_be_asked_says_why_and_cannot_be_picked(result):
    result["routers"]["xlora"] = failed_router("X-LoRA", f"It needs a fit {EVIL}")
    assert summary(result)["X-LoRA"] == [f"It needs a fit {EVIL}"]
    assert 'data-row="router|xlora"' not in report_card(result, COLOURS)
    assert router_details(result, COLOURS, "xlora") == ""
    assert best_router({"routers": {"xlora": failed_router("X-LoRA", "no")}}) == ""
    only = {**result, "routers": {"xlora": result["routers"]["xlora"]}}
    assert "No router could be asked" in report_card(only, COLOURS)


def test_nothing_measured_says_what_to_do():
    empty = {"labels": [""], "prompts": [], "routers": {}, "stopped": False, "seconds": 0.0}
    assert "Give a labelled file" in report_card(empty, {})
    assert "Stopped early" in report_card({**report_result(LOBES), "stopped": True}, COLOURS)


def test_no_strangers_and_no_confidence_are_dashes():
    result = report_result(LOBES, ["gate"], strangers=0)
    own = result["routers"]["gate"]
    own |= {"confidence": [None] * own["of"], "ece": None, "calibration": [], "abstention": [], "note": "Of its own kind."}
    assert summary(result)["Gate Of its own kind."][1:3] == ["–", "–"]
    assert [curve.sentence for curve in curves_of(result, "gate")] == ["There is nothing to compare."] * 2
    cell = next((i, j) for i, row in enumerate(own["confusion"]) for j, number in enumerate(row) if number)
    assert all(item.all("b")[0].text == "–" for item in read(cell_prompts(result, COLOURS, "gate", cell)).all("li"))


# ---- one router ------------------------------------------------------------------------------------------------------


def matrix(html):
    """{(wanted, decided): number} of every button, by its id."""
    buttons = read(html).one("table", "rc-matrix").all("button")
    return {tuple(map(int, b.attributes["data-row"].split("|")[2:])): int(b.text.replace(",", "")) for b in buttons}


def test_the_matrix_is_the_confusion_of_the_result(result):
    for router, own in result["routers"].items():
        html = router_details(result, COLOURS, router)
        wanted = {(i, j): n for i, row in enumerate(own["confusion"]) for j, n in enumerate(row) if n}
        assert matrix(html) == wanted
        table = read(html).one("table", "rc-matrix").rows()
        assert [cell.text for cell in table[0][1:]] == [*LOBES, "base model", "of"]
        assert [row[0].text for row in table[1:]] == [*LOBES, "none of them"]
        assert [row[-1].text for row in table[1:]] == [str(sum(row)) for row in own["confusion"]]
        right = [cell for row in table[1:] for cell in row if "right" in cell.classes]
        assert len(right) == sum(1 for i, j in wanted if i == j)


def test_precision_recall_and_f1_are_those_of_the_result(result):
    own = result["routers"]["keyword"]
    rows = read(router_details(result, COLOURS, "keyword")).one("table", "rc-scores").rows()[1:]
    wanted = [[percent(own[key][label]) for key in ("precision", "recall", "f1")] for label in result["labels"]]
    assert [[cell.text for cell in row[1:]] for row in rows] == wanted
    assert [row[0].text for row in rows] == [*LOBES, "none of them"]


def test_labels_that_nothing_is_said_about_are_left_out():
    labels = [*LOBES, ""]
    own = router_result(labels, [0, 0, 0, 1], [0, 2, 0, 1], [0.9, 0.4, 0.8, 0.7], "Gate")
    prompts = [{"prompt": f"p{i}", "lobe": labels[w], "source": ""} for i, w in enumerate([0, 0, 0, 1])]
    result = {"labels": labels, "prompts": prompts, "routers": {"gate": own}, "stopped": False, "seconds": 1.0}
    table = read(router_details(result, COLOURS, "gate")).one("table", "rc-matrix").rows()
    assert [cell.text for cell in table[0][1:]] == ["medical", "legal", "python", "of"]
    assert [row[0].text for row in table[1:]] == ["medical", "legal"]
    assert matrix(router_details(result, COLOURS, "gate")) == {(0, 0): 2, (0, 2): 1, (1, 1): 1}


def test_curves_go_through_the_points_of_the_result(result):
    own = result["routers"]["hybrid"]
    calibration, abstention = curves_of(result, "hybrid")
    bins = [b for b in own["calibration"] if b["count"]]
    numbers = read(calibration.table()).one("table", "rc-numbers").rows()[1:]
    assert [[cell.text for cell in row[1:]] for row in numbers] == [
        [str(b["count"]), percent(b["confidence"]), percent(b["accuracy"])] for b in bins
    ]
    numbers = read(abstention.table()).one("table", "rc-numbers").rows()[1:]
    assert [[cell.text for cell in row[1:]] for row in numbers] == [
        [percent(p["answered"]), percent(p["accuracy"])] for p in own["abstention"]
    ]
    (bars,) = (trace for trace in calibration.figure.data if trace.type == "bar")
    assert list(bars.y) == [b["count"] for b in bins]
    for curve, points in ((calibration, calibration_points), (abstention, abstention_points)):
        lines = {trace.customdata[0]: trace for trace in curve.figure.data if trace.customdata is not None}
        for name, each in result["routers"].items():
            line = lines[f"router|{name}"]
            assert list(zip(line.x, line.y, strict=True)) == list(points(each))
            assert (line.name == own["title"]) == (name == "hybrid")
    assert calibration_points(router_result(["a", ""], [0] * 4, [0, 0, 1, 1], [0.5] * 4, "Gate")) == [(0.5, 0.5)]


def test_what_the_curves_come_to_is_said_in_words():
    sure = {"confidence": [0.9, 0.9, None], "accuracy": 0.5}
    assert calibration_sentence(sure) == "On average 90.0 % sure and 50.0 % right: too sure."
    assert "too modest" in calibration_sentence({"confidence": [0.4], "accuracy": 0.5})
    assert "well judged" in calibration_sentence({"confidence": [0.51], "accuracy": 0.5})
    known = ((0, 1.0, 0.9), (0.5, 0.8, 0.99), (0.9, 0.3, 1.0), (1, 0, None))
    points = [{"threshold": t, "answered": a, "accuracy": r} for t, a, r in known]
    assert abstention_points({"abstention": points}) == [(1.0, 0.9), (0.8, 0.99), (0.3, 1.0)]
    assert abstention_sentence({"abstention": points}) == (
        "If lobes answered only the 80.0 % that it is surest of, 99.0 % of those would be right."
    )
    assert "at most 90.0 % of those are right" in abstention_sentence({"abstention": points[:1]})
    assert "Lobes answer 100.0 % of the prompts, and 99.5 %" in abstention_sentence(
        {"abstention": [{"threshold": 0, "answered": 1.0, "accuracy": 0.995}]}
    )


def test_the_page_that_is_taken_away_has_every_router(result):
    result["routers"]["xlora"] = failed_router("X-LoRA", "no")
    parts = [report_card(result, COLOURS), *taken_away(result, COLOURS)]
    page = report_page("Lab", "2026-07-01T09:30", parts)
    assert page.count("Plotly.newPlot") == 2 and not re.search(r"<(script|link|img)[^>]* (src|href)=", page)
    tables = read(parts[-1]).all("table", "rc-matrix")
    assert len(tables) == 4
    for table, own in zip(tables, list(result["routers"].values())[:4], strict=True):
        said = [int(cell.text) for row in table.rows()[1:] for cell in row[1:-1] if cell.text]
        assert said == [n for row in own["confusion"] for n in row if n]
        assert not table.all("button")


# ---- prompts ---------------------------------------------------------------------------------------------------------


def test_a_cell_lists_its_prompts_surest_mistakes_first(result):
    own = result["routers"]["keyword"]
    cell = max(((n, i, j) for i, row in enumerate(own["confusion"]) for j, n in enumerate(row) if i != j))[1:]
    html = cell_prompts(result, COLOURS, "keyword", cell, corrected={})
    ids = [int(b.attributes["data-row"].removeprefix("prompt|")) for b in read(html).all("button")]
    labels = result["labels"]
    assert sorted(ids) == [
        i for i, p in enumerate(result["prompts"]) if labels.index(p["lobe"]) == cell[0] and own["decided"][i] == cell[1]
    ]
    sure = [own["confidence"][i] for i in ids]
    assert sure == sorted(sure, reverse=True)
    for i, button in zip(ids, read(html).all("button"), strict=True):
        assert result["prompts"][i]["prompt"] in button.text and result["prompts"][i]["source"] in button.text
        assert f"{own['confidence'][i]:.0%}".replace("%", " %") in button.text
    right = prompts_of(result, "keyword", (0, 0))
    assert [own["confidence"][i] for i in right] == sorted(own["confidence"][i] for i in right)


def test_at_most_fifty_prompts_are_listed():
    result = report_result(LOBES, ["gate"], each=120)
    number = result["routers"]["gate"]["confusion"][0][0]
    html = cell_prompts(result, COLOURS, "gate", (0, 0))
    assert number > MOST_PROMPTS == len(read(html).all("button"))
    assert f"{number} prompts by Gate, least sure first, 50 of them shown" in html


def test_a_picked_prompt_shows_what_every_router_made_of_it(result):
    card = read(prompt_card(result, COLOURS, "gate", 7))
    assert card.one("blockquote").text == result["prompts"][7]["prompt"]
    chips = [item.text for item in card.all("li")]
    assert chips[0].startswith("Gate ") and len(chips) == 4
    for name, own in result["routers"].items():
        label = result["labels"][own["decided"][7]]
        mark = "✓" if label == result["prompts"][7]["lobe"] else "✗"
        chip = next(c for c in chips if c.startswith(own["title"] + " "))
        assert (label or "base model") in chip and chip.endswith(mark), name


def test_hostile_names_and_prompts_stay_text():
    result = report_result([EVIL, "b"], ["gate", EVIL])
    for i, prompt in enumerate(result["prompts"]):
        prompt |= {"prompt": f"{EVIL} {i}", "source": EVIL}
    result["routers"][EVIL]["title"] = EVIL
    own = result["routers"][EVIL]
    cell = next((i, j) for i, row in enumerate(own["confusion"]) for j, number in enumerate(row) if number)
    colours = {EVIL: "red;background:url(x)"}
    drawn = [
        report_card(result, colours), router_details(result, colours, EVIL), cell_prompts(result, colours, EVIL, cell, 0),
        prompt_card(result, colours, EVIL, 0), corrections_list([{"id": EVIL, "prompt": EVIL, "lobe": EVIL, "was": EVIL}], colours),
        refit_card(refit_result(result, [{"prompt": EVIL, "lobe": EVIL, "was": ""}]), colours),
    ]  # fmt: skip
    for html in drawn:
        assert not read(html).all("img") and "url(x)" not in html and EVIL in read(html).text
    style = read(drawn[1]).one("style").parts[0]
    assert "<" not in style and style.count("{") == 1


# ---- the section -----------------------------------------------------------------------------------------------------


@pytest.fixture
def studio():
    made = FakeStudio(LOBES)
    FakeLab(made)
    return made


@pytest.fixture
def section(studio):
    made = ReportSection(studio)
    with gr.Blocks(), gr.Tabs(), gr.Tab("Lab"):
        made.build()
    return made


@pytest.fixture
def seen(section, studio, result):
    """What the panel shows once a run has ended."""
    return section.panel.view(section.studio.desk(), studio.lab.ran("report", result).id, {})[-1]


def walked(section, seen, *ids):
    """What is picked after clicks on these, one after the other, and the last outputs."""
    outputs = section.redraw(seen, {})
    for id in ids:
        outputs = section.pick(event(id), seen, outputs[0])
    names = ("picked", "details", "prompts", "ask", "quote", "who")
    return SimpleNamespace(**dict(zip(names, outputs, strict=False)))


def mistake(result, router="keyword"):
    """(id of a cell with mistakes, place of its first prompt)."""
    own = result["routers"][router]
    i, j = next((i, j) for i, row in enumerate(own["confusion"]) for j, n in enumerate(row) if n and i != j)
    return f"cell|{router}|{i}|{j}", prompts_of(result, router, (i, j))[0]


def test_all_usable_routers_are_asked_unless_unticked(section, studio):
    names = ["hybrid", "embedding", "keyword", "logprob", "arrow", "chain"]
    assert section.routers.value == names and "Gate, Complexity and X-LoRA" in section.missing.value
    assert section.asked(None, ["keyword", "keyword"]) == ({"routers": ["keyword"]}, [])
    assert section.asked(None, []) == section.asked(None, None) == ({"routers": []}, []), "none ticked is all"
    assert section.refresh([], names)[0]["value"] == names
    studio.advance(studio.fit_router("gate").id, 999)
    update, offered, missing, *_ = section.refresh(["hybrid"], names)
    assert update["value"] == ["hybrid", "gate"] and "gate" in offered and "Complexity and X-LoRA" in missing
    assert ("Gate", "gate") in update["choices"]


@pytest.mark.parametrize("routers", [["gate"], ["nonsense"], "hybrid", [["hybrid"]], [1], {"a": 1}])
def test_forged_routers_are_refused(section, routers):
    with pytest.raises(ConfigError):
        section.asked(None, routers)


def test_files_keep_the_names_that_people_gave_them(section):
    folder = Path(get_upload_folder()) / "lab_report_test"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "medical_test.jsonl"
    path.write_text("{}", "utf-8")
    settings, files = section.asked([str(path)], ["hybrid"])
    assert files == [("medical_test.jsonl", path.resolve())] and settings == {"routers": ["hybrid"]}
    with pytest.raises(ConfigError, match="not among the uploads"):
        section.asked([str(path), "/etc/passwd"], ["hybrid"])


def test_a_result_shows_its_default_router_and_clicks_go_down(section, seen, result):
    first = walked(section, seen)
    assert first.picked["router"] == "hybrid" and first.details["visible"]
    assert first.prompts["visible"] is first.ask["visible"] is False
    other = walked(section, seen, "router|keyword")
    assert ">Keywords</h3>" in other.details["value"]
    cell, place = mistake(result)
    down = walked(section, seen, "router|keyword", cell)
    assert down.prompts["visible"] and f'data-row="prompt|{place}"' in down.prompts["value"]
    assert 'aria-pressed="true"' in down.details["value"]
    asked = walked(section, seen, cell, f"prompt|{place}")
    assert asked.ask["visible"] and result["prompts"][place]["prompt"] in asked.quote
    wanted = result["prompts"][place]["lobe"]
    assert asked.who["value"] == (LOBE + wanted if wanted else "base")
    assert [value for _, value in asked.who["choices"]] == [*(LOBE + name for name in LOBES), "base"]
    assert walked(section, seen, cell, f"prompt|{place}", "router|gate").ask["visible"] is False


def test_what_was_picked_stays_with_a_new_run_of_the_same_routers(section, studio, seen):
    picked = walked(section, seen, "router|gate").picked
    later = section.panel.view(section.studio.desk(), studio.lab.ran("report", report_result(LOBES, seed=2)).id, {})[-1]
    assert section.redraw(later, picked)[0] == {"job": later["job"], "router": "gate"}
    fewer = section.panel.view(section.studio.desk(), studio.lab.ran("report", report_result(LOBES, ["keyword"])).id, {})[-1]
    assert section.redraw(fewer, picked)[0]["router"] == "keyword"
    at_work = section.panel.view(section.studio.desk(), studio.lab.start("report", {"routers": ["gate"]}).id, {})[-1]
    waiting = section.redraw(at_work, picked)
    assert waiting[0]["router"] == "gate" and waiting[1]["visible"] is False


@pytest.mark.parametrize("id", ["", "router|", "router|nobody", "cell|keyword|0", "cell|keyword|0|99", "cell|keyword|-1|0",
                                "cell|nobody|0|0", "cell|keyword|0|1e0", "cell|keyword|٣|0", "prompt|0", "forget|x", "x" * 1001,
                                7, None, ["router|gate"]])  # fmt: skip
def test_forged_clicks_are_refused(section, seen, id):
    with pytest.raises(gr.Error):
        section.pick(event(id), seen, section.redraw(seen, {})[0])


def test_forged_prompts_and_missing_reports_are_refused(section, seen, result):
    cell, _ = mistake(result)
    picked = walked(section, seen, cell).picked
    for id in ("prompt|140", "prompt|-1", "prompt|x", "prompt|999999999999"):
        with pytest.raises(ConfigError):
            then_picked(result, picked, id)
    for nothing in ({}, None, {"job": ""}, {"job": "no such job"}, {"job": 7}):
        with pytest.raises(gr.Error):
            section.pick(event("router|gate"), nothing, {})


# ---- corrections -----------------------------------------------------------------------------------------------------


def test_a_correction_is_noted_listed_and_marked(section, studio, seen, result):
    cell, place = mistake(result)
    picked = walked(section, seen, cell, f"prompt|{place}").picked
    outputs = section.do_correct(NOBODY, seen, picked, LOBE + "python", "")
    own = result["routers"]["keyword"]
    was = result["labels"][own["decided"][place]]
    assert studio.calls[-1] == ("lab.correct", (result["prompts"][place]["prompt"], "python", was))
    told = read(outputs[-2]).one("li").text
    assert result["prompts"][place]["prompt"] in told and f"{was or 'base model'} → python" in told and "waits for a refit" in told
    assert "corrected: python" in outputs[2]["value"] and outputs[3]["visible"] is False and outputs[-1]["visible"]
    section.do_correct(NOBODY, seen, picked, "base", "")
    assert studio.calls[-1][1][1] is None and "→ base model" in read(section._told()).one("li").text


def test_forged_corrections_are_refused(section, studio, seen, result):
    cell, place = mistake(result)
    picked = walked(section, seen, cell, f"prompt|{place}").picked
    for seen_now, picked_now, who in (
        (seen, picked, LOBE + "nobody"), (seen, picked, None), (seen, picked, ["base"]), (seen, picked, "python"),
        (seen, {}, "base"), (seen, {**picked, "job": "other"}, "base"), ({}, picked, "base"),
        (seen, {**picked, "prompt": None}, "base"),
    ):  # fmt: skip
        with pytest.raises(gr.Error):
            section.do_correct(NOBODY, seen_now, picked_now, who, "")
    assert not studio.lab.told


def test_a_correction_can_be_taken_back_alone_or_with_all(section, studio):
    for prompt in ("one", "two", "three"):
        studio.lab.correct(prompt, "legal")
    told, undo = section.do_forget(NOBODY, event(f"forget|{studio.lab.told[1]['id']}"), "")
    assert [one["prompt"] for one in studio.lab.told] == ["one", "three"] and undo["visible"]
    assert [item.all("p")[0].text for item in read(told).all("li")] == ["three", "one"]
    for id in ("forget|nothing", "router|gate", "forget|", studio.lab.told[0]["id"]):
        with pytest.raises(gr.Error):
            section.do_forget(NOBODY, event(id), "")
    told, undo = section.do_forget_all(NOBODY, "")
    assert "No corrections yet" in told and undo["visible"] is False and not studio.lab.told


def test_a_refit_asks_the_prompts_of_the_report_on_display(section, studio, seen):
    with pytest.raises(ConfigError, match="no correction to learn from"):
        section.asked_refit(seen)
    studio.lab.correct("one", "legal")
    assert section.asked_refit(seen) == ({}, [], seen["job"])
    assert section.asked_refit({}) == ({}, [], "")


def test_a_refit_is_shown_before_it_is_kept_and_kept_once(section, studio, result):
    studio.lab.correct("one", "legal", was="python")
    job = studio.lab.ran("refit", refit_result(result, studio.lab.told))
    seen = section.refit.view(section.studio.desk(), job.id, {})[-1]
    assert section.redraw_refit(seen)["visible"] is True
    assert not studio.lab.kept
    drawn, keep, told, _ = section.do_keep(NOBODY, seen, "")
    assert studio.lab.kept == [job.id] and keep["visible"] is False
    assert "Kept: the routers answer like this now." in drawn["value"] and "in force" in told
    with pytest.raises(gr.Error, match="no refit to keep"):
        section.do_keep(NOBODY, seen, "")
    stopped = studio.lab.ran("refit", {**refit_result(result, []), "stopped": True})
    assert section.redraw_refit(section.refit.view(section.studio.desk(), stopped.id, {})[-1])["visible"] is False
    with pytest.raises(gr.Error):
        section.do_keep(NOBODY, {}, "")


def test_what_a_refit_changes_is_that_of_its_result(result):
    told = [{"prompt": "one", "lobe": "legal", "was": "python"}, {"prompt": "two", "lobe": None, "was": "legal"}]
    refit = refit_result(result, told)
    refit["corrections"][1]["after"] = "legal"
    refit["routers"]["xlora"] = {"title": "X-LoRA", "error": "It cannot be fitted."}
    tree = read(refit_card(refit, COLOURS))
    rows = tree.one("table").rows()[1:]
    for row, own in zip(rows, list(refit["routers"].values())[:-1], strict=False):
        change = own["after"] - own["before"]
        said = f"{change:+d}".replace("-", "−") if change else "none"
        assert [c.text for c in row[1:4]] == [f"{own['before']} of {own['of']}", f"{own['after']} of {own['of']}", said]
    assert rows[-1][1].text == "It cannot be fitted."
    assert tree.one("p", "rc-headline").text.startswith("1 of 2 corrections answered as you said")
    corrected, changed = tree.all("details")
    said = [item.text for item in corrected.all("li")]
    assert said == ["one python → legal ✓ as wanted", "two legal → legal ✗ wanted: base model"]
    assert "7 prompts of the report would change by the corrections: 6 right now, 1 wrong now" in changed.text
    assert len(changed.all("li")) == len(refit["changed"]) == 7
    assert "No other prompt of the report changes" in refit_card({**refit, "changed": []}, COLOURS)
    assert "No router was fitted again" in refit_card({"routers": {}}, COLOURS)


def test_on_a_shared_server_nobody_corrects(result):
    studio = FakeStudio(LOBES, shared=True)
    lab = FakeLab(studio)
    section = ReportSection(studio)
    with gr.Blocks() as page:
        section.build()
    hidden = {block.elem_id for block in page.blocks.values() if getattr(block, "visible", True) is False}
    assert "report-corrections" in hidden
    seen = section.panel.view(section.studio.desk(), lab.ran("report", result).id, {})[-1]
    cell, place = mistake(result)
    picked = walked(section, seen, cell, f"prompt|{place}").picked
    with pytest.raises(gr.Error, match="shared"):
        section.do_correct(NOBODY, seen, picked, "base", "")


def test_a_page_that_opens_while_the_model_loads_is_there(monkeypatch):
    studio = FakeStudio(LOBES)
    lab = FakeLab(studio)

    def busy(*_):
        raise BusyError("The base model is still loading.")

    monkeypatch.setattr(lab, "corrections", busy)
    monkeypatch.setattr(studio, "routers", busy)
    section = ReportSection(studio)
    with gr.Blocks():
        section.build()
    assert section.routers.choices == [] and "appear here once the base model is loaded" in section.missing.value
    assert "No corrections yet" in section.told.value


def test_where_a_router_was_not_asked_everything_no_other_is_crowned(result):
    """U8: nobody knows how it would have done."""
    torn = next(iter(result["routers"]))
    result["routers"][torn] |= {"error": "The lobe x was deleted.", "unfinished": True, "accuracy": None}
    said = headline(result)
    assert "could not be asked everything, so no router is the best here. Of the others, <b>" in said
    page = report_card(result, {})
    assert "The lobe x was deleted." in page and "is-best" not in page
    for own in result["routers"].values():
        own |= {"accuracy": None}
    assert headline(result) == "No router could be asked everything."


def test_a_refit_says_which_lobes_came_since_the_fit_and_what_they_change():
    """U15."""
    own = {"title": "Gate", "now": 151, "before": 179, "after": 181, "of": 200, "added": ["sea", "sky"], "gone": [], "error": ""}
    assert since_the_fit(own) == (
        "Lobes sea and sky were added since Gate was fitted. The refit knows the lobes that there are now. As it serves now, Gate "
        "has 151 of 200 right; fitted anew to the present lobes, without your corrections, 179; with them 181."
    )
    page = read(refit_card({"routers": {"gate": own}, "corrections": []}, {}))
    row = page.one("table", "rc-refit").rows()[1]
    assert [cell.text for cell in row][:4] == ["Gate", "179 of 200", "181 of 200", "+2"]
    assert "sea and sky" in page.one("div", "rc-since").text
    assert since_the_fit({**own, "added": [], "now": 179}) == ""
    assert since_the_fit({"error": "It cannot."}) == since_the_fit({"before": 1, "after": 1, "of": 2}) == ""
