"""Score bars and the why panel as data."""

from __future__ import annotations

import re

import pytest

from multilobe_ui.routers.base import RoutingDecision, base_decision
from multilobe_ui.ui.figures import MOST_BARS, bars, score_bars
from multilobe_ui.ui.why_panel import Reply, idle_panel, labels, waiting_panel, why_panel

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


def test_best_first_the_winner_marked_the_threshold_drawn():
    figure = score_bars(decision(), COLOURS)
    assert names(figure) == ["code", "law", "medicine"]
    assert widths(figure) == sorted(widths(figure), reverse=True)
    assert figure.count("is-chosen") == 1
    assert figure.index("is-chosen") < figure.index(">code<")
    assert ">threshold 0.35<" in figure
    assert all(tone in figure for tone in COLOURS.values())


def test_bar_and_threshold_share_one_axis():
    figure = bars({"a": 0.5, "b": 0.25}, {}, threshold=0.25)
    share = float(re.search(r"--t:([\d.]+)", figure).group(1))
    assert widths(figure)[1] == pytest.approx(100 * share, abs=0.1)


@pytest.mark.parametrize(
    "scores", [{"a": -3.2, "b": -1.1}, {"a": 0.0}, {"a": -0.02, "b": 0.4}, {"a": 1e9}, {"a": 0.0, "b": 0.0}]
)
def test_any_sign_and_size(scores):
    assert all(0 <= width <= 100 for width in widths(bars(scores, {}, threshold=0.1)))


def test_what_is_not_a_number_is_left_out():
    assert bars({"a": float("nan")}, {}) == ""
    assert names(bars({"a": float("inf"), "b": 0.3}, {}, threshold=float("nan"))) == ["b"]


def test_no_scores_no_figure():
    assert score_bars(base_decision("hybrid", "no lobes", ""), COLOURS) == ""
    assert score_bars(decision(stage="manual", scores={"law": 1.0}), COLOURS) == ""
    assert "Weight of every lobe" in score_bars(
        decision(stage="manual", scores={"law": 0.6, "code": 0.4}, threshold=None), {}
    )


def test_many_lobes_show_the_best_and_count_the_rest():
    scores = {f"lobe {i}": i / 200 for i in range(200)}
    figure = bars(scores, {}, chosen="lobe 3")
    assert len(names(figure)) == MOST_BARS
    assert names(figure)[-1] == "lobe 3"
    assert "and 188 more, none above 0.94" in figure


def test_both_stages_can_be_unfolded():
    evidence = {
        "embedding": {"law": 0.5, "code": 0.49},
        "logprob": {"law": -3.0, "code": -2.0},
        "base_logprob": -2.5,
        "floor": 0.3,
    }
    figure = score_bars(decision(stage="logprob", evidence=evidence, threshold=None), COLOURS)
    assert "all stages together" in figure
    assert "<details>" in figure
    assert ">base model -2.50<" in figure
    assert ">floor 0.30<" in figure


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
    for words in (
        "Answered by",
        ">code<",
        "82 %",
        "Closest to code.",
        "embedding",
        "7 ms",
        "21 ms",
        "41 tokens/s",
        "Sort a list",
    ):
        assert words in page
    assert "Answering now" in why_panel(Reply(found, LOBES))
    assert "is-live" in why_panel(Reply(found, LOBES))


def test_the_panel_of_the_base_of_a_stopped_and_of_a_shortened_answer():
    page = why_panel(
        Reply(base_decision("hybrid", "embedding", "None fits."), LOBES, done=True, stopped=True, tokens=1, dropped=2)
    )
    assert "is-base" in page
    assert "Base model" in page
    assert "Stopped after 1 token." in page
    assert "2 messages no longer fitted" in page


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
    assert "code  82 \\25 " in sheet
    assert "stopped" in sheet
    assert sheet.count("border-left-color") == 1
    assert labels([]) == '<div class="ml-labels"><style></style></div>'
