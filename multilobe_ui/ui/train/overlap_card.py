"""How new data sits among the lobes, as HTML and as a map: pure functions of `OverlapReport.to_json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..kit import text
from ..kit.html import Markup, around, escape, html, joined
from ..kit.table import dot

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ...routing.map import PromptMap

SAME_KIND, PARTLY = 0.5, 0.2
"""Overlaps from which the data is another helping of a lobe's own; from which the two will compete."""
MOST_BARS = 12
MOST_NEAREST = 8
MOST_REPEATS = 2
"""Lobes of which it is said in a sentence that they have some of the rows already; the list below has all."""
LONGEST = 160
TWIN = "a near twin among the training rows"
NO_TEXT = Markup("<small>a row whose text it did not keep</small>")
NEW_COLOUR = "#7b848a"
"""Of the new rows on the map: no lobe's, and to be seen on light and dark ground."""

Report = Mapping[str, Any]
Colours = Mapping[str, str]
Verdict = tuple[str, str]
"""(kind, sentence): "good", "ask" or "warn"."""


def overlap_card(report: Report, label: str, colours: Colours) -> Markup:
    """The whole card: what it comes to, a bar for each lobe, and the rows that are the reason."""
    parts = [html('<p class="train-{}">{}</p>', kind, words) for kind, words in verdicts(report)]
    parts += [_bars(report, colours), _nearest(report, colours), _duplicates(report, colours)]
    parts += [html("<p>{}</p>", words) for words in remarks(report)]
    return _box(label, joined(parts))


def waiting_card(label: str, words: str) -> Markup:
    """While it is being compared, or cannot be yet."""
    return _box(label, html('<p role="status">{}</p><div class="overlap-work"><i></i></div>', words))


def failed_card(label: str, words: str) -> Markup:
    return _box(label, html('<p class="train-ask">{} Training is not affected.</p>', words))


def verdicts(report: Report) -> list[Verdict]:
    """What a person should know before training, in plain sentences; the most general first."""
    measured = _by_overlap(report)
    sentences = [_newness(lobe) for lobe in measured[:1]]
    worst = sorted(measured, key=lambda lobe: (-lobe["held_out"], -lobe["exact"] - lobe["near"]))
    sentences += [sentence for lobe in worst[:MOST_REPEATS] for sentence in _repeats(lobe)]
    leaking, held_out = report["leaking"], report["held_out_rows"]
    if leaking:
        words = f"{leaking:,} of {held_out:,} held-out rows {_verb(leaking, 'has', 'have')} {TWIN}"
        sentences.append(("warn", f"{words}: the validation loss will look better than it is."))
    elif held_out:
        sentences.append(("good", f"None of the {held_out:,} held-out rows has {TWIN}."))
    return sentences


def _by_overlap(report: Report) -> list[Mapping[str, Any]]:
    """The lobes that could be compared with, most overlap first."""
    measured = [lobe for lobe in report["lobes"] if lobe["overlap"] is not None]
    return sorted(measured, key=lambda lobe: -lobe["overlap"])


def _verb(number: int, one: str, many: str) -> str:
    if number == 1:
        return one
    return many


def remarks(report: Report) -> list[str]:
    """What was compared with what, and what could not be."""
    notes = []
    if not report["lobes"]:
        notes.append("There is no lobe yet to compare with.")
    silent = [lobe["lobe"] for lobe in report["lobes"] if not lobe["rows"]]
    if silent:
        names = text.listed(text.short(name, 40) for name in silent)
        notes.append(f"{names} {_verb(len(silent), 'has', 'have')} kept no rows to compare with.")
    if report["stopped"]:
        notes.append("It was ended early.")
    if report["embedded"] < report["prompts"]:
        by_words = ""
        if report["compared"] > report["embedded"]:
            by_words = f", by their words for {report['compared']:,}"
        evenly = f"{report['embedded']:,} evenly spread ones were compared by meaning{by_words}"
        notes.append(f"Of {report['prompts']:,} different prompts, {evenly}.")
    if report["truncated"]:
        notes.append(
            f"Only the first {report['rows']:,} rows were read, so held-out rows were not looked at."
        )
    elif not report["held_out_rows"]:
        notes.append("No row is held out, so there is no validation loss.")
    return notes


def overlap_figure(map: PromptMap, colours: Colours, name: str) -> go.Figure:
    """The map of the lobes, with the rows of the "lobe" `name` as diamonds."""
    from ..kit.plots import prompt_map_figure

    figure, title = prompt_map_figure(map, {**colours, name: NEW_COLOUR}), escape(text.short(name, 28))
    figure.update_traces(marker_symbol="diamond", selector={"name": title})
    figure.update_traces(marker_size=8, marker_opacity=0.85, selector={"name": title, "showlegend": False})
    return figure


def new_name(lobes: Sequence[str]) -> str:
    """What the new rows are called on the map: no lobe's name."""
    name = "your rows"
    while name in lobes:
        name += " (file)"
    return name


def _box(label: str, inside: Markup) -> Markup:
    return html(
        '<div class="ml-box overlap"><div class="train-file"><b>Among your lobes</b><span '
        'class="ml-faint">{}</span></div>{}</div>',
        text.short(label, 40), inside,
    )  # fmt: skip


def _newness(lobe: Mapping[str, Any]) -> Verdict:
    name, share = text.short(lobe["lobe"], 40), lobe["overlap"]
    inside = f"{text.percent(share)} of these rows lie inside {name}"
    if share >= SAME_KIND:
        return "ask", f"{inside}: consider adding them to that lobe's data instead."
    if share >= PARTLY:
        return "ask", f"{inside}: the router will have to choose between the two for such prompts."
    if share >= 0.005:
        return "good", f"Mostly new: {text.percent(share)} lies inside {name}."
    return "good", "New: none of it lies inside a lobe."


def _repeats(lobe: Mapping[str, Any]) -> Iterator[Verdict]:
    name, exact, near, held_out = text.short(lobe["lobe"], 40), lobe["exact"], lobe["near"], lobe["held_out"]
    if exact or near:
        prompts = text.count(exact + near, "prompt of this file is", "prompts of this file are")
        yield "ask", f"{prompts} in {name} already, {_likeness(exact, near)}."
    if held_out:
        them = f"{held_out:,} of them {_verb(held_out, 'is', 'are')} among the rows that {name} held out"
        yield "warn", f"{them}: measured on those, the new lobe will look better than it is."


def _likeness(exact: int, near: int) -> str:
    if exact and near:
        return f"{near:,} of them in nearly the same words"
    if exact:
        return "word for word"
    return "in nearly the same words"


def _bars(report: Report, colours: Colours) -> Markup:
    lobes = _by_overlap(report)
    if not lobes:
        return Markup()
    rows = joined(
        html(
            '<li style="--c:{};--w:{:.1f}%" title="compared with {} that it kept"><span>{}</span><div><i>'
            "</i></div><b>{}</b></li>",
            text.colour(colours.get(lobe["lobe"])), 100 * lobe["overlap"], text.count(lobe["rows"], "row"),
            lobe["lobe"],
            text.percent(lobe["overlap"]),
        )
        for lobe in lobes[:MOST_BARS]
    )  # fmt: skip
    figure = html(
        '<h4>Overlap <span>share of these rows inside each lobe</span></h4><div class="ml-bars" '
        'title="Share of these rows that lie inside each lobe: as near in meaning to one of its rows as '
        'its own rows are to one another, the farthest quarter of them left out."><ol>{}</ol></div>',
        rows,
    )
    rest = lobes[MOST_BARS:]
    if not rest:
        return figure
    highest = text.percent(rest[0]["overlap"])
    return figure + html('<p class="ml-more">and {} more, none above {}</p>', len(rest), highest)


def _nearest(report: Report, colours: Colours) -> Markup:
    pairs = [(pair["cosine"], lobe["lobe"], pair) for lobe in report["lobes"] for pair in lobe["nearest"]]
    pairs = sorted(pairs, key=lambda pair: -pair[0])[:MOST_NEAREST]
    return _folded(
        "Nearest rows of your lobes", joined(_pair(pair, name, colours) for _, name, pair in pairs)
    )


def _duplicates(report: Report, colours: Colours) -> Markup:
    """The rows behind the warnings, folded away: in lobes, across the split, within the file."""
    repeated = sum(lobe["exact"] + lobe["near"] for lobe in report["lobes"])
    in_lobes = joined(
        _pair(pair, lobe["lobe"], colours) for lobe in report["lobes"] for pair in lobe["duplicates"]
    )
    leaks = joined(
        _item(_words(pair["row"], "held out"), _words(pair["other"], "in training"), pair)
        for pair in report["leaks"]
    )
    twins = joined(_item(_words(pair["row"]), _words(pair["other"]), pair) for pair in report["pairs"])
    return (
        _folded(f"Prompts that a lobe has already ({repeated:,})", in_lobes)
        + _folded(f"Held-out rows with a twin in training ({report['leaking']:,})", leaks)
        + _folded(f"Near twins within the file ({text.count(report['twins'], 'prompt')})", twins)
    )


def _pair(pair: Mapping[str, Any], lobe: str, colours: Colours) -> Markup:
    other = html(
        "{}<small>{}</small> {}",
        dot(colours.get(lobe, "")), text.short(lobe, 28), _words(pair["other"]) or NO_TEXT,
    )  # fmt: skip
    return _item(_words(pair["row"]), other, pair)


def _words(words: str, kind: str = "") -> Markup:
    if not words:
        return Markup()
    return html("{}{}", around("<small>{}</small> ", kind), text.cut(words, LONGEST))


def _item(row: Markup, other: Markup, pair: Mapping[str, Any]) -> Markup:
    likeness, highest = [], 0.999  # 1.00 is for the same words alone
    if pair["words"] == 1:
        highest = 1
    if pair["cosine"] is not None:
        likeness.append(f"cosine {min(pair['cosine'], highest):.2f}")
    if pair["words"]:
        likeness.append(f"{text.percent(pair['words'])} of words shared")
    return html("<li><div>{}</div><div>{}</div><em>{}</em></li>", row, other, ", ".join(likeness))


def _folded(title: str, items: Markup) -> Markup:
    if not items:
        return Markup()
    return html('<details class="overlap-list"><summary>{}</summary><ul>{}</ul></details>', title, items)
