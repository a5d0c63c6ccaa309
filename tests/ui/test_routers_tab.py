"""The Routers tab: HTML and figures as data, handlers as plain calls, wiring in a bare Blocks."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest
from fake_studio import FakeStudio

from multilobe_ui.errors import BusyError
from multilobe_ui.routing.decision import RoutingDecision, base_decision
from multilobe_ui.ui.kit import plots as router_plots
from multilobe_ui.ui.kit import text
from multilobe_ui.ui.kit.complexity_card import meter, radar, stratification_card
from multilobe_ui.ui.kit.routing_row import router_choices
from multilobe_ui.ui.routers import router_card, verdicts
from multilobe_ui.ui.routers.ask import PRESET
from multilobe_ui.ui.routers.chain import MOST_STAGES, moved
from multilobe_ui.ui.routers.fits import on_display
from multilobe_ui.ui.routers.tab import RoutersTab

SKIP = gr.skip()
NOBODY = SimpleNamespace(username=None)
EVIL = "<img src=x onerror=alert(1)>"
ASK = "How does a vaccine protect a child?"
HEAD = ["list", "fit_all", "detail"]
TAIL = ["fit", "stop", "cancel", "progress", "plot", "report", "lobe"]


@pytest.fixture
def studio():
    return FakeStudio(6)


@pytest.fixture
def tab(studio):
    built = RoutersTab(studio)
    with gr.Blocks():
        built.build()
    return built


def look(tab, picked="", seen=None, token=""):
    """What a tick sends, by name; forms and stages as lists."""
    values = list(tab.look(NOBODY, picked, seen or {}, token))
    names = [*HEAD, *tab.forms, *TAIL]
    found = SimpleNamespace(**dict(zip(names, values, strict=False)))
    found.stages, found.seen = values[len(names) : -1], values[-1]
    found.forms = {name: getattr(found, name) for name in tab.forms}
    return found


def begin(tab, picked, seen=None, file=None, **given):
    """The Fit button, with the form as it stands but for `given`."""
    values = [given.get(name, c.value) if router == picked else c.value
              for (router, name), c in zip(tab.settings.names, tab.settings.components, strict=True)]  # fmt: skip
    return tab.begin(NOBODY, picked, seen or {}, file, "", *values)


def fitted(studio, *names):
    for name in names:
        studio.advance(studio.fit_router(name).id, 999)


def event(**data):
    return SimpleNamespace(_data=data)


# ---- looking ---------------------------------------------------------------------------------------------------------


def test_what_needs_a_fit_is_on_display_and_says_so(tab):
    seen = look(tab)
    assert seen.list.count("data-row=") == 9
    assert seen.list.count("Needs a fit") == 3
    assert "It has not been fitted yet" in seen.detail and ">Gate<" in seen.detail
    assert seen.fit == gr.update(visible=True, value="Fit now")
    assert seen.fit_all == gr.update(visible=True, value="Fit all 3 that need it")
    assert [name for name, form in seen.forms.items() if form["visible"]] == ["gate"]
    assert seen.progress["visible"] is seen.report["visible"] is False
    assert seen.plot == gr.update(visible=False)


def test_what_has_not_changed_is_not_drawn_again(tab, studio):
    seen = look(tab).seen
    calls = len(studio.calls)
    assert tab.look(NOBODY, "", seen, "") == (SKIP,) * tab.width
    assert len(studio.calls) == calls
    seen = look(tab, "keyword", seen)
    assert seen.forms["keyword"]["visible"] and seen.lobe == SKIP


def test_a_fit_is_watched_from_the_first_step_to_the_report(tab, studio):
    picked, _ = begin(tab, "gate", ridge="0.5")
    assert picked == "gate"
    verb, arguments = studio.calls[-1]
    assert verb == "fit_router"
    assert arguments == (
        "gate", {"embedding": "sentence", "ridge": 0.5, "false_abstention": 0.025}, None, "",
    )  # fmt: skip
    job = studio.jobs()[0]
    studio.advance(job.id, 30)
    seen = look(tab, picked)
    assert "Fitting" in seen.detail and "step 30 of 60" in seen.progress["value"] and 'aria-valuenow="50"' in seen.progress["value"]
    assert seen.stop["visible"] and not seen.fit["visible"] and not seen.cancel["visible"]
    assert {trace.name for trace in seen.plot["value"].data} >= {"loss", "held-out loss", "accuracy"}
    assert 'Fitting</span>' in seen.list and "50 %" in seen.list
    studio.advance(job.id, 30)
    seen = look(tab, picked, seen.seen)
    assert "95.3 %" in seen.report["value"] and "0.184" in seen.report["value"]
    assert "goes with every bundle" in seen.detail
    assert seen.fit == gr.update(visible=True, value="Fit again") and seen.progress["visible"] is False
    assert seen.fit_all == gr.update(visible=True, value="Fit all 2 that need it")


def test_a_reload_shows_the_fit_at_work(tab, studio):
    studio.fit_router("xlora")
    again = RoutersTab(studio)
    with gr.Blocks():
        again.build()
    values = again.look_anew(NOBODY, "", "")
    assert "X-LoRA" in values[2] and "Fitting" in values[2]


def test_a_new_lobe_makes_fits_stale_and_one_click_mends_all(tab, studio):
    fitted(studio, "gate", "xlora", "complexity")
    assert "goes with every bundle" in look(tab, "gate").detail
    studio.delete("legal")
    seen = look(tab, "gate")
    assert "The fit is stale." in seen.detail and seen.fit["value"] == "Fit again"
    assert seen.list.count("is-stale") == 3
    tab.begin_all(NOBODY, "")
    made = [arguments[0] for verb, arguments in studio.calls if verb == "fit_router"][-3:]
    assert sorted(made) == ["complexity", "gate", "xlora"]
    seen = look(tab, "gate", seen.seen)
    assert seen.fit_all["visible"] is False and "earlier fit serves" in seen.detail
    assert look(tab, "complexity").cancel["visible"]


def test_stop_and_cancel_act_on_the_fit_on_display(tab, studio):
    begin(tab, "gate")
    begin(tab, "xlora")
    studio.advance(studio.jobs()[-1].id, 5)
    tab.do_cancel(NOBODY, look(tab, "xlora").seen, "")
    tab.do_stop(NOBODY, look(tab, "gate").seen, "")
    assert [verb for verb, _ in studio.calls[-3:]] == ["cancel", "forget", "stop"]
    with pytest.raises(gr.Error, match="No fit is on display"):
        tab.do_stop(NOBODY, look(tab, "arrow").seen, "")


def test_what_another_visitor_started_cannot_be_stopped():
    studio = FakeStudio(2, shared=True)
    tab = RoutersTab(studio)
    with gr.Blocks():
        tab.build()
    job = studio.fit_router("gate", owner="token:somebody")
    studio.advance(job.id, 3)
    seen = look(tab, "gate", token="t" * 20)
    assert not seen.stop["visible"] and "another visitor" in seen.progress["value"]
    with pytest.raises(gr.Error, match="somebody else"):
        tab.do_stop(NOBODY, seen.seen, "t" * 20)
    with pytest.raises(gr.Error, match="token"):
        begin(tab, "gate")


def test_fits_are_no_runs_of_the_train_tab(studio):
    from multilobe_ui.ui.train.tab import TrainTab

    studio.advance(studio.fit_router("gate").id, 4)
    view = TrainTab(studio).live.look(NOBODY, "", [], {}, "")
    assert "No training has been started" in view[0]


def test_a_tick_that_fails_changes_nothing(tab, studio, monkeypatch):
    monkeypatch.setattr(studio, "routers", lambda owner="": (_ for _ in ()).throw(BusyError("loading")))
    assert tab.look(NOBODY, "", {}, "") == SKIP


@pytest.mark.parametrize(
    ("given", "said"),
    [({"size": "x"}, "must be a number"), ({"size": 2.5}, "whole number"), ({"learning_rate": "fast"}, "must be a number")],
)
def test_odd_settings_are_refused(tab, studio, given, said):
    with pytest.raises(gr.Error, match=said):
        begin(tab, "xlora", **given)
    assert not studio.jobs()


def test_an_empty_setting_keeps_its_default(tab, studio):
    begin(tab, "gate", ridge=None)
    assert studio.calls[-1][1][1] == {"embedding": "sentence", "false_abstention": 0.025}


def test_a_row_that_was_clicked_is_picked(tab):
    assert tab.pick(event(id="chain")) == "chain"
    assert tab.pick(event(id=7)) == SKIP


def test_who_is_on_display(studio):
    views = studio.routers()
    assert on_display(views, {}, "").name == "gate"
    assert on_display(views, {}, "arrow").name == "arrow"
    assert on_display(views, {}, "gone").name == "gate"
    assert on_display([], {}, "") is None


# ---- complexity ------------------------------------------------------------------------------------------------------


def test_tiers_can_be_seen_before_a_fit(tab, studio, tmp_path, monkeypatch):
    card = tab.tiers.stratify(0.3, 0.7, None)["value"]
    for words in ("1,566 rows", ">470<", "30 %", "simple", "complex", "&lt;b&gt;number", "<svg"):
        assert words in card
    assert studio.calls[-1] == ("stratify", (0.3, 0.7, None))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"input": f"q {i}", "output": "a"}) for i in range(10)))
    assert "10 rows" in tab.tiers.stratify(0.3, 0.7, str(path))["value"]
    begin(tab, "complexity", file=str(path), low=0.2)
    verb, (name, settings, given, _) = studio.calls[-1]
    assert (verb, name, given, settings["low"]) == ("fit_router", "complexity", str(path), 0.2)
    for low, high, file, said in ((0.8, 0.7, None, "below high"), ("x", 0.7, None, "number"), (0.3, 0.7, "/etc/passwd", "uploads")):
        with pytest.raises(gr.Error, match=said):
            tab.tiers.stratify(low, high, file)


def test_an_empty_tier_is_warned_of():
    card = stratification_card({"counts": {"simple": 4, "medium": 0, "complex": 2}, "examples": {}, "means": {}})
    assert "No row is medium" in card
    assert "no row to sort" in stratification_card({"counts": {}})


def test_radar_and_meter_take_any_number():
    names = [f"f{i}" for i in range(8)]
    figure = radar({name: float("nan") for name in names}, {"simple": dict.fromkeys(names, 7.0)}, "red;}")
    assert "nan" not in figure.split("aria-label")[0] and "red" not in figure
    assert figure.count("<path") == 4 + 8 + 2
    assert radar({}, {}) == radar({"a": 1.0}) == ""
    assert 'aria-label="Complexity 0.00: simple"' in meter(float("nan"), 0.3, 0.7)
    assert "left:100.0%" in meter(3, 0.3, 0.7)


# ---- words and chain -------------------------------------------------------------------------------------------------


def test_words_are_shown_changed_and_brought_back(tab, studio):
    chips = tab.words.show("legal")
    assert chips["value"][:2] == ["law", "legal"] and chips["choices"][0][0].startswith("law  4.2")
    assert tab.words.do_save(NOBODY, "legal", ["court", EVIL], "")["value"] == ["court", EVIL]
    assert studio.desk().keyword_terms("legal") == [("court", 4.2), (EVIL, 4.0)]
    assert "law" in tab.words.do_learned(NOBODY, "legal", "")["value"]
    many = [f"word {i}" for i in range(400)]
    for terms, said in (([], "0 words"), (None, "must be a list"), ([7], "must be text"), (many, "300")):
        with pytest.raises(gr.Error, match=said):
            tab.words.do_save(NOBODY, "legal", terms, "")
    assert tab.words.show("") == gr.update(choices=[], value=[])


STAGES = [["keyword", 0.8], ["gate", 0.7], ["logprob", 0.0]]


@pytest.mark.parametrize(
    ("place", "act", "names"),
    [(1, "up", ["gate", "keyword", "logprob"]), (0, "up", ["keyword", "gate", "logprob"]),
     (1, "down", ["keyword", "logprob", "gate"]), (2, "down", ["keyword", "gate", "logprob"]),
     (0, "out", ["gate", "logprob"]), (0, "add", ["keyword", "gate", "logprob", "embedding"])],
)  # fmt: skip
def test_stages_move(place, act, names):
    assert [name for name, _ in moved(STAGES, place, act)] == names
    assert STAGES[0] == ["keyword", 0.8]


def test_the_last_stage_stays_and_there_are_never_too_many():
    assert moved([["gate", 0.0]], 0, "out") == [["gate", 0.0]]
    full = [["gate", 0.0]] * MOST_STAGES
    assert moved(full, 0, "add") == full


def test_a_chain_is_saved_and_comes_back(tab, studio):
    values = ["gate", "keyword", None, None, None, None, 0.6, 0, 0.5, 0.5, 0.5, 0.5]
    tab.chain.do_save(NOBODY, "", 2, *values)
    assert studio.calls[-1] == ("set_chain", ([["gate", 0.6], ["keyword", 0.0]],))
    stages = look(tab, "chain").stages
    assert [row["visible"] for row in stages[:6]] == [True, True, False, False, False, False]
    assert [stage["value"] for stage in stages[6:8]] == ["gate", "keyword"] and stages[-1] == 2
    with pytest.raises(gr.Error, match="1 to 12 stages"):
        tab.chain.do_save(NOBODY, "", 0, *values)
    with pytest.raises(gr.Error, match="must be text"):
        tab.chain.do_save(NOBODY, "", 3, *values)


# ---- one prompt ------------------------------------------------------------------------------------------------------


def test_all_routers_side_by_side_in_the_same_colours(tab, studio):
    fitted(studio, "gate")
    html, words = tab.ask.compare(ASK)
    assert words == ASK and studio.calls[-1] == ("compare_routers", (ASK,))
    assert html.count("<article") == 7, "those not fitted cannot say anything"
    assert "<b>7 of 7</b> choose <b>medical</b>" in html
    assert html.count("<h5>Probability</h5>") + html.count("<h5>Mean weight over the prompt</h5>") == 7
    cards = html.split("<article")[1:]
    for card, decision in zip(cards, studio.compare_routers(ASK), strict=True):
        (row,) = re.findall(r'is-chosen"[^>]*--w:([\d.]+)%".*?<b>([^<]*)</b></li>', card)
        shown = decision.weights["medical"] if decision.per_token else decision.confidence
        assert float(row[0]) == pytest.approx(100 * shown, abs=0.06) and row[1] == text.percent(shown)
        assert f"{row[1]} sure" in card or (decision.per_token and "% sure" not in card and row[1] in card)
    assert html.count('style="--c:#e5484d') >= 14
    assert tab.ask.compare("  ")[1] == PRESET


def test_abstaining_is_the_base_model(tab):
    html, _ = tab.ask.compare("Good day to you")
    assert "choose <b>the base model</b>" in html
    assert 'is-chosen" aria-current="true" style="--c:var(--ml-base)' in html


def test_strange_decisions_are_drawn():
    decisions = [
        RoutingDecision(EVIL, "gate", {}, {EVIL: 0.5, "b": float("nan")}, {EVIL: 1.0}, EVIL, 0.5, reason=EVIL),
        base_decision("x", "no lobes", EVIL),
        RoutingDecision("many", "gate", {}, {f"l{i}": i / 5000 for i in range(100)}, {"l0": 1.0}, "l0", 0.1),
    ]
    html = verdicts.comparison(decisions, {}, {EVIL: EVIL})
    assert "<img" not in html
    assert html.count("<article") == 3 and ">l0<" in html
    assert "No router can decide" in verdicts.comparison([], {}, {})


def test_the_prompt_is_put_on_the_map(tab, studio):
    title, plot = tab.ask.place(ASK)
    figure = plot["value"]
    names = {trace.name for trace in figure.data}
    assert names == {"medical", "legal", "python", "maths", "sentiment", "summarisation", "your prompt"}
    star = figure.data[-1]
    assert star.marker.symbol == "star" and len(star.x) == 1
    assert "41 %" in title["value"]
    assert "&lt;b&gt;" in figure.data[0].text[0] and "<b>" not in figure.data[0].text[0]
    assert figure.data[0].marker.color == figure.data[1].marker.color == "#e5484d"
    tab.ask.studio = FakeStudio(0)
    assert tab.ask.place(ASK) == (gr.update(visible=False), gr.update(visible=False))


# ---- plots and cards as data -----------------------------------------------------------------------------------------


def record(step, phase="One", **values):
    return {"step": step, "steps": 100, "phase": phase, "values": values}


RUN = [*[record(i, loss=3 - i / 50, accuracy=i / 100) for i in range(50)],
       *[record(i, EVIL, loss=1.0, held_out_loss=1.2, perplexity=9.0) for i in range(50, 100)]]  # fmt: skip


def test_losses_above_shares_below_phases_shaded():
    figure = router_plots.fit_curves(RUN, 100)
    axes = {trace.name: trace.yaxis for trace in figure.data}
    assert axes["loss"] == axes["held-out loss"] == "y" and axes["accuracy"] == "y2" and "perplexity" not in axes
    assert figure.layout.annotations[0].text == "One"
    assert not any("<img" in note.text for note in figure.layout.annotations)
    assert router_plots.phases(RUN) == [("One", 0, 49), (EVIL, 50, 99)]
    assert sum(shape.type == "rect" for shape in figure.layout.shapes) == 1
    assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"


@pytest.mark.parametrize("records", [[], [{}], [record(0)], [record(1, loss=float("nan"))], [record(1, accuracy=True)]])
def test_few_or_odd_records_are_no_error(records):
    json.loads(router_plots.fit_curves(records).to_json())


def test_long_fits_stay_small():
    figure = router_plots.fit_curves([record(i, loss=2.0 + i % 7) for i in range(50_000)])
    assert len(figure.to_json()) < 40_000


def test_reports_of_any_shape():
    card = router_card.report_card({
        "accuracy": 0.912, "ece": 0.03, "seconds": 75.0, "rows": 1204, "stopped": False, "note": EVIL, "nothing": None,
        "counts": {"simple": 4, EVIL: 2}, "phases": {"a": {"test_loss": 1.25}, "b": {"test_loss": float("inf")}},
        "list": [1, 2],
    })  # fmt: skip
    for words in ("91.2 %", "3.0 %", "1 min 15 s", "1,204", "1.250", "Calibration error", "Test loss"):
        assert words in card
    assert "<img" not in card and ">no<" in card and "inf" not in card
    assert router_card.report_card({}) == ""


def test_names_of_strangers_are_escaped(studio):
    view = studio.routers()[4]
    from dataclasses import replace

    bad = replace(view, title=EVIL, sentence=EVIL, why=EVIL, name=EVIL)
    job = replace(studio.fit_router("gate"), error=EVIL, phase=EVIL, name=EVIL)
    for state in ("queued", "running", "stopping", "failed", "finished"):
        for html in (
            router_card.router_detail(bad, replace(job, state=state)),
            router_card.router_list([bad], {EVIL: replace(job, state=state)}, EVIL),
            router_card.fit_card(replace(job, state=state), EVIL),
        ):
            assert "<img" not in html


def test_the_tab_is_built_while_the_base_loads_and_by_a_studio_that_knows_few_routers(monkeypatch):
    with gr.Blocks():
        tab = RoutersTab(FakeStudio(0, state="loading"))
        tab.build()
    assert ("gate", "ridge") in tab.settings.names
    assert "Needs a fit" in look(tab).list
    studio = FakeStudio(2)
    few = studio.routers()[:2]
    monkeypatch.setattr(studio, "routers", lambda owner="": few)
    with gr.Blocks():
        tab = RoutersTab(studio)
        tab.build()
    assert "Hybrid" in look(tab).list


def test_wiring_is_private(studio):
    with gr.Blocks() as page:
        RoutersTab(studio).build()
    functions = [f for f in page.fns.values() if f.fn is not None]
    assert functions and all(f.api_visibility == "private" for f in functions)


def test_an_experimental_router_says_so_wherever_it_is_chosen(studio):
    views = [replace(view, experimental=view.name == "arrow") for view in studio.routers()]
    listed = router_card.router_list(views, {}, "hybrid")
    assert listed.count("experimental</span>") == 1 and 'Arrow<span class="router-badge">experimental' in listed
    arrow = next(view for view in views if view.name == "arrow")
    assert "experimental" in router_card.router_detail(arrow) and "experimental" not in router_card.router_detail(views[0])
    assert ("Arrow (experimental)", "arrow") in router_choices(views)
