"""Text as data: what a person reads, and what must never reach the page unescaped."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from multilobe_ui.routing.decision import RoutingDecision, base_decision
from multilobe_ui.ui.kit import text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "–"), (0.0004, "0.4 ms"), (0.0074, "7 ms"), (2.44, "2.4 s"), (9.97, "10 s"), (59.6, "1 min"),
     (200, "3 min 20 s"), (3600, "1 h"), (3900, "1 h 5 min"), (7199, "2 h")],
)  # fmt: skip
def test_duration(seconds, said):
    assert text.duration(seconds) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, ""), (0, "almost done"), (12, "about 10 s left"), (57, "about 1 min left"), (118, "about 2 min left"),
     (3590, "about 1.0 h left"), (40_000, "about 11 h left")],
)  # fmt: skip
def test_time_left(seconds, said):
    assert text.time_left(seconds) == said


@pytest.mark.parametrize(
    ("nbytes", "said"),
    [
        (None, "–"),
        (0, "0 B"),
        (999, "999 B"),
        (1400, "1.4 kB"),
        (999_600, "1.0 MB"),
        (13_000_000, "13 MB"),
        (2.5e15, "2500 TB"),
    ],
)
def test_size(nbytes, said):
    assert text.size(nbytes) == said


@pytest.mark.parametrize(
    ("share", "said"), [(None, "–"), (0, "0 %"), (0.001, "< 1 %"), (0.817, "82 %"), (0.999, "> 99 %"), (1, "100 %")]
)
def test_percent_is_never_surer_than_the_number(share, said):
    assert text.percent(share) == said


def test_counts_and_lists():
    assert text.count(1, "row") == "1 row"
    assert text.count(1204, "row") == "1,204 rows"
    assert text.count(2, "lobe of its own", "lobes of their own") == "2 lobes of their own"
    assert text.big(12_500_000) == "12.5 M"
    assert text.big(320) == "320"
    assert text.listed([]) == ""
    assert text.listed(["a"]) == "a"
    assert text.listed(["a", "b", "c"]) == "a, b and c"


def test_when():
    now = datetime(2026, 7, 2, 12, tzinfo=UTC)
    assert text.when("2026-07-02T11:59:30+00:00", now) == "just now"
    assert text.when("2026-07-02T11:30:00", now) == "30 min ago"
    assert text.when("2026-07-01T11:00:00+00:00", now) == "yesterday"
    assert text.when("2026-06-01T11:00:00+00:00", now) == "2026-06-01"
    assert text.when("soon", now) == text.when(None, now) == "–"


def test_short_counts_columns_not_characters():
    assert text.short("medical") == "medical"
    assert text.short("a\nb\tc") == "a b c"
    assert text.width(text.short("医学と法律と数学とその他いろいろ", 12)) <= 12
    assert text.short("x" * 30, 10) == "x" * 9 + "…"


def test_css_string_cannot_be_left():
    literal = text.css_string('a"</style>\\;}é')
    assert literal.startswith('"a\\22 ')
    assert not set("<>;}/") & set(literal)
    assert literal.count('"') == 2


def test_colour_lets_only_colours_through():
    assert text.colour("#A1b2c3") == "#A1b2c3"
    assert text.colour("red;background:url(//x)") == text.colour(None) == "#8a93a0"


def test_who_answers_and_why():
    one = RoutingDecision("hybrid", "embedding", {}, {}, {"law": 1.0}, "law", 0.9)
    mix = RoutingDecision(
        "manual", "manual", {}, {}, {"law": 0.5, "code": 0.4, "qa": 0.1}, "law", 1.0, reason="You chose law."
    )
    assert text.answerer(one) == "law"
    assert text.answerer(mix) == "law + code + 1 more"
    assert text.answerer(None) == text.answerer(base_decision("x", "y", "")) == "Base model"
    assert text.decision_sentence(one) == "law fits best, by embedding."
    assert text.decision_sentence(mix) == "You mixed them by hand."
    assert "base model" in text.decision_sentence(base_decision("x", "y", ""))
    assert text.rate(0) == "–"
    assert text.rate(41.2) == "41 tokens/s"
    assert text.score(-1.844) == "-1.84"
    assert text.stage("logprob") == "log-prob"
