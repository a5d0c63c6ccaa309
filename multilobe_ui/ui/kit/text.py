"""Words for the page: pure functions from plain values to text, none of it HTML. Nothing here knows
Gradio."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TypeGuard

from ...routing.decision import RoutingDecision

NOTHING = "–"
STAGES = {
    "embedding": "embedding",
    "logprob": "log-prob",
    "keyword": "keyword",
    "gate": "gate",
    "complexity": "complexity",
    "xlora": "X-LoRA",
    "arrow": "Arrow",
    "not fitted": "not fitted yet",
    "manual": "chosen by you",
    "corrected": "your correction",
    "empty prompt": "empty prompt",
    "no lobes": "no lobes yet",
    "only lobe": "only one lobe",
}
NO_ESTIMATE = ("manual", "corrected", "no lobes", "empty prompt", "not fitted", "only lobe")
"""Stages of which nobody estimated how likely they are right."""


def css_string(value: object) -> str:
    """A CSS string literal; all but plain letters, digits and spaces become hex escapes, so that no
    text can end the string, the rule or the style element."""
    escaped = re.sub("[^A-Za-z0-9 ]", lambda found: f"\\{ord(found[0]):x} ", str(value))
    return f'"{escaped}"'


def colour(value: object, otherwise: str = "#8a93a0") -> str:
    """A `#rrggbb` colour, or the neutral one: a colour goes into style attributes, so nothing else
    may pass."""
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", str(value)):
        return otherwise
    return str(value)


def count(number: int, one: str, many: str = "") -> str:
    """'1 row', '1,204 rows'."""
    if number == 1:
        return f"1 {one}"
    return f"{number:,} {many or one + 's'}"


def big(number: float) -> str:
    """'12.5 M': for parameters and tokens."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,.0f}"


def size(nbytes: float | None) -> str:
    """'1.4 MB', in powers of 1,000 as file managers show them."""
    if nbytes is None:
        return NOTHING
    if nbytes < 1000:
        return f"{int(nbytes)} B"
    units = ["kB", "MB", "GB", "TB"]
    nbytes /= 1000
    while nbytes >= 999.5 and len(units) > 1:
        nbytes /= 1000
        units.pop(0)
    if nbytes < 9.95:
        return f"{nbytes:.1f} {units[0]}"
    return f"{nbytes:.0f} {units[0]}"


def percent(share: float | None) -> str:
    """'82 %'; never '100 %' for what is not certain, nor '0 %' for what is possible."""
    if share is None:
        return NOTHING
    if 0.995 <= share < 1:
        return "> 99 %"
    if 0 < share < 0.005:
        return "< 1 %"
    return f"{share:.0%}".replace("%", " %")


def duration(seconds: float | None) -> str:
    """'8 ms', '2.4 s', '3 min 20 s', '1 h 5 min'."""
    if seconds is None:
        return NOTHING
    if seconds < 1:
        return milliseconds(seconds * 1000)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return _in_two_units(whole, "min", "s")
    return _in_two_units(round(seconds / 60), "h", "min")


def _in_two_units(number: int, large: str, small: str) -> str:
    """A number of sixtieths: '3 min 20 s', '3 min'."""
    whole, rest = divmod(number, 60)
    if not rest:
        return f"{whole} {large}"
    return f"{whole} {large} {rest} {small}"


def milliseconds(value: float | None) -> str:
    """'0.4 ms', '7 ms', '1.2 s'."""
    if value is None:
        return NOTHING
    if value >= 999.5:
        return duration(value / 1000)
    if value < 0.95:
        return f"{value:.1f} ms"
    return f"{value:.0f} ms"


def time_left(seconds: float | None) -> str:
    """'about 2 min left': rounded as a person would, since it is an estimate."""
    if seconds is None:
        return ""
    if seconds < 5:
        return "almost done"
    if seconds < 55:
        return f"about {max(1, round(seconds / 5)) * 5} s left"
    if seconds < 3600 - 30:
        return f"about {max(1, round(seconds / 60))} min left"
    return f"about {_two_digits(seconds / 3600)} h left"


def _two_digits(value: float) -> str:
    """'9.2', '41', '1,204': one decimal below ten, none above."""
    if value < 9.95:
        return f"{value:.1f}"
    return f"{value:,.0f}"


def decimal(value: float | None) -> str:
    """'9.2', '41', '–': a number of milliseconds, of tokens per second."""
    if value is None:
        return NOTHING
    return _two_digits(value)


def change(before: float | None, after: float | None) -> str:
    """'−38 %': how a loss has changed; "" if either is unknown."""
    if before is None or after is None or not before:
        return ""
    percent = round(100 * (after - before) / before)
    return f"{percent:+} %".replace("-", "−").replace("+0", "0")


def loss(value: float | None) -> str:
    return known("{:.3f}", value)


def score(value: float) -> str:
    """Three digits that count: '0.62', '-1.84', '12.4'."""
    if abs(value) < 9.995:
        return f"{value:.2f}"
    return f"{value:.3g}"


def rate(tokens_per_second: float) -> str:
    """'41 tokens/s'."""
    if tokens_per_second <= 0:
        return NOTHING
    return f"{_two_digits(tokens_per_second)} tokens/s"


def when(timestamp: str | None, now: datetime | None = None) -> str:
    """'just now', '5 min ago', 'yesterday', '2026-07-01', from an ISO 8601 time."""
    if not timestamp:
        return NOTHING
    try:
        then = datetime.fromisoformat(timestamp)
    except ValueError:
        return NOTHING
    if not then.tzinfo:
        then = then.replace(tzinfo=UTC)
    seconds = ((now or datetime.now(UTC)) - then).total_seconds()
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{int(seconds // 60)} min ago"
    if seconds < 86400:
        return f"{int(seconds // 3600)} h ago"
    if seconds < 2 * 86400:
        return "yesterday"
    return then.date().isoformat()


def width(value: str) -> int:
    """Columns it takes in a fixed-width font: East Asian characters take two, combining marks none."""
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in value if not unicodedata.combining(c))


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a finite number: results that were read from disk may hold anything."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def slug(value: str) -> str:
    """'report-card': a title as part of an element's id."""
    return "-".join(re.findall(r"[a-z0-9]+", value.lower()))


def short(value: str, columns: int = 24) -> str:
    """The text on one line, cut with an ellipsis to at most so many columns."""
    line = " ".join(str(value).split())
    if width(line) <= columns:
        return line
    while line and width(line) > columns - 1:
        line = line[:-1]
    return line.rstrip() + "…"


def known(template: str, value: object) -> str:
    """The template with the value in it; '–' where there is none."""
    if value is None:
        return NOTHING
    return template.format(value)


def phrase(template: str, value: object) -> str:
    """The template with the value in it; nothing where there is none."""
    if not value:
        return ""
    return template.format(value)


def cut(value: str, most: int) -> str:
    """The text, cut with an ellipsis to at most so many characters; its lines stay."""
    if len(value) <= most:
        return value
    return value[: most - 1].rstrip() + "…"


def listed(names: Iterable[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    *others, last = list(names) or [""]
    if not others:
        return last
    return f"{', '.join(others)} and {last}"


def stage(name: str) -> str:
    """A stage of a router, as a person would call it."""
    return STAGES.get(name, name)


def parts_of(weights: Mapping[str, float]) -> list[str]:
    """The lobes that a decision's weights let answer, heaviest first; two or more are a mix."""
    return sorted((name for name in weights if weights[name]), key=lambda name: -abs(weights[name]))


def answerer(decision: RoutingDecision | None) -> str:
    """Who answers: the lobe's name, 'python + maths + 2 more' for a mix, or 'Base model'."""
    if decision is None or not decision.chosen:
        return "Base model"
    return " + ".join(_first(parts_of(decision.weights) or [decision.chosen], 2))


def estimated(decision: RoutingDecision) -> bool:
    """Whether `confidence` is an estimate of a router's: not where a person decided, where nothing
    was read, or where every token is weighed anew and no one lobe is chosen."""
    if decision.per_token or decision.stage in NO_ESTIMATE:
        return False
    return bool(decision.chosen or decision.probabilities or is_number(decision.evidence.get("none")))


def sure(confidence: float | None, abstained: bool) -> str:
    """'92 % sure of the choice', '76 % sure that no lobe fits'."""
    if abstained:
        return f"{percent(confidence)} sure that no lobe fits"
    return f"{percent(confidence)} sure of the choice"


def certainty(decision: RoutingDecision) -> str:
    """How sure the router is of what it decided, or "" where nobody estimated it."""
    if not estimated(decision):
        return ""
    return sure(decision.confidence, decision.chosen is None)


def shares(weights: Mapping[str, float], most: int = 3) -> str:
    """'python 52 %, maths 31 %, 2 more': who takes part, heaviest first."""
    return ", ".join(
        _first([f"{short(name, 24)} {percent(weights[name])}" for name in parts_of(weights)], most)
    )


def _first(items: list[str], most: int) -> list[str]:
    """The first items; how many are left out is the last one."""
    if len(items) <= most:
        return items
    return [*items[:most], f"{len(items) - most} more"]


def decision_sentence(decision: RoutingDecision) -> str:
    """Why, in one sentence: the router's own, or one made from its numbers."""
    if decision.stage == "manual" and len(parts_of(decision.weights)) > 1:
        return "You mixed them by hand."
    if decision.reason:
        return decision.reason
    if decision.chosen is None:
        return "No lobe fits this prompt, so the base model answers."
    return f"{decision.chosen} fits best, by {stage(decision.stage)}."
