"""Evidence of routers, the token view and the mixing controls as data."""

from __future__ import annotations

import base64
import re
from io import BytesIO
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from fake_studio import FakeStudio
from PIL import Image

from multilobe_ui.app.views import TokenTrace
from multilobe_ui.errors import BusyError
from multilobe_ui.routing.decision import MODES, RoutingDecision, base_decision
from multilobe_ui.ui.chat import token_view
from multilobe_ui.ui.chat.evidence import evidence_sections, highlighted
from multilobe_ui.ui.chat.reply import Reply
from multilobe_ui.ui.chat.why_panel import why_panel
from multilobe_ui.ui.kit import routing_row
from multilobe_ui.ui.kit.figures import NONE, probabilities, score_bars, share_bar
from multilobe_ui.ui.kit.routing_row import MOST_SLIDERS, PRESET, RoutingRow, fold_label, mix_card, router_choices

EVIL = "<img src=x onerror=alert(1)>"
COLOURS = {"law": "#c9880b", "code": "#2f8fe0"}
PROMPT = "Is this contract lawful?"


def decision(**more):
    values = {
        "router": "keyword", "stage": "keyword", "scores": {"law": 0.9}, "probabilities": {"law": 0.8, "code": 0.2},
        "weights": {"law": 1.0}, "chosen": "law", "confidence": 0.8,
    }  # fmt: skip
    return RoutingDecision(**{**values, **more})


def match(term, start, end, lobe="law", weight=2.5):
    return {"term": term, "lobe": lobe, "weight": weight, "start": start, "end": end}


# ---- words -----------------------------------------------------------------------------------------------------------


def test_words_are_marked_in_their_lobe_s_colour():
    page = evidence_sections(decision(evidence={"matches": [match("contract", 8, 16)]}), COLOURS, PROMPT)
    assert '<mark style="--c:#c9880b" title="law: +2.5">contract</mark>' in page
    assert "Is this <mark" in page and "</mark> lawful?" in page


def test_of_words_that_overlap_the_weightiest_is_marked():
    found = highlighted("bail bond", [match("bail", 0, 4), match("bail bond", 0, 9, weight=4.0)], COLOURS)
    assert found.count("<mark") == 1 and ">bail bond</mark>" in found


@pytest.mark.parametrize("spans", [[match("contract", 0, 8)], [match("contract", 8, 99)], [match("x", 5, 2)]])
def test_matches_of_another_text_are_only_listed(spans):
    page = evidence_sections(decision(evidence={"matches": spans}), COLOURS, PROMPT)
    assert "<mark" not in page and spans[0]["term"] in page


def test_the_routed_text_of_the_evidence_wins_over_the_message():
    evidence = {"matches": [match("contract", 0, 8)], "prompt": "Contract? Is it lawful?"}
    assert ">Contract</mark>" in evidence_sections(decision(evidence=evidence), COLOURS, PROMPT)


def test_no_words_is_said():
    assert "None of its words" in evidence_sections(decision(evidence={"matches": []}), COLOURS, PROMPT)
    assert evidence_sections(decision(), COLOURS, PROMPT) == ""


def test_long_prompts_are_cut_and_strangers_words_escaped():
    long = EVIL + "a" * 5000
    page = evidence_sections(decision(evidence={"matches": [match("img", 1, 4, EVIL)]}), {EVIL: EVIL}, long)
    assert "<img" not in page and len(page) < 3000


# ---- bars ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "expected"),
    [(decision(probabilities={"law": 0.8, "code": 0.1}, evidence={"none": 0.1}), {"law": 0.8, "code": 0.1, NONE: 0.1}),
     (decision(evidence={"none": 0.25}), {"law": 0.8, "code": 0.2 * 0.2 / 0.45, NONE: 0.25 * 0.2 / 0.45}),
     (decision(), {"law": 0.8, "code": 0.2}),
     (base_decision("x", "embedding", "", confidence=0.7, probabilities={"law": 0.3}), {"law": 0.3, NONE: 0.7}),
     (base_decision("x", "not fitted", ""), {}),
     (decision(per_token=True), {}),
     (decision(stage="corrected"), {}),
     (decision(probabilities={}), {"law": 0.8})],
)  # fmt: skip
def test_what_was_decided_has_the_confidence_and_all_is_at_most_one(found, expected):
    assert probabilities(found) == pytest.approx(expected)
    assert sum(probabilities(found).values()) <= 1 + 1e-9


def test_three_stages_are_told_apart():
    evidence = {"embedding": {"law": 0.5}, "gate": {"law": 0.6}, "logprob": {"law": -2.0}, "floor": 0.3}
    page = score_bars(decision(router="hybrid", stage="logprob", evidence=evidence), COLOURS)
    for words in (">embedding<", ">gate<", ">log-prob<", "floor 0.30"):
        assert words in page


def test_a_share_bar_says_all_in_words():
    page = share_bar({"law": 0.5, "code": 0.4, "x": 0.0}, COLOURS)
    assert 'aria-label="Weights: law 50 %, code 40 %"' in page and page.count("flex-grow") == 2
    assert share_bar({"a": 0.0}, {}) == share_bar({}, {}) == ""


def test_a_mix_lights_several_regions_and_says_shares():
    lobes = tuple(COLOURS.items())
    page = why_panel(Reply(decision(router="manual", stage="manual", weights={"law": 0.5, "code": 0.4}), lobes, done=True))
    assert page.count("ml-brain-glow") == 2
    assert "law <b>50 %</b>" in page and "You mixed them by hand." in page and "% sure" not in page


def test_complexity_has_a_scale_and_a_radar():
    names = ("words", "depth", "clauses")
    evidence = {
        "score": 0.62, "thresholds": [0.3, 0.7], "profile": dict.fromkeys(names, 0.6), "tier": "medium",
        "tier_profiles": {t: dict.fromkeys(names, 0.4) for t in ("simple", "medium", "complex")},
        "features": dict.fromkeys(names, 12.0),
    }  # fmt: skip
    page = evidence_sections(decision(router="complexity", stage="complexity", evidence=evidence), COLOURS)
    assert "Complexity 0.62: medium" in page and page.count('class="tier is-') == 3 and "syntax depth" in page


def test_a_chain_says_who_was_asked():
    stages = [{"router": "keyword", "chosen": None, "confidence": 0.4, "threshold": 0.8},
              {"router": "gate", "chosen": "law", "confidence": 0.9, "threshold": 0.7}]  # fmt: skip
    page = evidence_sections(decision(router="chain", stage="gate", evidence={"stages": stages}), COLOURS)
    assert "keyword: base model" in page and "40 % sure that no lobe fits, 80 % needed" in page
    assert "gate: law" in page and "90 % sure of the choice, 70 % needed" in page


def test_the_message_is_shown_as_it_was_weighed():
    tokens = [{"text": "Is", "weights": {"law": 0.7, "code": 0.2}}, {"text": " <b>", "weights": {}}]
    page = evidence_sections(decision(router="xlora", stage="xlora", evidence={"tokens": tokens}), COLOURS)
    assert "Your message, token by token" in page and 'data-w="law 70 %, code 20 %"' in page and "&lt;b&gt;" in page
    assert "tabindex" not in page


# ---- tokens ----------------------------------------------------------------------------------------------------------


def token(text, law, layers=3):
    return TokenTrace(text, {"law": law, "code": 1 - law}, np.full((layers, 2), [law, 1 - law]))


TRACE = [token("A", 0.9), token(" <b>", 0.2), token("", 0.5), token(" end", 0.5)]


def picture(uri):
    """(height, width, RGBA) of a data URI."""
    return np.asarray(Image.open(BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))


def test_a_token_has_its_lobe_s_colour_and_all_its_weights():
    page = token_view.strip(TRACE, COLOURS)
    assert page.count("<span") == 3, "a token that adds nothing is not drawn"
    assert '--c:#c9880b;--a:75%" data-w="law 90 %, code 10 %"' in page
    assert "--c:#2f8fe0;--a:63%" in page and "&lt;b&gt;" in page


def test_the_map_is_a_picture_of_the_heaviest_lobes():
    page = token_view.heat_map(TRACE, COLOURS)
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(sources) == 3 and page.count('type="radio"') == 3
    heaviest, alone = picture(sources[0]), picture(sources[1])
    assert heaviest.shape == (3, 4, 4)
    assert tuple(heaviest[0, 0, :3]) == (0xC9, 0x88, 0x0B) and heaviest[0, 0, 3] > 200
    assert tuple(heaviest[0, 1, :3]) == (0x2F, 0x8F, 0xE0)
    assert alone[0, 0, 3] > alone[0, 1, 3]


def test_while_the_answer_is_written_there_is_one_picture():
    page = token_view.token_card(TRACE, COLOURS, done=False)
    assert page.count("<img") == 1 and "radio" not in page


@pytest.mark.parametrize(
    "layers", [np.zeros((0, 2)), np.zeros(3), np.full((3, 5), 0.2), None, np.full((3, 2), np.nan)]
)
def test_odd_layers_are_left_out(layers):
    page = token_view.token_card([TokenTrace("x", {"law": 1.0, "code": 0.0}, layers)], COLOURS)
    assert "ml-strip" in page


def test_many_tokens_and_lobes_stay_small():
    rng = np.random.default_rng(0)
    names = [f"lobe {i}" for i in range(200)]
    layers = rng.dirichlet(np.full(200, 0.05), size=60)
    trace = [TokenTrace(" word", dict(zip(names, layers.mean(0).tolist(), strict=True)), layers) for _ in range(1000)]
    page = token_view.token_card(trace, {})
    assert "The latest 600 of 1,000 tokens" in page and len(page) < 400_000
    assert token_view.token_card([], {}) == ""


# ---- controls --------------------------------------------------------------------------------------------------------


@pytest.fixture
def row():
    built = RoutingRow(FakeStudio(6))
    with gr.Blocks():
        built.build()
        built.build_mix()
    return built


def test_the_fold_says_the_settings_and_what_stands_in_the_way(row):
    views = row.studio.routers()
    assert fold_label(views) == "Routing: Hybrid, automatic"
    assert fold_label(views, "hybrid", "top_1") == "Routing: Hybrid, one lobe"
    assert fold_label(views, "gate", "top_k", 3) == "Routing: Gate, best 3"
    assert ("Gate (needs a fit)", "gate") in router_choices(views)
    fold, k, about = row.settings_changed("arrow", "auto", 2)
    assert fold["label"] == "Routing: Arrow, weighs each token" and not k["visible"]
    assert "each token and layer" in about
    fold, k, about = row.settings_changed("gate", "top_k", 2)
    assert fold["label"] == "Routing: Gate, best 2" and k["visible"] and "See the Routers tab" in about


def test_another_router_changes_no_other_setting(row):
    """U11: after X-LoRA, Hybrid mixes as the person had it."""
    assert row.mode.value == "auto" and [value for _, value in row.mode.choices] == list(MODES)
    with gr.Blocks() as page:
        built = RoutingRow(FakeStudio(6))
        built.build()
        built.build_mix()
        built.wire(gr.Dropdown(), gr.Textbox())
    listening = [f for f in page.fns.values() if any(target == (built.router._id, "input") for target in f.targets)]
    assert len(listening) == 1 and built.mode not in listening[0].outputs


def test_while_the_studio_cannot_say_there_is_the_default(monkeypatch):
    studio = FakeStudio(2)
    monkeypatch.setattr(studio, "routers", lambda owner="": (_ for _ in ()).throw(BusyError("loading")))
    row = RoutingRow(studio)
    with gr.Blocks():
        row.build()
    assert row.router.value == "hybrid" and row.fold.label == "Routing: hybrid, automatic"


def test_a_mix_says_its_sum():
    assert "Sum 0.90" in mix_card({"law": 0.5, "code": 0.4}, list(COLOURS.items()))
    assert "All zero" in mix_card({"law": 0.0}, list(COLOURS.items()))
    assert "far above 1" in mix_card({"law": 1.0, "code": 1.0}, list(COLOURS.items()))
    assert "#mix-0{--slider-color:#c9880b}" in mix_card({}, list(COLOURS.items()))
    assert "<img" not in mix_card({EVIL: 1.0}, [(EVIL, EVIL)])


def test_rounding_keeps_the_sum():
    assert routing_row.on_grid([0.74, 0.21, 0.02, 0.02, 0.01]) == [0.8, 0.2, 0.0, 0.0, 0.0]
    assert routing_row.on_grid([0.34, 0.33, 0.33]) == [0.3, 0.35, 0.35]
    assert routing_row.on_grid([]) == [] and routing_row.on_grid([7.0]) == [1.0]


def sliders(values):
    return values[2 : 2 + MOST_SLIDERS]


def test_a_router_can_set_the_sliders(row):
    values = row.try_example("hybrid", "auto", 2, list(row.names.value))
    moved = {update["label"]: update["value"] for update in sliders(values) if update["visible"]}
    assert moved["python"] > 0.3 and moved["maths"] > 0.3 and moved["legal"] < 0.1
    assert values[-1] == PRESET and "Sum" in values[-2]
    assert [call[1][2].mode for call in row.studio.calls] == ["auto"]
    row.try_example("hybrid", "top_1", 2, list(row.names.value))
    assert [call[1][2].mode for call in row.studio.calls] == ["auto", "top_1", "soft"], "one lobe is no mix"
    values = row.take_weights("Is this contract lawful?", "keyword", "auto", 2, list(row.names.value))
    assert {u["label"]: u["value"] for u in sliders(values) if u["visible"]}["legal"] == 1
    with pytest.raises(gr.Error, match="Write a message first"):
        row.take_weights("", "keyword", "top_1", 2, [])


def test_weights_follow_their_lobes():
    studio = FakeStudio(6)
    row = RoutingRow(studio)
    with gr.Blocks():
        row.build()
        row.build_mix()
    names = list(row.names.value)
    studio.delete("medical")
    values = row.refresh("gone", "top_1", 2, names, *[0.1 * i for i in range(6)], *[0] * 6)
    assert values[0]["value"] == "hybrid"
    moved = {u["label"]: u["value"] for u in values[5 : 5 + MOST_SLIDERS] if u["visible"]}
    assert list(moved) == names[1:] and moved["legal"] == pytest.approx(0.1) and moved["summarisation"] == pytest.approx(0.5)


def test_of_many_lobes_a_person_chooses_which_to_mix():
    row = RoutingRow(FakeStudio(30))
    with gr.Blocks():
        row.build()
        row.build_mix()
    assert row.which.visible and len(row.names.value) == MOST_SLIDERS
    values = row.choose(["domain 30", "legal", "gone"], ["legal"], 0.4)
    assert values[0] == ["domain 30", "legal"]
    assert [u["value"] for u in sliders(values)[:2]] == [0, 0.4]
    assert sum(u["visible"] for u in sliders(values)) == 2


def test_the_sliders_are_there_where_they_are_wanted():
    assert routing_row._mixes("mix") == (gr.update(visible=True), gr.update(visible=True))
    assert routing_row._mixes("automatic") == (gr.update(visible=False), gr.update(visible=True))
    assert routing_row._mixes("lobe:legal") == (gr.update(visible=False), gr.update(visible=False))


def test_odd_names_are_refused(row):
    assert row.summed(None, 1) == gr.skip()
    assert row.summed(["legal"], "x") == gr.skip()
    assert SimpleNamespace(**vars(routing_row.routing_of((), "automatic"))).router == "hybrid"
