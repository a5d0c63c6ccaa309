"""What a machine does with the base, as HTML. Pure: draws the JSON of experiment "speed"."""

from __future__ import annotations

from ..kit import text
from ..kit.html import Markup, html, joined
from ..kit.table import fact
from .parts import Colours, Result


def speed_card(result: Result, colours: Colours) -> Markup:
    """Facts in four groups, and a sentence on what answering together gains."""
    decoding, machine = result["decoding"], result["machine"]
    groups = {
        "Answers": [
            _rate("Base", decoding["base"]),
            _rate("One lobe", decoding["lobe"]),
            _rate(f"{result['chats']} chats together", decoding["together"]),
            fact("First token", text.milliseconds(result["first_token_ms"])),
        ],
        "Training and memory": [
            _rate("Training", result["training"]),
            fact("Base", text.size(result["base_bytes"]), "in memory"),
            fact("A lobe", text.size(result["lobe_bytes"]), "in memory, on average"),
        ],
        "The machine itself": [
            fact("Matrix product", f"{result['gflops']:,.0f}", "GFLOP/s, float32"),
            fact("Copy in memory", f"{result['copy_gib_s']:,.1f}", "GiB/s"),
        ],
        "Routing, a prompt never seen before": [
            fact(name, text.milliseconds(ms))
            for name, ms in sorted(result["routing"].items(), key=lambda pair: pair[1])
        ],
    }
    body = joined(
        html('<p class="router-group">{}</p><div class="train-facts">{}</div>', title, joined(facts))
        for title, facts in groups.items()
        if facts
    )
    return html(
        '<div class="ml-box"><div class="train-file"><b>{}, {}, {}</b></div>{}{}</div>',
        machine["processor"], text.count(int(machine["cores"] or 1), "core"), machine["device"],
        _gain(result), body,
    )  # fmt: skip


def _rate(title: str, value: float | None) -> Markup:
    words = text.NOTHING
    if text.is_number(value):
        words = f"{value:,.0f}"
    return fact(title, words, "tokens/s")


def _gain(result: Result) -> Markup:
    apart, together = (result["decoding"][name] for name in ("one after another", "together"))
    if not text.is_number(apart) or not text.is_number(together) or apart <= 0:
        return Markup()
    return html(
        '<p class="lab-about">{} chats answered together are {:.1f} times as fast as one after another.</p>',
        result["chats"], together / apart,
    )  # fmt: skip
