"""The Lobes section: what the matrix says equals the result, and hostile or missing values do no harm."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import gradio as gr
import pytest
from fake_lab import FakeLab, losses_result
from fake_studio import FakeStudio
from read_html import read

from multilobe_ui.errors import ConfigError
from multilobe_ui.ui.lab.losses import LossesSection
from multilobe_ui.ui.lab.losses_figures import headline, losses_card, perplexity

LOBES = ["medical", "legal", "python"]
COLOURS = {"medical": "#e5484d", "legal": "#c9880b", "python": "#2f8fe0"}
EVIL = '"><img src=x onerror=alert(1)>'
NOBODY = SimpleNamespace(username=None)


def cells(result):
    """{row: [(loss, perplexity) as said]} of the matrix."""
    rows = read(losses_card(result, COLOURS)).one("table", "ll-matrix").rows()[1:]
    return {row[0].text: [tuple(cell.text.replace("★", "").split()) for cell in row[1:]] for row in rows}


def said(value):
    return ("–", "–") if value is None else (f"{value:.3f}", f"{math.exp(value):,.3g}")


def test_made_up_results_have_the_fields_of_real_ones():
    from dataclasses import fields

    from multilobe_ui.evaluation.losses import LossMatrix

    assert {field.name for field in fields(LossMatrix)} == losses_result(LOBES).keys()


def test_every_number_of_the_matrix_is_that_of_the_result():
    result = losses_result(LOBES)
    rows = cells(result)
    assert list(rows) == ["base model", *LOBES, "routed by hybrid", "the right lobe"]
    for name, values in zip(["base model", *LOBES], result["losses"], strict=True):
        assert rows[name] == [said(value) for value in values]
    assert rows["routed by hybrid"] == [said(value) for value in result["routed"]]
    assert rows["the right lobe"] == [said(value) for value in result["oracle"]]
    heads = read(losses_card(result, COLOURS)).one("table", "ll-matrix").rows()[0]
    assert [head.text for head in heads[1:]] == ["medical 60 rows", "legal 61 rows", "python 62 rows"]
    assert heads[1].attributes["title"] == "60 rows, 4,200 answer tokens"


def test_winners_are_starred_and_the_own_lobe_is_framed():
    result = losses_result(LOBES, idle=["legal"])
    rows = read(losses_card(result, COLOURS)).one("table", "ll-matrix").rows()[1:5]
    losses = result["losses"]
    for j in range(3):
        best = min(range(4), key=lambda i, j=j: losses[i][j])
        assert [i for i in range(4) if "is-best" in rows[i][j + 1].classes] == [best]
        assert "★" in rows[best][j + 1].text
        assert [i for i in range(4) if "is-own" in rows[i][j + 1].classes] == [j + 1]
        worse = [i for i in range(1, 4) if losses[i][j] > losses[0][j]]
        assert [i for i in range(4) if "is-worse" in rows[i][j + 1].classes] == worse


def test_the_headline_counts_winners_and_names_losers():
    result = losses_result(LOBES)
    result["share_of_oracle"] = 0.9814
    assert read(headline(result)).text == (
        "Every lobe wins its column. Routed answers get 98.1 % of what the right lobe would gain over the base ."
    )
    lost = losses_result(LOBES, idle=["legal"])
    assert "2 of 3 lobes win their column , but not legal." in read(headline(lost)).text
    one = losses_result(["medical"])
    assert "The lobe wins its column" in headline(one)
    strangers = {**losses_result(LOBES), "own": [None, None, None], "share_of_oracle": None}
    assert headline(strangers) == "No dataset here is a lobe's own."


def test_gains_are_bars_in_the_lobes_colours_largest_first():
    result = losses_result(LOBES, idle=["legal"])
    section = read(losses_card(result, COLOURS)).all("section")[0]
    bars = [(item.all("span")[0].text, item.one("b").text, item) for item in section.all("li")]
    order = sorted(LOBES, key=lambda name: -result["gain"][name])
    assert [(name, value) for name, value, _ in bars] == [
        (name, f"{result['gain'][name]:+.3f}".replace("-", "−")) for name in order
    ]
    assert all(f"--c:{COLOURS[name]}" in item.attributes["style"] for name, _, item in bars)
    assert "--w:100.0%" in bars[0][2].attributes["style"] and "--w:0.0%" in bars[-1][2].attributes["style"]


def test_a_lobe_that_adds_nothing_is_named_with_the_way_out():
    warning = read(losses_card(losses_result(LOBES, idle=["legal"]), COLOURS)).one("p", "train-warn").text
    assert warning.startswith("legal adds nothing: on its own rows it is no better than the base model.")
    assert "Train it longer or on more rows, or delete it in Manage" in warning
    assert not read(losses_card(losses_result(LOBES), COLOURS)).all("p", "train-warn")
    beaten = losses_result(LOBES)
    beaten["losses"][3][1] = beaten["losses"][2][1] - 0.2
    beaten["idle"] = ["legal"]
    assert f"python reads its rows better ({beaten['losses'][3][1]:.3f})" in losses_card(beaten, COLOURS)


def test_scores_of_answers_are_those_of_the_result():
    result = losses_result(LOBES)
    result["task"]["legal"]["oracle"] = {"exact": None, "f1": None}
    section = read(losses_card(result, COLOURS)).all("section")[1]
    rows = section.one("table").rows()[2:]
    assert [row[0].text for row in rows] == ["medical 24 rows", "legal 24 rows"]
    assert [cell.text for cell in rows[0][1:]] == ["4.0 %", "21.0 %", "58.0 %", "71.0 %", "62.0 %", "74.0 %"]
    assert [cell.text for cell in rows[1][1:]][-2:] == ["–", "–"]
    assert "Routed = 94.7 % of oracle" in section.text
    assert len(read(losses_card(losses_result(LOBES, task=False), COLOURS)).all("section")) == 1


def test_what_was_stopped_or_is_empty_says_so():
    result = losses_result(LOBES)
    result["losses"][3] = [None, None, None]
    result |= {"stopped": True, "routed": [1.5, None, None], "oracle": [1.4, None, None], "left_out": ["notes"]}
    drawn = losses_card(result, COLOURS)
    assert "Stopped early" in drawn and "Left out, for want of answers: notes." in drawn
    assert cells(result)["python"] == [("–", "–")] * 3
    assert cells(result)["the right lobe"][1:] == [("–", "–")] * 2
    nothing = {**losses_result([]), "datasets": [], "losses": []}
    assert "There is nothing to measure" in losses_card(nothing, {})
    bare = {"lobes": [], "datasets": ["file"], "losses": [[2.0]], "own": [None], "stopped": True}
    assert cells(bare) == {"base model": [("2.000", "7.39")]}


def test_what_to_know_when_reading_the_numbers_is_said_first_and_escaped():
    noted = {**losses_result(LOBES), "notes": ["2 of 3 lobes <held> nothing out."]}
    drawn = losses_card(noted, COLOURS)
    assert read(drawn).one("p", "train-ask").text == "2 of 3 lobes <held> nothing out."
    assert drawn.index("nothing out") < drawn.index("<table") and "<held>" not in drawn
    old = {key: value for key, value in noted.items() if key != "notes"}  # of an earlier version
    assert not read(losses_card(old, COLOURS)).all("p", "train-ask")


def test_names_are_escaped_and_colours_cannot_carry_styles():
    result = losses_result([EVIL, "b"], idle=[EVIL])
    result["left_out"], result["router"] = [EVIL], EVIL
    drawn = losses_card(result, {EVIL: "red;background:url(x)"})
    assert not read(drawn).all("img") and "url(x)" not in drawn
    assert read(drawn).one("table", "ll-matrix").rows()[2][0].text == EVIL


def test_perplexity_stays_finite():
    assert [perplexity(v) for v in (0.0, math.log(20), None, math.nan)] == ["1", "20", "–", "–"]
    assert perplexity(1e9) == perplexity(50)


# ---- the section -----------------------------------------------------------------------------------------------------


@pytest.fixture
def section():
    studio = FakeStudio(LOBES)
    FakeLab(studio)
    made = LossesSection(studio)
    with gr.Blocks():
        made.build()
    return made


def test_settings_are_those_of_the_experiment(section):
    from multilobe_ui.app.lab import EXPERIMENTS
    from multilobe_ui.settings import settings_of

    settings, files = section.asked(None, 32.0, False)
    assert (settings, files) == ({"most_rows": 32, "task": False}, [])
    made = settings_of(EXPERIMENTS["losses"].settings(), settings)
    assert (made.most_rows, made.task) == (32, False)


NO_UPLOADS = (["/etc/passwd"], {"path": "/etc/passwd"}, [["x"]], ["x"] * 51, 7)


@pytest.mark.parametrize("values", [(None, 0, True), (None, 1.5, True), (None, "64", True), (None, 64, "yes"),
                                    *((files, 64, True) for files in NO_UPLOADS)])  # fmt: skip
def test_forged_values_are_refused(section, values):
    with pytest.raises(ConfigError):
        section.asked(*values)


def test_a_finished_run_is_drawn_and_can_be_taken_away(section):
    result = losses_result(LOBES)
    before = copy.deepcopy(result)
    job = section.studio.lab.ran("losses", result)
    *_, page, data, _progress, drawn, seen = section.panel.view(section.studio.desk(), job.id, {})
    assert drawn["visible"] and "Every lobe wins its column" in drawn["value"] and seen["job"] == job.id
    assert result == before
    with open(page["value"], encoding="utf-8") as file:
        assert losses_card(result, section_colours(section)) in file.read()
    assert data["value"].endswith(".json")


def section_colours(section):
    return {lobe.name: lobe.colour for lobe in section.studio.lobes()}
