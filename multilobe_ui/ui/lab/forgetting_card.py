"""The forgetting check as HTML: a verdict, what was compared, every lobe, and what one adapter would have forgotten. Pure.

Names are other people's words and are escaped. What passed is said in words and marks, never by colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..kit import text
from .drift_figure import contrast_section

Colours = Mapping[str, str]
Found = Mapping[str, Any]
GOOD, BAD, UNKNOWN = "✓", "✗", "–"
TITLES = {
    "good": "Passed: nothing was forgotten", "bad": "Failed: something has changed", "wait": "Stopped before anything was trained",
}  # fmt: skip
ON_DISK = {
    True: "The weights in memory are those in its folder",
    False: "The weights in memory differ from those in its folder",
    None: "Not compared: only a folder on this machine can be, if it is not very large",
}


def forgetting_card(result: Found, colours: Colours) -> str:
    """The whole result (`ForgettingReport.to_json`)."""
    lobes = result.get("lobes") or []
    table = _table(lobes, colours) if lobes else ""
    two = f'<div class="fg-pair">{_checks(result)}{table}</div>'
    contrast = contrast_section(result, colours)
    # what failed comes before what one was saved from
    parts = contrast + two if result.get("passed") and result.get("contrast") else two + contrast
    return f'<div class="fg">{_verdict(result)}{parts}{_end(result)}</div>'


def live(records: Sequence[Found], colours: Colours) -> str:
    """The newest losses of what a check is doing now."""
    newest: dict[str, float] = {}
    for record in records:
        if record.get("phase") == records[-1].get("phase"):
            newest |= record.get("values") or {}
    names = {"loss": "loss", "held_out_loss": "held out", "measured_loss": "on some of its rows"}
    said = [f"{name} {newest[key]:.3f}" for key, name in names.items() if key in newest]
    return f'<p class="fg-live">{text.escape(", ".join(said))} nats per answer token</p>' if said else ""


# ---- the verdict -----------------------------------------------------------------------------------------------------


def _verdict(result: Found) -> str:
    passed, trained = bool(result.get("passed")), result.get("trained") or {}
    steps = trained.get("steps") or 0
    kind, mark = ("good", GOOD) if passed else ("wait", UNKNOWN) if not steps else ("bad", BAD)
    reasons = "".join(f"<li>{text.escape(reason)}</li>" for reason in result.get("reasons") or [])
    why = f'<ul class="fg-reasons">{reasons}</ul>' if reasons and kind != "wait" else ""
    about = _about(result, steps) if steps else "<p>Nothing is proven yet. Check again, and let it run.</p>"
    return (
        f'<header class="fg-verdict is-{kind}"><span class="fg-big" aria-hidden="true">{mark}</span>'
        f'<div><h3>{TITLES[kind]}</h3>{about}{why}</div></header>'
    )


def _about(result: Found, steps: int) -> str:
    """What was done, in a sentence or two."""
    trained, lobes = result["trained"], result.get("lobes") or []
    newest = result.get("newest")
    who = f"<b>{text.escape(newest)}</b> was really trained again" if newest else "An adapter was really trained"
    fell = ""
    if trained.get("loss_before") is not None and trained.get("loss_after") is not None:
        which = "loss on rows it learned" if trained.get("held_out") == 0 else "held-out loss"
        fell = f", {which} {trained['loss_before']:.2f} to {trained['loss_after']:.2f} nats per answer token"
    same = ""
    if result.get("passed"):
        count = {0: "", 1: " and the one lobe"}.get(len(lobes), f" and all {len(lobes)} lobes")
        same = f" Afterwards the base{count} {'are' if lobes else 'is'} the same to the last bit."
    rows = text.count(trained.get("rows") or 0, "row")
    early = " You stopped it early; what is shown was measured." if result.get("stopped") else ""
    return f"<p>{who} on the shared base ({rows}, {text.count(steps, 'step')}{fell}), then thrown away.{same}{early}</p>"


# ---- what was compared -----------------------------------------------------------------------------------------------


def _checks(result: Found) -> str:
    base, lobes = result.get("base") or {}, result.get("lobes") or []
    probes, tensors = text.count(base.get("probes") or 0, "prompt"), text.count(base.get("tensors") or 0, "tensor")
    hashes = _hash("before", base.get("hash_before")) + _hash("after", base.get("hash_after"))
    rows = [
        _check("Weights of the base", base.get("same"), f"sha256 over every byte of {tensors}", hashes),
        _check("What the base says", base.get("logits_same"), f"Logits on {probes}: {_apart(base)}"),
        _check("The base on disk", base.get("source_same"), ON_DISK.get(base.get("source_same"), ON_DISK[None])),
    ]
    if lobes:
        of_base = f"were trained on this base, {_code(base.get('fingerprint'))}"
        rows += [
            _counted("What the lobes say", lobes, "same", f"give the same logits on {probes}"),
            _counted("Files of the lobes", lobes, "files_same", "are what they were, and are what runs"),
            _counted("The base on their cards", lobes, "fingerprint_same", of_base),
        ]
    return f'<section><h4>What was compared</h4><ul class="fg-checks">{"".join(rows)}</ul></section>'


def _check(title: str, same: bool | None, about: str, more: str = "") -> str:
    """A line of the list. `about` is plain text; `more` is HTML."""
    return f"<li>{_mark(same)}<div><b>{text.escape(title)}</b><p>{text.escape(about)}</p>{more}</div></li>"


def _counted(title: str, lobes: Sequence[Found], key: str, about: str) -> str:
    asked = [lobe for lobe in lobes if lobe.get(key) is not None]
    good = sum(lobe[key] is True for lobe in asked)
    same = None if not asked else good == len(asked)
    return f"<li>{_mark(same)}<div><b>{title}</b><p>{good} of {len(asked)} {about}</p></div></li>"


def _mark(same: bool | None) -> str:
    """✓, ✗ or –, with the word for those who do not see it."""
    kind, mark, word = {True: ("good", GOOD, "same"), False: ("bad", BAD, "changed"), None: ("none", UNKNOWN, "not known")}[same]
    return f'<span class="fg-mark is-{kind}"><span aria-hidden="true">{mark}</span><span class="fg-hidden">{word}</span></span>'


def _apart(found: Found) -> str:
    """How far two sets of logits are from each other."""
    most = found.get("max_difference")
    if most == 0 and found.get("logits_same", found.get("same")):
        return "the same, bit for bit"
    if most is None:
        return "numbers that are not finite"
    kl = found.get("mean_kl")
    return f"up to {most:.3g} apart" + (f", KL {kl:.3g} nats" if kl is not None else "")


def _hash(when: str, value: Any) -> str:
    return f'<p class="fg-hash"><span>{when}</span>{_code(value)}</p>'


def _code(value: Any) -> str:
    """A hash, shortened; the whole of it on hover."""
    whole = str(value or UNKNOWN)
    shown = f"{whole[:12]}…{whole[-6:]}" if len(whole) > 24 else whole
    return f'<code title="{text.escape(whole)}">{text.escape(shown)}</code>'


# ---- lobes -----------------------------------------------------------------------------------------------------------


def _table(lobes: Sequence[Found], colours: Colours) -> str:
    body = "".join(_lobe(lobe, colours) for lobe in lobes)
    heads = "".join(f'<th scope="col">{title}</th>' for title in ("Lobe", "Logits", "Files", "Base"))
    return (
        f'<section><h4>Every lobe</h4><div class="fg-scroll"><table class="fg-lobes"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
    )


def _lobe(lobe: Found, colours: Colours) -> str:
    name, same = str(lobe.get("name", "")), lobe.get("same")
    said = "cannot be run" if same is None else "same" if same else _apart(lobe)
    return (
        f'<tr><th scope="row"><span class="fg-name" style="--c:{text.colour(colours.get(name))}"><i></i>'
        f'<span title="{text.escape(name)}">{text.escape(name)}</span></span></th>'
        f"<td>{_mark(same)} <span aria-hidden=\"true\">{text.escape(said)}</span></td><td>{_mark(lobe.get('files_same'))}</td>"
        f"<td>{_mark(lobe.get('fingerprint_same'))}</td></tr>"
    )


def _end(result: Found) -> str:
    base = result.get("base") or {}
    took = f"Took {text.duration(result.get('seconds'))}, of which hashing and asking {text.duration(base.get('seconds'))}."
    return f'<p class="fg-note">{took} Nothing of it was kept.</p>'
