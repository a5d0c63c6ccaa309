"""The forgetting check as HTML: a verdict, what was compared, every lobe, and what one adapter
would have forgotten. Pure.

What passed is said in words and marks, never by colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...evaluation.frames import CHECKED, forgetting_frame
from ..kit.frames import column_head, frame_table, row_head, td
from ..kit.html import Markup, around, html, joined
from ..kit.text import count, duration
from .drift_figure import NATS, contrast_head, contrast_table
from .parts import Colours, Result, named

GOOD, BAD, UNKNOWN = "✓", "✗", "–"
TITLES = {
    "good": "Passed: nothing was forgotten", "bad": "Failed: something has changed",
    "wait": "Stopped before anything was trained",
}  # fmt: skip
MARKS = {True: ("good", GOOD, "same"), False: ("bad", BAD, "changed"), None: ("none", UNKNOWN, "not known")}
ON_DISK = {
    True: "The weights in memory are those in its folder",
    False: "The weights in memory differ from those in its folder",
    None: "Not compared: only a folder on this machine can be, if it is not very large",
}


def forgetting_card(result: Result, colours: Colours) -> Markup:
    """The verdict and, above the figure of the contrast, what comes before it: what failed; or its
    own heading."""
    failed = Markup()
    if not _contrast_first(result):
        failed = _compared(result, colours)
    return html('<div class="fg">{}{}{}</div>', _verdict(result), failed, contrast_head(result))


def below_the_figure(result: Result, colours: Colours) -> Markup:
    """The figure's numbers, and what was compared where all is well."""
    passed = Markup()
    if _contrast_first(result):
        passed = _compared(result, colours)
    table = contrast_table(result, colours)
    return html('<div class="fg">{}{}{}</div>', table, passed, _end(result))


def _contrast_first(result: Result) -> bool:
    """What failed comes before what one was saved from."""
    return bool(result.get("passed") and result.get("contrast"))


def live(records: Sequence[Result], colours: Colours) -> Markup:
    """The newest losses of what a check is doing now."""
    newest: dict[str, float] = {}
    for record in records:
        if record.get("phase") == records[-1].get("phase"):
            newest |= record.get("values") or {}
    names = {"loss": "loss", "held_out_loss": "held out", "measured_loss": "on some of its rows"}
    losses = ", ".join(f"{name} {newest[key]:.3f}" for key, name in names.items() if key in newest)
    return around('<p class="fg-live">{} nats per answer token</p>', losses)


# ---- the verdict ---------------------------------------------------------------------------------


def _verdict(result: Result) -> Markup:
    kind, mark, about = "bad", BAD, _about(result)
    if result.get("passed"):
        kind, mark = "good", GOOD
    elif not _steps(result):
        kind, mark, about = "wait", UNKNOWN, Markup("<p>Nothing is proven yet. Check again, and let it run.</p>")
    reasons = joined(html("<li>{}</li>", reason) for reason in result.get("reasons") or () if kind != "wait")
    return html(
        '<header class="fg-verdict is-{}"><span class="fg-big" '
        'aria-hidden="true">{}</span><div><h3>{}</h3>{}{}</div></header>', kind, mark, TITLES[kind], about,
        around('<ul class="fg-reasons">{}</ul>', reasons),
    )  # fmt: skip


def _steps(result: Result) -> int:
    return (result.get("trained") or {}).get("steps") or 0


def _about(result: Result) -> Markup:
    """What was done, in a sentence or two."""
    who = Markup("An adapter was really trained")
    if result.get("newest"):
        who = html("<b>{}</b> was really trained again", result["newest"])
    rows = count((result.get("trained") or {}).get("rows") or 0, "row")
    early = ""
    if result.get("stopped"):
        early = " You stopped it early; what is shown was measured."
    return html(
        "<p>{} on the shared base ({}, {}{}), then thrown away.{}{}</p>",
        who, rows, count(_steps(result), "step"), _fall(result), _same(result), early,
    )  # fmt: skip


def _fall(result: Result) -> str:
    """', held-out loss 3.18 to 1.42 nats per answer token'; "" where it was not measured."""
    trained = result.get("trained") or {}
    before, after = trained.get("loss_before"), trained.get("loss_after")
    if before is None or after is None:
        return ""
    which = "held-out loss"
    if trained.get("held_out") == 0:
        which = "loss on rows it learned"
    return f", {which} {before:.2f} to {after:.2f} {NATS}"


def _same(result: Result) -> str:
    lobes = len(result.get("lobes") or ())
    if not result.get("passed"):
        return ""
    subject = {0: "base is", 1: "base and the one lobe are"}.get(lobes, f"base and all {lobes} lobes are")
    return f" Afterwards the {subject} the same to the last bit."


# ---- what was compared ---------------------------------------------------------------------------


def _compared(result: Result, colours: Colours) -> Markup:
    return html('<div class="fg-pair">{}{}</div>', _checks(result), _lobes(result, colours))


def _checks(result: Result) -> Markup:
    base, lobes = result.get("base") or {}, result.get("lobes") or []
    probes, tensors = count(base.get("probes") or 0, "prompt"), count(base.get("tensors") or 0, "tensor")
    hashes = joined(
        html('<p class="fg-hash"><span>{}</span>{}</p>', when, _code(base.get(f"hash_{when}")))
        for when in ("before", "after")
    )
    logits = f"Logits on {probes}: {_apart(base)}"
    rows = [
        _check("Weights of the base", base.get("same"), f"sha256 over every byte of {tensors}", hashes),
        _check("What the base says", base.get("logits_same"), logits),
        _check("The base on disk", base.get("source_same"), ON_DISK[base.get("source_same")]),
    ]
    if lobes:
        of_base = html("were trained on this base, {}", _code(base.get("fingerprint")))
        rows += [
            _counted("What the lobes say", lobes, "same", f"give the same logits on {probes}"),
            _counted("Files of the lobes", lobes, "files_same", "are what they were, and are what runs"),
            _counted("The base on their cards", lobes, "fingerprint_same", of_base),
        ]
    return html('<section><h4>What was compared</h4><ul class="fg-checks">{}</ul></section>', joined(rows))


def _check(title: str, same: bool | None, about: object, more: object = "") -> Markup:
    """A line of the list."""
    return html("<li>{}<div><b>{}</b><p>{}</p>{}</div></li>", _mark(same), title, about, more)


def _counted(title: str, lobes: Sequence[Result], key: str, about: object) -> Markup:
    known = [lobe[key] for lobe in lobes if lobe.get(key) is not None]
    same = None
    if known:
        same = all(known)
    return _check(title, same, html("{} of {} {}", sum(known), len(known), about))


def _mark(same: bool | None) -> Markup:
    """✓, ✗ or –, with the word for those who do not see it."""
    kind, mark, word = MARKS[same]
    return html(
        '<span class="fg-mark is-{}"><span aria-hidden="true">{}</span><span '
        'class="fg-hidden">{}</span></span>', kind,
        mark,
        word,
    )


def _apart(compared: Result) -> str:
    """How far two sets of logits are from each other."""
    most, kl = compared.get("max_difference"), compared.get("mean_kl")
    if most == 0 and compared.get("logits_same", compared.get("same")):
        return "the same, bit for bit"
    if most is None:
        return "numbers that are not finite"
    if kl is None:
        return f"up to {most:.3g} apart"
    return f"up to {most:.3g} apart, KL {kl:.3g} nats"


def _code(value: Any) -> Markup:
    """A hash, shortened; the whole of it on hover."""
    whole = shown = str(value or UNKNOWN)
    if len(whole) > 24:
        shown = f"{whole[:12]}…{whole[-6:]}"
    return html('<code title="{}">{}</code>', whole, shown)


# ---- lobes ---------------------------------------------------------------------------------------


def _lobes(result: Result, colours: Colours) -> Markup:
    frame = forgetting_frame(result)
    if frame.empty:
        return Markup()
    apart = {str(lobe.get("name", "")): _logits(lobe) for lobe in result["lobes"]}

    def row(name: str, cells: Markup) -> Markup:
        return html("<tr>{}{}</tr>", row_head(named(name, colours, "fg-name")), cells)

    def cell(name: str, column: str, same: bool | None) -> Markup:
        if column != "same":
            return td(_mark(same))
        return td(html('{} <span aria-hidden="true">{}</span>', _mark(same), apart[name]))

    table = frame_table(
        frame[list(CHECKED)], "fg-lobes", cell=cell, row=row,
        head=lambda column: column_head(CHECKED[column].capitalize()), corner=column_head("Lobe"),
        scroll="fg-scroll",
    )  # fmt: skip
    return html("<section><h4>Every lobe</h4>{}</section>", table)


def _logits(lobe: Result) -> str:
    words = {True: "same", None: "cannot be run"}
    return words.get(lobe.get("same")) or _apart(lobe)


def _end(result: Result) -> Markup:
    seconds = (result.get("base") or {}).get("seconds")
    return html(
        '<p class="fg-note">Took {}, of which hashing and asking {}. Nothing of it was kept.</p>',
        duration(result.get("seconds")), duration(seconds),
    )  # fmt: skip
