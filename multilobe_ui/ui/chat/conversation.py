"""A conversation as plain values: messages with roles, and where in them a question or an answer is. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import ConfigError
from .reply import Reply

Message = dict[str, Any]


def plain(history: Sequence[Message] | None) -> list[Message]:
    """The conversation as {"role", "content"} with content a string, whatever Gradio or a
    stranger's request made of it."""
    messages = []
    for message in history or ():
        role = "user"
        if message.get("role") == "assistant":
            role = "assistant"
        messages.append({"role": role, "content": _text(message.get("content"))})
    return messages


def _text(content: object) -> str:
    """The text of a content, which is a part or a list of parts."""
    if isinstance(content, list):
        return "".join(map(_text_of_part, content))
    return _text_of_part(content)


def _text_of_part(part: object) -> str:
    """The text of a string or of {"text": ...}; "" for anything else, such as a picture."""
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        return str(part.get("text", ""))
    return ""


def conversation(history: Sequence[Message] | None, replies: Sequence[Reply]) -> list[Message]:
    """`plain(history)` with the answers as they were given: a browser that is busy may send an
    answer back half drawn."""
    messages, given = plain(history), iter(replies)
    for message in messages:
        if message["role"] == "assistant" and (reply := next(given, None)) is not None and reply.answer:
            message["content"] = reply.answer
    return messages


def answers_in(messages: Sequence[Message]) -> int:
    return sum(message["role"] == "assistant" for message in messages)


def place_of(index: Any) -> int:
    """Gradio says where as a number, or as a list that begins with it."""
    if isinstance(index, (list, tuple)):
        index = index[0]
    return int(index)


def question_at(messages: Sequence[Message], index: Any) -> int:
    """Place of the user's message at or before `index`.

    Raises:
        ConfigError: there is none.
    """
    for at in range(min(place_of(index), len(messages) - 1), -1, -1):
        if messages[at]["role"] == "user":
            return at
    raise ConfigError("There is no message to answer any more. Send one.")
