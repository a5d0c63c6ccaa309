"""How new data sits among the lobes, as HTML and as a map: pure functions of `OverlapReport.to_json`.

Prompts, lobes' names and file names are people's words: all are escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..kit import text
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
NEW_COLOUR = "#7b848a"
"""Of the new rows on the map: no lobe's, and to be seen on light and dark ground."""

Report = Mapping[str, Any]
Colours = Mapping[str, str]
Said = tuple[str, str]
"""(kind, sentence): "good", "ask" or "warn"."""


def overlap_card(report: Report, label: str, colours: Colours) -> str:
    """The whole card: what it comes to, a bar for each lobe, and the rows that are the reason."""
    said = "".join(f'<p class="train-{kind}">{text.escape(words)}</p>' for kind, words in verdicts(report))
    notes = "".join(f"<p>{text.escape(words)}</p>" for words in remarks(report))
    return _box(label, f"{said}{_bars(report, colours)}{_nearest(report, colours)}{_duplicates(report, colours)}{notes}")


def waiting_card(label: str, words: str) -> str:
    """While it is being compared, or cannot be yet."""
    return _box(label, f'<p role="status">{text.escape(words)}</p><div class="overlap-work"><i></i></div>')


def failed_card(label: str, words: str) -> str:
    return _box(label, f'<p class="train-ask">{text.escape(words)} Training is not affected.</p>')


def verdicts(report: Report) -> list[Said]:
    """What a person should know before training, in plain sentences; the most general first."""
    known = [lobe for lobe in report["lobes"] if lobe["overlap"] is not None]
    said = [_newness(max(known, key=lambda lobe: lobe["overlap"]))] if known else []
    worst = sorted(known, key=lambda lobe: (-lobe["held_out"], -lobe["exact"] - lobe["near"]))[:MOST_REPEATS]
    said += [one for lobe in worst for one in _repeats(lobe)]
    if report["leaking"]:
        many, of = report["leaking"], report["held_out_rows"]
        twin = f"{'has' if many == 1 else 'have'} a near twin among the training rows"
        said.append(("warn", f"{many:,} of {of:,} held-out rows {twin}: the validation loss will look better than it is."))
    elif report["held_out_rows"]:
        said.append(("good", f"None of the {report['held_out_rows']:,} held-out rows has a near twin among the training rows."))
    return said


def remarks(report: Report) -> list[str]:
    """What was compared with what, and what could not be."""
    said = []
    if not report["lobes"]:
        said.append("There is no lobe yet to compare with.")
    silent = [lobe["lobe"] for lobe in report["lobes"] if not lobe["rows"]]
    if silent:
        has = "has" if len(silent) == 1 else "have"
        said.append(f"{text.listed(text.short(name, 40) for name in silent)} {has} kept no rows to compare with.")
    if report["stopped"]:
        said.append("It was ended early.")
    if report["embedded"] < report["prompts"]:
        words = f", by their words for {report['compared']:,}" if report["compared"] > report["embedded"] else ""
        evenly = f"{report['embedded']:,} evenly spread ones"
        said.append(f"Of {report['prompts']:,} different prompts, {evenly} were compared by meaning{words}.")
    if report["truncated"]:
        said.append(f"Only the first {report['rows']:,} rows were read, so held-out rows were not looked at.")
    elif not report["held_out_rows"]:
        said.append("No row is held out, so there is no validation loss.")
    return said


def overlap_figure(found: PromptMap, colours: Colours, name: str) -> go.Figure:
    """The map of the lobes, with the rows of the "lobe" `name` as diamonds."""
    from ..kit.plots import prompt_map_figure

    figure, title = prompt_map_figure(found, {**colours, name: NEW_COLOUR}), text.escape(text.short(name, 28))
    figure.update_traces(marker_symbol="diamond", selector={"name": title})
    figure.update_traces(marker_size=8, marker_opacity=0.85, selector={"name": title, "showlegend": False})
    return figure


def new_name(lobes: Sequence[str]) -> str:
    """What the new rows are called on the map: no lobe's name."""
    name = "your rows"
    while name in lobes:
        name += " (file)"
    return name


def _box(label: str, inside: str) -> str:
    file = f'<span class="ml-faint">{text.escape(text.short(label, 40))}</span>'
    return f'<div class="ml-box overlap"><div class="train-file"><b>Among your lobes</b>{file}</div>{inside}</div>'


def _newness(lobe: Mapping[str, Any]) -> Said:
    name, share = text.short(lobe["lobe"], 40), lobe["overlap"]
    told = text.percent(share)
    if share >= SAME_KIND:
        return "ask", f"{told} of these rows lie inside {name}: consider adding them to that lobe's data instead."
    if share >= PARTLY:
        return "ask", f"{told} of these rows lie inside {name}: the router will have to choose between the two for such prompts."
    if share >= 0.005:
        return "good", f"Mostly new: {told} lies inside {name}."
    return "good", "New: none of it lies inside a lobe."


def _repeats(lobe: Mapping[str, Any]) -> Iterator[Said]:
    name, exact, near, held_out = text.short(lobe["lobe"], 40), lobe["exact"], lobe["near"], lobe["held_out"]
    if exact or near:
        many = f"{text.count(exact + near, 'prompt')} of this file {'is' if exact + near == 1 else 'are'} in {name} already"
        yield "ask", f"{many}, {f'{near:,} of them in nearly the same words' if exact and near else _likeness(exact)}."
    if held_out:
        yield "warn", (
            f"{held_out:,} of them {'is' if held_out == 1 else 'are'} among the rows that {name} held out: measured on those, "
            "the new lobe will look better than it is."
        )


def _likeness(exact: int) -> str:
    return "word for word" if exact else "in nearly the same words"


def _bars(report: Report, colours: Colours) -> str:
    known = sorted((lobe for lobe in report["lobes"] if lobe["overlap"] is not None), key=lambda lobe: -lobe["overlap"])
    if not known:
        return ""
    rows = "".join(
        f'<li style="--c:{text.colour(colours.get(lobe["lobe"]))};--w:{100 * lobe["overlap"]:.1f}%"'
        f' title="compared with {text.count(lobe["rows"], "row")} that it kept">'
        f'<span>{text.escape(lobe["lobe"])}</span><div><i></i></div><b>{text.percent(lobe["overlap"])}</b></li>'
        for lobe in known[:MOST_BARS]
    )
    rest = known[MOST_BARS:]
    more = f'<p class="ml-more">and {len(rest)} more, none above {text.percent(rest[0]["overlap"])}</p>' if rest else ""
    told = (
        "Share of these rows that lie inside each lobe: as near in meaning to one of its rows as its own rows are to one another, "
        "the farthest quarter of them left out."
    )
    head = "<h4>Overlap <span>share of these rows inside each lobe</span></h4>"
    return f'{head}<div class="ml-bars" title="{told}"><ol>{rows}</ol></div>{more}'


def _nearest(report: Report, colours: Colours) -> str:
    pairs = [(pair["cosine"], lobe["lobe"], pair) for lobe in report["lobes"] for pair in lobe["nearest"]]
    pairs = sorted(pairs, key=lambda pair: -pair[0])[:MOST_NEAREST]
    if not pairs:
        return ""
    listed = "".join(_pair(pair, name, colours) for _, name, pair in pairs)
    return _folded("Nearest rows of your lobes", f"<ul>{listed}</ul>")


def _duplicates(report: Report, colours: Colours) -> str:
    """The rows behind the warnings, folded away: in lobes, across the split, within the file."""
    in_lobes = "".join(_pair(pair, lobe["lobe"], colours) for lobe in report["lobes"] for pair in lobe["duplicates"])
    found = sum(lobe["exact"] + lobe["near"] for lobe in report["lobes"])
    parts = [
        (f"Prompts that a lobe has already ({found:,})", in_lobes),
        (f"Held-out rows with a twin in training ({report['leaking']:,})", _pairs(report["leaks"], "held out", "in training")),
        (f"Near twins within the file ({text.count(report['twins'], 'prompt')})", _pairs(report["pairs"], "", "")),
    ]
    return "".join(_folded(title, f"<ul>{listed}</ul>") for title, listed in parts if listed)


def _pairs(pairs: Sequence[Mapping[str, Any]], one: str, other: str) -> str:
    return "".join(_item(_words(one, pair["row"]), _words(other, pair["other"]), pair) for pair in pairs)


def _pair(pair: Mapping[str, Any], lobe: str, colours: Colours) -> str:
    name = f"{dot(colours.get(lobe, ''))}<small>{text.escape(text.short(lobe, 28))}</small> "
    other = _words("", pair["other"]) or "<small>a row whose text it did not keep</small>"
    return _item(_words("", pair["row"]), name + other, pair)


def _words(kind: str, words: str) -> str:
    told = f"<small>{kind}</small> " if kind else ""
    return told + text.escape(words if len(words) <= LONGEST else words[: LONGEST - 1].rstrip() + "…") if words else ""


def _item(row: str, other: str, pair: Mapping[str, Any]) -> str:
    near = f"cosine {min(pair['cosine'], 0.999 if pair['words'] < 1 else 1):.2f}" if pair["cosine"] is not None else ""
    words = f"{text.percent(pair['words'])} of words shared" if pair["words"] else ""
    return f"<li><div>{row}</div><div>{other}</div><em>{', '.join(filter(None, (near, words)))}</em></li>"


def _folded(title: str, inside: str) -> str:
    return f'<details class="overlap-list"><summary>{text.escape(title)}</summary>{inside}</details>'
