"""Score bars and the why panel as data."""

from __future__ import annotations

import re

import numpy as np
import pytest

from multilobe_ui.app.views import TokenTrace
from multilobe_ui.routing.decision import RoutingDecision, base_decision
from multilobe_ui.ui.chat.reply import Reply
from multilobe_ui.ui.chat.why_panel import idle_panel, labels, waiting_panel, why_panel
from multilobe_ui.ui.kit.figures import MOST_BARS, NONE, bars, score_bars

COLOURS = {"law": "#c9880b", "code": "#2f8fe0", "medicine": "#e5484d"}
LOBES = tuple(COLOURS.items())


def decision(**more):
    values = {
        "router": "hybrid", "stage": "embedding", "scores": {"law": 0.21, "code": 0.62, "medicine": 0.1},
        "probabilities": {}, "weights": {"code": 1.0}, "chosen": "code", "confidence": 0.82, "threshold": 0.35,
    }  # fmt: skip
    return RoutingDecision(**{**values, **more})


def names(figure):
    return re.findall(r'<span title="([^"]*)">', figure)


def widths(figure):
    return [float(w) for w in re.findall(r"--w:([\d.]+)%", figure)]


def values(figure):
    return re.findall(r"</div><b>([^<]*)</b>", figure)


def chosen_row(figure):
    """(width, number) of the bar that is marked."""
    (found,) = re.findall(r'is-chosen"[^>]*--w:([\d.]+)%"><span[^>]*>[^<]*</span><div><i></i></div><b>([^<]*)</b>', figure)
    return float(found[0]), found[1]


PROBABILITIES = {"law": 0.04, "code": 0.82, "medicine": 0.01}


def test_best_first_the_winner_marked_and_scores_only_as_numbers():
    figure = score_bars(decision(probabilities=PROBABILITIES, evidence={"none": 0.13}), COLOURS)
    assert names(figure) == ["code", "No lobe fits, and the base model answers", "law", "medicine"]
    assert widths(figure) == [82, 13, 4, 1] and values(figure) == ["82 %", "13 %", "4 %", "1 %"]
    assert "<h4>Probability" in figure and figure.count("is-chosen") == 1
    assert chosen_row(figure) == (82, "82 %")
    assert all(tone in figure for tone in COLOURS.values())
    bars_, raw = figure.split("<details")
    assert "0.62" not in bars_ and "<td>0.62</td>" in raw and "<td>0.35</td>" in raw, "the threshold is a number too"


@pytest.mark.parametrize("share", [0.0, 0.005, 0.24, 0.67, 0.999, 1.0])
def test_a_bar_is_as_long_as_its_number(share):
    """U14: 0.67 fills two thirds of the track, alone or beside others."""
    assert widths(bars({"a": share}, {})) == [pytest.approx(100 * share, abs=0.06)]
    assert widths(bars({"a": share, "b": 0.001}, {}))[0 if share > 0.001 else 1] == pytest.approx(100 * share, abs=0.06)


def test_what_is_out_of_range_stays_in_its_track():
    assert widths(bars({"a": 1e9, "b": -3.0}, {})) == [100, 0]


def test_what_is_not_a_number_is_left_out():
    assert bars({"a": float("nan")}, {}) == ""
    assert names(bars({"a": float("inf"), "b": 0.3}, {})) == ["b"]


def test_no_scores_no_figure():
    assert score_bars(base_decision("hybrid", "no lobes", ""), COLOURS) == ""
    assert score_bars(decision(stage="manual", scores={"law": 1.0}), COLOURS) == ""
    mixed = score_bars(decision(stage="manual", weights={"law": 0.6, "code": 0.4}, threshold=None), {})
    assert "Weight of every lobe" in mixed and widths(mixed) == [60, 40]


def test_many_lobes_show_the_best_and_count_the_rest():
    shares = {f"lobe {i}": i / 200 for i in range(200)}
    figure = bars({**shares, NONE: 0.001}, {}, chosen="lobe 3")
    assert len(names(figure)) == MOST_BARS
    assert names(figure)[-2:] == ["lobe 3", "No lobe fits, and the base model answers"]
    assert "and 189 more, none above 94 %" in figure


def test_scores_of_all_stages_are_numbers_with_what_they_are_held_against():
    evidence = {
        "embedding": {"law": 0.5, "code": 0.49},
        "logprob": {"law": -3.0, "code": -2.0},
        "base_logprob": -2.5,
        "floor": 0.3,
    }
    found = decision(stage="logprob", evidence=evidence, threshold=None)
    _, raw = score_bars(found, COLOURS).split("<details")
    for words in (">embedding<", ">log-prob<", "<td>-2.00</td>", ">base model -2.50<", ">floor 0.30<", ">needed<"):
        assert words in raw
    assert "--w:" not in raw


# ---- text and bar agree ----------------------------------------------------------------------------------------------


def panel(found, **more):
    return why_panel(Reply(found, LOBES, done=True, **more))


def said(page):
    """(number, words) beside the title of the panel."""
    (found,) = re.findall(r'<div class="ml-sure">(?:<b>([^<]*)</b>)?([^<]*)</div>', page)
    return found


def test_one_lobe_is_chosen_with_the_certainty_of_its_bar():
    page = panel(decision(probabilities=PROBABILITIES, evidence={"none": 0.13}))
    assert said(page) == ("82 %", "sure of the choice")
    assert chosen_row(page) == (82, "82 %")
    assert "code: answers" in page


@pytest.mark.parametrize("probabilities", [{}, {"code": 1.0}, {"code": 0.3, "law": 0.7}, {"code": 0.82, "law": 0.9}])
def test_whatever_a_router_gives_text_and_bar_agree_and_all_is_at_most_one(probabilities):
    page = panel(decision(probabilities=probabilities, evidence={"none": 0.6}))
    assert said(page)[0] == chosen_row(page)[1] == "82 %"
    assert sum(widths(page)) <= 100.2


@pytest.mark.parametrize("evidence", [{"none": 0.76}, {}])
def test_a_refusal_is_sure_that_no_lobe_fits_and_says_why(evidence):
    shares = {"code": 0.14, "law": 0.1}
    found = base_decision(
        "hybrid", "hybrid", "Nothing is near.", confidence=0.76, probabilities=shares, evidence=evidence
    )
    page = panel(found)
    assert said(page) == ("76 %", "sure that no lobe fits") and "Nothing is near." in page
    assert chosen_row(page) == (76, "76 %") and "none of these" in page
    assert "Base model \\b7  76 \\25  sure that no lobe fits" in labels([Reply(found, LOBES, done=True)])


def test_a_blend_has_weights_and_its_certainty_is_said_of_the_choice():
    found = decision(
        probabilities={"code": 0.71, "law": 0.2}, weights={"code": 0.58, "law": 0.42}, confidence=0.71,
        evidence={"none": 0.09},
    )  # fmt: skip
    page = panel(found)
    assert said(page) == ("", "weights"), "no certainty beside the weights of a mix"
    assert "code <b>58 %</b>" in page and "law <b>42 %</b>" in page and "Weights of the lobes: code 58 %" in page
    assert "The router is 71 % sure that code is the right one." in page
    assert chosen_row(page) == (71, "71 %")
    assert "code: weight 58 %" in page and "law: weight 42 %" in page
    sheet = labels([Reply(found, LOBES, done=True)])
    assert "Weights\\3a  code 58 \\25 \\2c  law 42 \\25 " in sheet and "sure" not in sheet
    assert "linear-gradient(90deg,#2f8fe0 0.0% 58.0%,#c9880b 58.0% 100.0%)" in sheet


def token(weight):
    return TokenTrace("x", {"code": weight, "law": 1 - weight}, np.full((2, 2), 0.5))


def test_a_router_that_weighs_tokens_shows_weights_and_no_certainty():
    """U14: "100 % of the weight" is not said beside 0.54 and 0.46."""
    found = decision(
        router="xlora", stage="xlora", per_token=True, threshold=None, weights={"code": 0.97, "law": 0.03},
        probabilities={"code": 1.0, "law": 0.0}, confidence=1.0, reason="code has 97% of the weight over the prompt.",
        evidence={"none": 0.0, "tokens": [{"text": "x", "weights": {"code": 1.0}}]},
    )  # fmt: skip
    before = why_panel(Reply(found, LOBES))
    assert chosen_row(before) == (97, "97 %") and "97 %, the mean over the prompt" in before
    after = panel(found, trace=(token(0.34), token(0.58)))
    assert said(after) == ("", "mean weights") and "% sure" not in after
    assert "law <b>54 %</b>" in after and chosen_row(after) == (54, "54 %")
    assert "law has the greatest weight: 54 %, the mean over the answer&#39;s 2 tokens and all layers." in after
    head, _ = after.split("Your message, token by token")
    assert "97%" not in head, "what the router says of the message stands with the message"
    sheet = labels([Reply(found, LOBES, done=True, trace=(token(0.34), token(0.58)))])
    assert "Weights\\3a  law 54 \\25 " in sheet and "sure" not in sheet


def test_what_is_negligible_makes_no_mix():
    found = decision(router="xlora", stage="xlora", per_token=True, weights={"code": 0.996, "law": 0.004}, threshold=None)
    page = panel(found)
    assert "<h3><i></i><span>code</span></h3>" in page and "greatest weight: &gt; 99 %" in page
    assert '"code"' in labels([Reply(found, LOBES, done=True)])


def test_a_mix_by_hand_has_weights_and_no_certainty():
    found = decision(router="manual", stage="manual", weights={"law": 0.5, "code": 0.4}, confidence=1.0)
    page = panel(found)
    assert said(page) == ("", "your weights") and "% sure" not in page and "law <b>50 %</b>" in page


@pytest.mark.parametrize(
    "found",
    [base_decision("gate", "gate", "The gate has not been fitted yet."), base_decision("hybrid", "no lobes", "None yet."),
     base_decision("hybrid", "empty prompt", "Empty."), decision(stage="corrected", confidence=1.0)],
)  # fmt: skip
def test_what_nobody_estimated_has_no_certainty(found):
    assert "% sure" not in panel(found) and "100 %" not in panel(found) and "sure" not in labels([Reply(found, LOBES)])


def test_names_of_strangers_are_escaped_everywhere():
    evil = "<img src=x onerror=alert(1)>\"'"
    found = decision(scores={evil: 1.0, "law": 0.1}, chosen=evil, weights={evil: 1.0}, reason=f"{evil} fits",
                     evidence={"nearest": [{"prompt": evil, "lobe": evil, "score": 0.5}]})  # fmt: skip
    reply = Reply(found, ((evil, "#e5484d"),), done=True)
    for page in (
        why_panel(reply),
        idle_panel([(evil, evil)]),
        waiting_panel([(evil, "x")], evil, evil),
        labels([reply]),
    ):
        assert "<img" not in page
        assert 'onerror=alert(1)>"' not in page


def test_the_panel_says_who_why_how_sure_and_how_fast():
    found = decision(
        elapsed_ms=7.4,
        reason="Closest to code.",
        evidence={"nearest": [{"prompt": "Sort a list", "lobe": "code", "score": 0.8}]},
    )
    page = why_panel(Reply(found, LOBES, done=True, tokens=12, tokens_per_second=41, first_token_ms=21.4))
    words = ("Answered by", ">code<", "82 %", "Closest to code.", "embedding", "7 ms", "21 ms", "41 tokens/s", "Sort a list")
    assert [word for word in words if word not in page] == []
    assert "Answering now" in why_panel(Reply(found, LOBES))
    assert "is-live" in why_panel(Reply(found, LOBES))


def test_the_panel_of_the_base_of_a_stopped_and_of_a_shortened_answer():
    page = why_panel(
        Reply(base_decision("hybrid", "embedding", "None fits."), LOBES, done=True, stopped=True, tokens=1, dropped=2)
    )
    words = ("is-base", "Base model", "Stopped after 1 token.", "2 messages no longer fitted")
    assert [word for word in words if word not in page] == []


def test_a_lobe_that_a_person_chose_has_no_confidence():
    page = why_panel(
        Reply(decision(stage="manual", scores={"code": 1.0}, threshold=None, confidence=1.0), LOBES, done=True)
    )
    assert "sure" not in page
    assert "chosen by you" in page


def test_labels_count_answers_and_mark_the_one_explained():
    replies = [
        Reply(decision(), LOBES, done=True),
        Reply(base_decision("h", "embedding", ""), LOBES, done=True, stopped=True),
    ]
    sheet = labels(replies, 0)
    assert "nth-child(1 of .bot-row)" in sheet
    assert "nth-child(2 of .bot-row)" in sheet
    assert '"code  82\\20' not in sheet
    assert "code \\b7  82 \\25  sure of the choice" in sheet
    assert "stopped" in sheet
    assert sheet.count("border-left-color") == 1
    assert labels([]) == '<div class="ml-labels"><style></style></div>'
