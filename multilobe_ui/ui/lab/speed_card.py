"""What a machine does with the base, as HTML. Pure: draws the JSON of experiment "speed"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..kit import text
from ..kit.table import fact


def speed_card(result: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    """Facts in three groups, and a sentence on what answering together gains."""
    decoding, machine = result["decoding"], result["machine"]
    told = f"{machine['processor']}, {text.count(int(machine['cores'] or 1), 'core')}, {machine['device']}"
    groups = {
        "Answers": [
            fact("Base", *_rate(decoding["base"])),
            fact("One lobe", *_rate(decoding["lobe"])),
            fact(f"{result['chats']} chats together", *_rate(decoding["together"])),
            fact("First token", text.milliseconds(result["first_token_ms"])),
        ],
        "Training and memory": [
            fact("Training", *_rate(result["training"])),
            fact("Base", text.size(result["base_bytes"]), "in memory"),
            fact("A lobe", text.size(result["lobe_bytes"]), "in memory, on average"),
        ],
        "The machine itself": [
            fact("Matrix product", f"{result['gflops']:,.0f}", "GFLOP/s, float32"),
            fact("Copy in memory", f"{result['copy_gib_s']:,.1f}", "GiB/s"),
        ],
        "Routing, a prompt never seen before": [
            fact(name, text.milliseconds(ms)) for name, ms in sorted(result["routing"].items(), key=lambda pair: float(pair[1]))
        ],
    }
    body = "".join(
        f'<p class="router-group">{text.escape(title)}</p><div class="train-facts">{"".join(facts)}</div>'
        for title, facts in groups.items()
        if facts
    )
    head = f'<div class="train-file"><b>{text.escape(told)}</b></div>'
    return f'<div class="ml-box">{head}{_gain(result)}{body}</div>'


def _rate(value: float | None) -> tuple[str, str]:
    return (f"{value:,.0f}", "tokens/s") if text.is_number(value) else (text.NOTHING, "tokens/s")


def _gain(result: Mapping[str, Any]) -> str:
    apart, joined = (result["decoding"][name] for name in ("one after another", "together"))
    if not text.is_number(apart) or not text.is_number(joined) or apart <= 0:
        return ""
    many = f"{result['chats']} chats answered together are {joined / apart:.1f} times as fast as one after another."
    return f'<p class="lab-about">{text.escape(many)}</p>'
