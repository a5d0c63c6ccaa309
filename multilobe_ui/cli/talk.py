"""Commands that ask: a chat, and who would answer."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..settings import SamplingConfig
from .options import Commands, add_mixing, add_settings, mixing_of, pairs_and_prompt, settings_from, weights_of_pairs
from .work import loaded_model

if TYPE_CHECKING:
    from ..routers import RoutingDecision


def add(commands: Commands) -> None:
    talk = commands.add("chat", chat)
    talk.add_argument("prompt", nargs="*", help="without one, a conversation")
    talk.add_argument("--lobe", help="the lobe that answers (default: the router chooses)")
    talk.add_argument("--base-only", action="store_true", help="no lobe")
    talk.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="LOBE=WEIGHT",
        help="a mixture by hand, such as python=0.6 maths=0.4",
    )
    add_mixing(talk)
    add_settings(talk, SamplingConfig)

    ask = commands.add("route", route)
    ask.add_argument("prompt", nargs="*", help="without one, a line each from standard input")

    add_mixing(ask)


def chat(options: argparse.Namespace) -> None:
    """Answer one prompt, or talk until end of input."""
    pairs, prompt = pairs_and_prompt(options.weights, options.prompt)
    by_hand, sampling, mixing = weights_of_pairs(pairs), settings_from(options, SamplingConfig), mixing_of(options)
    model = loaded_model(options)
    from ..generation.decode import stream_text

    def answer(messages: list[dict[str, str]]) -> str:
        weights, lobe = by_hand, options.lobe
        if options.base_only:
            weights = {}
        if weights is not None:
            lobe = None
        if options.json:
            how: dict[str, Any] = {"weights": weights, "mixing": mixing, **asdict(sampling)}
            text, details = model.generate(messages, lobe, return_metadata=True, **how)
            details["decision"] = details["decision"].to_json()
            print(json.dumps({"prompt": messages[-1]["content"], "answer": text, **details}, ensure_ascii=False))
            return text
        decision = model.answers.decide(messages, lobe, weights, mixing=mixing)
        speaker = f"[{_who(decision)}]"
        if not decision.weights:  # no lobe fits, or the router has not been fitted
            speaker += f" {decision.reason}"
        print(speaker, file=sys.stderr)
        pieces = []
        for piece in stream_text(model.bank, model.answers.request(messages, decision, sampling, mixing=mixing)):
            pieces.append(piece)
            print(piece, end="", flush=True)
        print()
        return "".join(pieces).strip()

    if prompt:
        answer([{"role": "user", "content": _not_empty(" ".join(prompt))}])
        return
    messages: list[dict[str, str]] = []
    while (line := _read_line("you> ")) is not None:
        if line.strip():
            messages.append({"role": "user", "content": line})
            messages.append({"role": "assistant", "content": answer(messages)})


def route(options: argparse.Namespace) -> None:
    """Say which lobe would answer each prompt (from the arguments, else a line each from standard input)."""
    prompts = [_not_empty(prompt) for prompt in options.prompt]
    model, mixing = loaded_model(options), mixing_of(options)
    for prompt in prompts or (line.rstrip("\n") for line in sys.stdin):
        decision = model.route(prompt, mixing=mixing)
        if options.json:
            print(json.dumps({"prompt": prompt, **decision.to_json()}, ensure_ascii=False))
        else:
            print(f"{_who(decision)}\t{_sure(decision)}\t{decision.elapsed_ms:.0f} ms\t{prompt}")


def _who(decision: RoutingDecision) -> str:
    """The lobe that answers, or the lobes with their weights."""
    if len(decision.weights) > 1:
        return " + ".join(f"{name} {weight:.0%}" for name, weight in decision.weights.items())
    return decision.chosen or "base"


def _sure(decision: RoutingDecision) -> str:
    """What the numbers beside are: how sure the router is of its choice, or the weights of a mix,
    which are no certainty."""
    from ..ui.kit.text import estimated

    if decision.per_token:
        return "mean weights"
    if not estimated(decision):
        return "-"
    if decision.chosen is None:
        return f"{decision.confidence:.0%} sure that no lobe fits"
    if len(decision.weights) > 1:
        return f"{decision.confidence:.0%} sure of {decision.chosen}"
    return f"{decision.confidence:.0%} sure of the choice"


def _not_empty(prompt: str) -> str:
    if not prompt.strip():
        raise ConfigError("The prompt is empty: write a question with at least one character.")
    return prompt


def _read_line(prompt: str) -> str | None:
    try:
        return input(prompt if sys.stdin.isatty() else "")
    except EOFError:
        return None
