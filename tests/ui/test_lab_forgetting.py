"""The Forgetting section: the verdict and every number are those of the result, and hostile or missing values do no harm."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from fake_lab import FakeLab, forgetting_result
from fake_studio import FakeStudio
from read_html import read

from multilobe_ui.app.lab import EXPERIMENTS
from multilobe_ui.errors import ConfigError
from multilobe_ui.settings import settings_of
from multilobe_ui.ui.lab.drawing import report_page
from multilobe_ui.ui.lab.drift_figure import drift_figure, sentence, spread
from multilobe_ui.ui.lab.forgetting import ForgettingSection
from multilobe_ui.ui.lab.forgetting_card import below_the_figure, forgetting_card, live
from multilobe_ui.ui.lab.tab import LabTab

LOBES = ["legal", "maths", "python"]
COLOURS = {"legal": "#e5484d", "maths": "#c9880b", "python": "#2f8fe0"}
EVIL = '"><img src=x onerror=alert(1)>'
NOBODY = SimpleNamespace(username=None)


def drawn(result, colours=COLOURS):
    return forgetting_card(result, colours) + below_the_figure(result, colours)


def card(result):
    return read(drawn(result))


def marks(node):
    return [mark.text.split() for mark in node.all("span", "fg-mark")]


def failed(**base):
    result = forgetting_result(LOBES)
    result["base"] |= base
    return {**result, "passed": False, "reasons": ["The base's weights changed. Restart the app.", "And <b>more</b>."]}


# ---- verdict ---------------------------------------------------------------------------------------------------------


def test_a_passed_check_says_so_first():
    page = card(forgetting_result(LOBES))
    verdict = page.one("header", "fg-verdict")
    assert "is-good" in verdict.classes and verdict.one("h3").text == "Passed: nothing was forgotten"
    assert "python was really trained again on the shared base (96 rows, 96 steps, held-out loss 3.18 to 1.42 nats" in verdict.text
    assert "the base and all 3 lobes are the same to the last bit" in verdict.text
    assert marks(page.one("ul", "fg-checks")) == [["✓", "same"]] * 6
    headings = [heading.text for heading in page.all("h4")]
    assert headings == ["What you were saved from", "What was compared", "Every lobe"]


def test_a_failed_check_gives_its_reasons_before_anything_else():
    others = {"same": False, "logits_same": False, "source_same": False}
    page = card(failed(hash_after="9f" * 32, max_difference=0.0123, mean_kl=2.3e-4, **others))
    verdict = page.one("header", "fg-verdict")
    assert "is-bad" in verdict.classes and verdict.one("h3").text == "Failed: something has changed"
    assert [item.text for item in verdict.all("li")] == ["The base's weights changed. Restart the app.", "And <b>more</b>."]
    assert "same to the last bit" not in verdict.text
    checks = page.one("ul", "fg-checks")
    assert marks(checks)[:3] == [["✗", "changed"]] * 3
    assert "up to 0.0123 apart, KL 0.00023 nats" in checks.text
    assert [heading.text for heading in page.all("h4")][-1] == "What you were saved from"
    assert "your lobe kept" not in page.one("p", "fg-said").text  # which it has not


def test_hashes_are_shortened_and_whole_on_hover():
    codes = card(failed(hash_after="9f" * 32)).one("ul", "fg-checks").all("code")
    assert [code.attributes["title"] for code in codes] == ["20" * 32, "9f" * 32, "2d356ae1ecde6694"]
    assert [code.text for code in codes] == ["202020202020…202020", "9f9f9f9f9f9f…9f9f9f", "2d356ae1ecde6694"]


def test_a_check_stopped_at_once_proves_nothing():
    result = {**forgetting_result(LOBES, contrast=False), "passed": False, "stopped": True, "reasons": ["It was stopped."]}
    result["trained"] = {"rows": 96, "steps": 0, "loss_before": None, "loss_after": None}
    verdict = card(result).one("header", "fg-verdict")
    assert "is-wait" in verdict.classes and verdict.one("h3").text == "Stopped before anything was trained"
    later = {**forgetting_result(LOBES), "stopped": True}
    assert "You stopped it early" in card(later).one("header", "fg-verdict").text


def test_few_lobes_and_none():
    none = card(forgetting_result([]))
    assert "An adapter was really trained" in none.text and "the base is the same to the last bit" in none.text
    assert none.all("table") == [] and len(marks(none.one("ul", "fg-checks"))) == 3
    one = card(forgetting_result(["legal"]))
    assert "the base and the one lobe are the same" in one.text and "The contrast needs two lobes" in one.one("p", "fg-ask").text


def test_what_is_not_known_is_a_dash():
    result = forgetting_result(LOBES)
    result["base"]["source_same"] = None
    result["lobes"][0] |= {"same": None, "files_same": None, "fingerprint_same": False}
    page = card(result)
    assert marks(page.one("ul", "fg-checks"))[2] == ["–", "not", "known"]
    assert "2 of 2 give the same logits" in page.text and "2 of 3 were trained on this base" in page.text


# ---- lobes -----------------------------------------------------------------------------------------------------------


def test_every_lobe_has_its_marks_and_colour():
    result = failed()
    result["lobes"][1] |= {"same": False, "max_difference": 0.034, "mean_kl": None}
    result["lobes"][2] |= {"same": None, "max_difference": None, "files_same": False}
    rows = card(result).one("table", "fg-lobes").rows()
    assert [cell.text for cell in rows[0]] == ["Lobe", "Logits", "Files", "Base"]
    assert [row[0].text for row in rows[1:]] == LOBES
    assert [row[1].text.split(" ", 1)[0] for row in rows[1:]] == ["✓", "✗", "–"]
    assert "up to 0.034 apart" in rows[2][1].text and "cannot be run" in rows[3][1].text
    assert [[m[0] for cell in row[2:] for m in marks(cell)] for row in rows[1:]] == [["✓", "✓"], ["✓", "✓"], ["✗", "✓"]]
    for row, name in zip(rows[1:], LOBES, strict=True):
        assert COLOURS[name] in row[0].one("i").attributes["style"]


# ---- the contrast ----------------------------------------------------------------------------------------------------


def test_the_sentence_says_what_was_lost_and_kept():
    contrast = forgetting_result(LOBES)["contrast"]
    said = read(sentence({**contrast, "forgotten": 1.42, "kept": 0.31}, True)).text
    assert said.startswith("One adapter would have forgotten 1.42 nats of legal ; your lobe kept all of it.")
    assert "Of what it had learned of legal, 31 % was left." in said and "96 rows of legal, then 90 of maths" in said
    assert "your lobe" not in sentence({**contrast, "forgotten": 1.42}, False)
    assert "ended worse than the base" in sentence({**contrast, "kept": -0.2}, True)
    assert "these two domains get along" in sentence({**contrast, "forgotten": -0.1, "kept": 1.0}, True)
    assert "had learned nothing of legal" in sentence({**contrast, "kept": None}, True)


def test_the_lines_go_through_the_losses():
    result = forgetting_result(LOBES)
    contrast, figure = result["contrast"], drift_figure(result, COLOURS)
    lines = {trace.name: trace for trace in figure.data if trace.name}
    for which, name in zip(("first", "second"), LOBES, strict=False):
        one, lobe = lines[f"one adapter on {name}"], lines[f"your lobe on {name}"]
        assert list(one.x) == [p["step"] for p in contrast["curve"]] and list(one.y) == [p[which] for p in contrast["curve"]]
        assert set(lobe.y) == {contrast["losses"][which]["lobe"]} and one.line.color == lobe.line.color == COLOURS[name]
    lost = lines["forgotten"]
    assert min(lost.x) == 128 and max(lost.x) == 256 and min(lost.y) == 1.2 and max(lost.y) == contrast["curve"][-1]["first"]
    assert [shape.x0 for shape in figure.layout.shapes] == [128]
    words = [note.text for note in figure.layout.annotations]
    assert words[:2] == ["it learns <b>legal</b>", "then it learns <b>maths</b>"]
    assert sorted(map(float, words[2:])) == [0.03, 0.11, 0.16, 3.6]
    assert drift_figure({"contrast": {**contrast, "curve": contrast["curve"][:1]}}, COLOURS) is None


def test_the_table_has_every_loss_and_marks_what_was_lost():
    result = forgetting_result(LOBES)
    rows = card(result).one("table", "fg-losses").rows()
    assert [cell.text for cell in rows[0]] == ["", "the base", "after legal", "after maths", "your lobe"]
    for row, which in zip(rows[1:], ("first", "second"), strict=True):
        own = result["contrast"]["losses"][which]
        wanted = [f"{own[key]:.3f}" for key in ("base", "after_first", "after_second", "lobe")]
        assert [cell.text.split()[0] for cell in row[1:]] == wanted
    lost = result["contrast"]["forgotten"]
    assert rows[1][3].one("b", "is-lost") and rows[1][3].text.endswith(f"+{lost:.2f}") and rows[2][3].all("b") == []


def test_labels_keep_apart():
    random = np.random.default_rng(0)
    for _ in range(50):
        places = sorted(random.random(4) ** 3)
        moved = np.array(spread(places, 0.075))
        assert (np.diff(moved) >= 0.075 - 1e-9).all() and moved[0] >= -1e-9 and moved[-1] <= 1 + 1e-9
    assert spread([0.1, 0.5], 0.075) == [0.1, 0.5] and spread([], 0.1) == []


# ---- harm ------------------------------------------------------------------------------------------------------------


def test_names_and_reasons_are_escaped():
    result = forgetting_result([EVIL, "maths"])
    result |= {"passed": False, "reasons": [EVIL]}
    result["base"]["hash_before"] = EVIL
    for page in (drawn(result, {EVIL: 'red"><script>'}), drawn({**result, "passed": True}, {})):
        assert "<img" not in page and "<script" not in page
        assert {node.tag for node in read(page).walk()} <= {
            "div", "header", "span", "h3", "h4", "p", "b", "ul", "li", "section", "i", "table", "thead", "tbody", "tr", "th", "td",
            "small", "code",
        }  # fmt: skip
    bare = {**forgetting_result([]), "contrast_why": EVIL}
    assert "<img" not in drawn(bare, {}) and EVIL not in drift_figure(result, {}).to_json()


def test_numbers_that_are_missing_do_not_break_the_page():
    result = failed(max_difference=None, mean_kl=None, logits_same=False)
    result["trained"] |= {"loss_before": None, "loss_after": None}
    result["lobes"][0] |= {"same": False, "max_difference": None, "mean_kl": None}
    page = card(result)
    assert "numbers that are not finite" in page.text and "held-out loss" not in page.one("header", "fg-verdict").text


def test_the_report_stands_alone():
    result = forgetting_result(LOBES)
    parts = [forgetting_card(result, COLOURS), drift_figure(result, COLOURS), below_the_figure(result, COLOURS)]
    page = report_page("Forgetting", "2026-07-01T09:30:00+00:00", parts)
    assert ".fg-verdict" in page and "Plotly.newPlot" in page and not re.search(r"<(script|link|img)[^>]* (src|href)=", page)


# ---- the section -----------------------------------------------------------------------------------------------------


def test_progress_tells_the_losses_of_what_is_being_done():
    old = {"phase": "Training python again", "values": {"loss": 1.0, "held_out_loss": 2.0}}
    assert read(live([old], COLOURS)).text == "loss 1.000, held out 2.000 nats per answer token"
    new = {"phase": "One adapter learns legal", "values": {"held_out_loss": 3.25}}
    assert read(live([old, new], COLOURS)).text == "held out 3.250 nats per answer token"
    assert live([], COLOURS) == "" and live([{"phase": "Comparing", "values": {}}], COLOURS) == ""


@pytest.fixture
def studio():
    studio = FakeStudio(LOBES)
    FakeLab(studio)
    return studio


def test_what_is_asked_is_checked(studio):
    section = ForgettingSection(studio)
    assert section.asked("", "") == ({}, ()) and section.asked(None, None) == ({}, ())
    assert section.asked("maths", "") == ({"first": "maths"}, ())
    assert section.asked("maths", "legal") == ({"first": "maths", "second": "legal"}, ())
    for wrong in ("plants", 3, ["maths"], EVIL):
        with pytest.raises(ConfigError, match="The first lobe is"):
            section.asked(wrong, "")
    with pytest.raises(ConfigError, match=r"Both are 'maths'. Choose two different lobes"):
        section.asked("maths", "maths")


def test_settings_are_those_of_the_experiment(studio):
    experiment = EXPERIMENTS["forgetting"]
    made = settings_of(experiment.settings(), ForgettingSection(studio).asked("maths", "legal")[0])
    assert (made.first, made.second, made.newest) == ("maths", "legal", "") and experiment.alone


def test_the_pickers_follow_the_lobes(studio):
    section = ForgettingSection(studio)
    first, second = section.refresh("maths", "legal")
    assert first["choices"] == [("Automatic", ""), *((name, name) for name in LOBES)]
    assert (first["value"], second["value"]) == ("maths", "legal")
    studio.delete("maths")
    studio._lobes[0] = replace(studio._lobes[0], usable=False)
    first, second = section.refresh("maths", "legal")
    assert (first["value"], second["value"], first["choices"]) == ("", "", [("Automatic", ""), ("python", "python")])


def build(studio):
    with gr.Blocks() as page:
        tab = LabTab(studio)
        tab.sections = [ForgettingSection(studio)]
        tab.build()
    return page, tab.sections[0]


def test_a_run_is_started_and_its_result_drawn(studio):
    page, section = build(studio)
    begin = next(fn.fn for fn in page.fns.values() if any(target[0] == section.panel.run._id for target in fn.targets))
    begin(NOBODY, "a token of a visitor", "maths", "")
    job = studio.lab.runs("forgetting")[0]
    assert job.config == {"first": "maths"}
    view = section.panel.view(section.studio.desk(), None, {})
    assert view[section.panel.outputs.index(section.panel.result)]["visible"] is False
    studio.lab.finish(job.id, forgetting_result(LOBES))
    shown = section.panel.view(section.studio.desk(), None, view[-1])[section.panel.outputs.index(section.panel.result)]
    assert shown["visible"] and "Passed: nothing was forgotten" in shown["value"]


def test_a_shared_server_says_beforehand_that_it_does_not(studio):
    assert "forgetting-shared" not in str(build(studio)[0].config)
    shared = FakeStudio(LOBES, shared=True)
    FakeLab(shared)
    assert "This server is shared, so it does not run the check" in str(build(shared)[0].config)


def test_the_result_is_not_changed_by_drawing_it():
    result = forgetting_result(LOBES)
    before = copy.deepcopy(result)
    drawn(result)
    drift_figure(result, COLOURS)
    assert result == before


def test_losses_on_trained_rows_are_called_so():
    result = forgetting_result(LOBES)
    assert "held-out loss 3.18 to 1.42" in card(result).text
    assert "on rows held out (24 and 20)" in card(result).text
    result["trained"]["held_out"], result["contrast"]["trained"] = 0, [LOBES[0], LOBES[1]]
    text = card(result).text
    assert "loss on rows it learned 3.18 to 1.42" in text and "held-out" not in text
    assert "on rows that were trained, as nothing is held out" in text
    result["contrast"]["trained"] = [EVIL]
    assert "as it holds none out" in card(result).text and not card(result).all("img")
    record = {"phase": "Training python again", "values": {"measured_loss": 2.0}}
    assert read(live([record], COLOURS)).text == "on some of its rows 2.000 nats per answer token"
