"""Results of the Lab as text in columns, for the command line. Pure: from a result's JSON to lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

NOTHING = "-"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be: the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    )


def number(value: Any, form: str = ".3f") -> str:
    return NOTHING if value is None or not math.isfinite(value) else format(value, form)


def report(result: Mapping[str, Any]) -> str:
    """A report card."""
    rows = [["router", "right", "of", "accuracy", "ECE", "to base", "ms"]]
    failed = []
    for name, found in result["routers"].items():
        if found["error"]:
            failed.append(f"{name}: {found['error']}")
            continue
        right, strangers = (number(found[key], ".1%") for key in ("accuracy", "strangers"))
        counts = [str(found["right"]), str(found["of"])]
        rows.append([name, *counts, right, number(found["ece"]), strangers, number(found["ms"], ".1f")])
    said = '"to base": prompts of no lobe that the base model got. ECE: expected calibration error, 15 bins.'
    return "\n".join([table(rows), *failed, said, *(result.get("notes") or ())])


def losses(result: Mapping[str, Any]) -> str:
    """A loss matrix, with what each lobe gains."""
    rows = [["loss, nats", *result["datasets"]]]
    for name, own in zip(["base", *result["lobes"]], result["losses"], strict=True):
        rows.append([name, *(number(value) for value in own)])
    rows += [[name, *(number(value) for value in result[name])] for name in ("routed", "oracle") if result.get(name)]
    lines = [table(rows), "gain over the base: " + ", ".join(f"{n} {number(g, '+.3f')}" for n, g in result["gain"].items())]
    if result["idle"]:
        lines.append(f"adds nothing: {', '.join(result['idle'])}")
    if result["share_of_oracle"] is not None:
        lines.append(f"routed: {result['share_of_oracle']:.1%} of what the right lobe gains")
    if result.get("task_share") is not None:
        lines.append(f"short answers: routed gets {result['task_share']:.1%} of the right lobe's exact matches")
    return "\n".join([*lines, *(result.get("notes") or ())])


def forgetting(result: Mapping[str, Any]) -> str:
    """A forgetting check."""
    base, contrast = result["base"], result["contrast"]
    lines = [
        "passed" if result["passed"] else "FAILED",
        f"base weights {base['hash_before'][:16]}: {'unchanged' if base['same'] else 'CHANGED'}; "
        f"base logits on {base['probes']} prompts: {'identical' if base['logits_same'] else 'DIFFERENT'}",
        *(f"{lobe['name']}: {'identical' if lobe['same'] else 'DIFFERENT'}" for lobe in result["lobes"]),
        *result["reasons"],
    ]
    if contrast:
        lines.append(
            f"one adapter trained on {contrast['first']} and then {contrast['second']} would have forgotten "
            f"{number(contrast['forgotten'])} nats of {contrast['first']}"
        )
    return "\n".join(lines)


def speed(result: Mapping[str, Any]) -> str:
    """What a machine does with a base."""
    machine, decoding = result["machine"], result["decoding"]
    rows = [
        ["matrix product", number(result["gflops"], ",.0f"), "GFLOP/s"],
        ["copy in memory", number(result["copy_gib_s"], ",.1f"), "GiB/s"],
        ["training", number(result["training"], ",.0f"), "tokens/s"],
        *([f"routing, {name}", number(ms, ",.1f"), "ms"] for name, ms in result["routing"].items()),
        ["first token", number(result["first_token_ms"], ",.0f"), "ms"],
        ["answers, base", number(decoding["base"], ",.0f"), "tokens/s"],
        ["answers, one lobe", number(decoding["lobe"], ",.0f"), "tokens/s"],
        [f"{result['chats']} chats one after another", number(decoding["one after another"], ",.0f"), "tokens/s"],
        [f"{result['chats']} chats together", number(decoding["together"], ",.0f"), "tokens/s"],
        ["memory, base", number(result["base_bytes"] / 2**20, ",.1f"), "MiB"],
        ["memory, a lobe", number(result["lobe_bytes"] and result["lobe_bytes"] / 2**20, ",.1f"), "MiB"],
    ]
    told = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, {machine['device']}"
    tricks = (f"{trick['name']}: {trick['reason'] or trick['changed']}" for trick in result["fast"])
    return "\n".join((f"{result['base']['name']} on {told}", table(rows), "made faster, or why not:", *tricks))


TABLES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "report": report,
    "losses": losses,
    "forgetting": forgetting,
    "speed": speed,
}
