"""One row as an example: a prompt, its answer, and what came before."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Number
from typing import Any

from .formats import column_name
from .rows import MAX_ROW_CHARS, BadRow, kind_of

Message = dict[str, str]
_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True, slots=True)
class Example:
    """One row to learn from: what was said so far, and the answer the lobe should give."""

    context: tuple[Message, ...]
    answer: str

    @property
    def prompt(self) -> str:
        """What the user said last."""
        return next((turn["content"] for turn in reversed(self.context) if turn["role"] == "user"), "")

    @property
    def key(self) -> bytes:
        """Equal for prompts that differ only in case and white space, on every machine."""
        turns = (f"{message['role']}\x1f{' '.join(message['content'].casefold().split())}" for message in self.context)
        return short_hash("\x1e".join(turns))


def example_of(cells: Mapping[str, Any], roles: Mapping[str, str]) -> Example:
    if "messages" in roles:
        example = _chat_example(cells.get(column_name(roles["messages"])), roles["messages"])
    elif "instruction" in roles:
        # Rows past those that were sniffed may bring the first input.
        parts = _cell(cells, roles["instruction"]), optional_cell(cells, roles.get("input", "input"))
        example = Example((new_message("user", "\n\n".join(filter(None, parts))),), _cell(cells, roles["answer"]))
    else:
        system = optional_cell(cells, roles["system"]) if "system" in roles else ""
        context = [new_message("system", system)] if system else []
        prompt = new_message("user", _cell(cells, roles["prompt"]))
        example = Example((*context, prompt), _cell(cells, roles["answer"]))
    if length_of(example) > MAX_ROW_CHARS:
        raise BadRow(f"the row is longer than {MAX_ROW_CHARS:,} characters")
    return example


def asked_only(cells: Mapping[str, Any], roles: Mapping[str, str]) -> Example:
    """`example_of`, which needs an answer, of a row that may have none."""
    answer = roles.get("answer")
    if "messages" in roles or (answer is not None and optional_cell(cells, answer)):
        return example_of(cells, roles)
    answer = answer or "\0 no answer"  # the name of no column
    return replace(example_of({**cells, column_name(answer): "none"}, {**roles, "answer": answer}), answer="")


def _chat_example(turns: object, column: str) -> Example:
    turns = turns.tolist() if hasattr(turns, "tolist") else turns
    if not isinstance(turns, (list, tuple)):
        raise BadRow(f"column {column!r} must be a list of messages, not {kind_of(turns)}")
    messages = [message for number, turn in enumerate(turns, 1) if (message := _chat_message(number, turn))]
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRow(f"column {column!r} must end with the assistant's message, since it is the answer to learn")
    if all(message["role"] != "user" for message in messages):
        raise BadRow(f"column {column!r} has no user message before the answer")
    return Example(tuple(messages[:-1]), messages[-1]["content"])


def _chat_message(number: int, turn: object) -> Message | None:
    """None for an empty system prompt, which many files carry as a placeholder."""
    if not isinstance(turn, Mapping):
        raise BadRow(f"message {number} is {kind_of(turn)}, not an object with role and content")
    said = turn.get("role") or turn.get("from")  # ShareGPT says from and value
    role = _ROLES.get(column_name(said))
    if role is None:
        raise BadRow(f"message {number} has the role {said!r}; only system, user and assistant can be learned")
    content = _text(turn["content"] if "content" in turn else turn.get("value"), f"message {number} ({role})")
    if not content and role != "system":
        raise BadRow(f"message {number} ({role}) is empty")
    return new_message(role, content) if content else None


def new_message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _cell(cells: Mapping[str, Any], column: str) -> str:
    text = optional_cell(cells, column)
    if not text:
        raise BadRow(f"column {column!r} is {'empty' if column_name(column) in cells else 'missing'}")
    return text


def optional_cell(cells: Mapping[str, Any], column: str) -> str:
    return _text(cells.get(column_name(column)), f"column {column!r}")


def _text(value: object, where: str) -> str:
    """The value as text, unchanged but for its type; "" for null, NaN and white space."""
    value = value.tolist() if hasattr(value, "tolist") else value  # numpy's own numbers and arrays
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, (str, Number)):
        raise BadRow(f"{where} holds {kind_of(value)}, not text")
    try:
        text = str(value)
        text.encode()
    except ValueError as error:  # half of a surrogate pair, or a number of 5,000 digits
        raise BadRow(f"{where} cannot be stored as text: {error}") from None
    return text if text.strip() else ""


def length_of(example: Example) -> int:
    return sum(len(message["content"]) for message in example.context) + len(example.answer)


def short_hash(text: str) -> bytes:
    # surrogatepass: a hash must exist for every string, also one that `read` would have refused
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def row_hash(example: Example) -> bytes:
    """Equal only for rows that are equal letter by letter."""
    turns = [[message["role"], message["content"]] for message in example.context]
    return short_hash(json.dumps([turns, example.answer]))


def plain_value(value: Any) -> object:
    """For JSON: numpy values as Python's, foreign mappings as dicts, dates and the like as text."""
    if isinstance(value, Mapping):
        return dict(value)
    return value.tolist() if hasattr(value, "tolist") else str(value)
