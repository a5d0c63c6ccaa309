"""The card of the speed measurement: every number of the JSON is on it, and a name is only text."""

from __future__ import annotations

import re
from typing import Any

from multilobe_ui.ui.lab.speed_card import speed_card


def result(**more: Any) -> dict[str, Any]:
    return {
        "machine": {"processor": "A <b>CPU</b>", "cores": 2, "threads": 2, "device": "cpu"},
        "base": {"name": "builtin"},
        "gflops": 87.4,
        "copy_gib_s": 9.3,
        "training": 1234.6,
        "routing": {"hybrid": 14.2, "keyword": 0.21},
        "decoding": {"base": 120.4, "lobe": 110.2, "one after another": 100.0, "together": 430.0},
        "first_token_ms": 21.0,
        "base_bytes": 40_400_000,
        "lobe_bytes": 2_300_000.0,
        "chats": 8,
        "stopped": False,
        "seconds": 30.0,
        **more,
    }


def facts(html: str) -> dict[str, str]:
    return dict(re.findall(r'<div class="train-fact"><span>(.*?)</span><b>(.*?)</b>', html))


def test_every_number_is_there() -> None:
    html = speed_card(result(), {})
    found = facts(html)
    assert found["One lobe"] == "110" and found["8 chats together"] == "430" and found["Training"] == "1,235"
    assert found["First token"] == "21 ms" and found["A lobe"] == "2.3 MB" and found["Matrix product"] == "87"
    assert found["keyword"] == "0.2 ms" and list(found).index("keyword") < list(found).index("hybrid"), "the quickest first"
    assert "8 chats answered together are 4.3 times as fast" in html
    assert "A &lt;b&gt;CPU&lt;/b&gt;, 2 cores, cpu" in html


def test_what_was_not_measured_is_a_dash() -> None:
    nothing = dict.fromkeys(("base", "lobe", "one after another", "together"))
    html = speed_card(result(decoding=nothing, training=None, routing={}, lobe_bytes=None, first_token_ms=None), {})
    found = facts(html)
    assert found["One lobe"] == found["A lobe"] == found["First token"] == found["Training"] == "–"
    assert "times as fast" not in html and "Routing" not in html
