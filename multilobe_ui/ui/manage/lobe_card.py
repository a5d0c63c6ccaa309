"""The lobes as a table, one lobe in full, and the base model, as HTML. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..kit import text
from ..kit.html import Markup, around, html, joined
from ..kit.table import Column, Row, dot, table
from ..kit.text import change

if TYPE_CHECKING:
    from ...app.views import LobeView, StudioStatus

BUILTIN = "builtin"
MOST_ROWS = 100
"""Lobes in the table at once: the page gets all of it anew whenever a lobe changes."""
COLUMNS = (
    Column("Lobe"), Column("Rows", "num wide"), Column("Rank", "num extra"), Column("Size", "num wide"),
    Column("Loss: base → lobe", "num"), Column("Made", "extra"), Column("Origin", "extra"),
)  # fmt: skip
NO_LOBES = Markup(
    '<div class="ml-box manage-empty"><p><b>There is no lobe yet.</b></p>'
    '<p class="ml-faint">Train one in the Train tab, load a bundle, or restore the demo lobes '
    'below.</p></div>'
)
NOTHING_PICKED = Markup(
    '<div class="ml-box"><p class="ml-faint">Click a lobe in the table to see all about it, to rename it, or '
    'to '
    "delete it.</p></div>"
)


def lobe_table(lobes: Sequence[LobeView], picked: str = "", ticked: Sequence[str] = (), find: str = "") -> Markup:
    """The lobes whose names have `find` in them, at most MOST_ROWS, and a line that says so if
    there are more."""
    if not lobes:
        return NO_LOBES
    matching = [lobe for lobe in lobes if find.casefold() in lobe.name.casefold()]
    if not matching:
        return html('<div class="ml-box"><p class="ml-faint">No lobe has {} in its name.</p></div>', find)
    rows = [Row(lobe.id, lobe.name, lobe.colour, _cells(lobe)) for lobe in matching[:MOST_ROWS]]
    drawn = table(COLUMNS, rows, picked=picked, checked=ticked, tick="Put into the bundle:")
    if len(matching) <= MOST_ROWS:
        return drawn
    return drawn + html(
        '<p class="manage-note">{:,} of {:,} are shown. Type part of a name above to find the others.</p>',
        MOST_ROWS, len(matching),
    )  # fmt: skip


def _cells(lobe: LobeView) -> Sequence[str]:
    nbytes, origin = html("{}", text.size(lobe.nbytes)), html("{}", text.short(lobe.origin, 24))
    if lobe.pinned:
        nbytes += Markup("<small>pinned</small>")
    if lobe.fault:
        origin += Markup('<span class="manage-badge">damaged</span>')
    elif not lobe.usable:
        origin += Markup('<span class="manage-badge">other base</span>')
    when = html('<span class="manage-when">{}</span>', text.when(lobe.created))
    return _rows(lobe), f"{lobe.r}", nbytes, _losses(lobe), when, origin


def _rows(lobe: LobeView) -> str:
    if lobe.rows is None:
        return text.NOTHING
    return f"{lobe.rows:,}"


def _losses(lobe: LobeView) -> Markup:
    before, after = lobe.base_validation_loss, lobe.validation_loss
    if before is None and after is None:
        return Markup(text.NOTHING)
    small = around("<small>{}</small>", change(before, after))
    return html("{} → <b>{}</b>{}", text.loss(before), text.loss(after), small)


def lobe_card(lobe: LobeView) -> Markup:
    """All about one lobe."""
    facts = {
        "Trained on": text.NOTHING,
        "Rank": f"{lobe.r}, {text.size(lobe.nbytes)}",
        "Layers": text.listed(lobe.target_modules) or text.NOTHING,
        "Validation loss": _loss_words(lobe),
        "Train loss": text.loss(lobe.train_loss),
        "Made": text.NOTHING,
        "Base": lobe.base,
        "Origin": lobe.origin,
    }
    if lobe.rows is not None:
        facts["Trained on"] = text.count(lobe.rows, "row")
    if lobe.created:
        facts["Made"] = f"{lobe.created[:16].replace('T', ' ')} UTC"
    return _card(html("{}<span>{}</span>", dot(lobe.colour), lobe.name), Markup(), facts, _notes(lobe))


def _notes(lobe: LobeView) -> Markup:
    """What stands in the way of using or changing a lobe."""
    notes = Markup()
    if lobe.fault:
        notes += html('<p class="manage-alert bad">It cannot be used: {}</p>', lobe.fault)
    elif not lobe.usable:
        notes += Markup('<p class="manage-alert">It belongs to another base model and cannot answer on this one.</p>')
    if lobe.protected:
        notes += Markup('<p class="manage-note">It is not yours, so you cannot rename or delete it.</p>')
    return notes


def _loss_words(lobe: LobeView) -> str:
    before, after = lobe.base_validation_loss, lobe.validation_loss
    if before is None or after is None:
        return text.loss(after)
    return f"{text.loss(after)}; the base alone has {text.loss(before)} ({change(before, after)})"


def question(lobe: LobeView) -> Markup:
    """What is asked before a lobe is deleted."""
    return html(
        '<p class="manage-alert bad">Delete <b>{}</b> for good? Its {} of weights cannot be brought back. To '
        'keep a copy, '
        "save a bundle first.</p>",
        lobe.name, text.size(lobe.nbytes),
    )  # fmt: skip


def base_card(status: StudioStatus) -> Markup:
    """What is known of the base model, and how its loading goes."""
    kinds = {"loading": "manage-alert", "failed": "manage-alert bad"}
    notes = Markup()
    if status.state in kinds:
        notes = html('<p class="{}">{}</p>', kinds[status.state], status.message)
    if status.base is None:
        return html('<div class="ml-box">{}</div>', notes or text.NOTHING)
    base = status.base
    facts = {
        "Parameters": text.NOTHING,
        "Context": text.NOTHING,
        "Runs on": ", ".join(str(base[key]) for key in ("device", "dtype") if base.get(key)) or text.NOTHING,
        "Architecture": str(base.get("architecture") or text.NOTHING),
    }
    if base.get("parameters"):
        facts["Parameters"] = text.big(base["parameters"])
    if base.get("context_length"):
        facts["Context"] = text.count(int(base["context_length"]), "token")
    name, about = str(base.get("name", "")), Markup()
    if name == BUILTIN:
        name = "Built-in model"
        about = html(
            '<p class="manage-note">A {}-parameter model trained on textbooks: grammatical, knows little; '
            'made to train a lobe '
            "in a minute on a free CPU.</p>",
            facts["Parameters"],
        )
    return _card(html("<span>{}</span>", name), about, facts, notes)


def _card(title: Markup, about: Markup, facts: Mapping[str, str], notes: Markup) -> Markup:
    listed = joined(html("<dt>{}</dt><dd>{}</dd>", name, value) for name, value in facts.items())
    return html(
        '<div class="ml-box"><div class="manage-title">{}</div>{}<dl class="manage-facts">{}</dl>{}</div>',
        title, about, listed, notes,
    )  # fmt: skip
