"""Read and check the columns of a row; what formats are made of."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from adadpo_lightning.data.schema import RESERVED, Answer, BadRow, Message, PreferencePair, Row

ANSWER_NAMES = ("chosen", "completion", "response")


def is_list(value: Any) -> bool:
    """Whether a value is a list, as JSON and Arrow have them."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def has(row: Row, *names: str) -> bool:
    """Whether columns are there and not null."""
    return all(row.get(name) is not None for name in names)


def columns_of(row: Row, *names: str) -> list[Any]:
    """Values of columns.

    Raises:
        BadRow: If one is missing or null.
    """
    for name in names:
        if row.get(name) is None:
            raise BadRow("missing column", f"{name!r} is missing or null; found {found_columns(row)}")
    return [row[name] for name in names]


def found_columns(row: Row) -> str:
    """The columns that are not null, for error messages."""
    return ", ".join(name for name in row if row[name] is not None) or "none"


def answer_name(row: Row) -> str | None:
    """The first of `ANSWER_NAMES` that the row has; None if it has none."""
    return next((name for name in ANSWER_NAMES if row.get(name) is not None), None)


def text_of(value: Any, name: str) -> str:
    """A value that must be text.

    Raises:
        BadRow: If it is not.
    """
    if not isinstance(value, str):
        raise BadRow("not text", f"{name} is {type(value).__name__} {str(value)[:40]!r}, expected text")
    return value


def prompt_of(value: Any) -> list[Message] | str:
    """A prompt that is text or messages."""
    return messages_of(value, "prompt") if is_list(value) else text_of(value, "prompt")


def spoken(value: Any) -> Message:
    """An answer as the assistant's message."""
    return {"role": "assistant", "content": value}


def messages_of(value: Any, name: str) -> list[Message]:
    """A value that must be a list of messages, without its nulls.

    Raises:
        BadRow: If it is not, or a message lacks its role or text.
    """
    if not is_list(value) or not value or not all(isinstance(message, Mapping) for message in value):
        raise BadRow("not messages", f"{name} must be a non-empty list of messages with role and content")
    found: list[Message] = without_nulls(value)
    for message in found:
        if not isinstance(message.get("role"), str):
            raise BadRow("not messages", f"a message in {name} has no role; its keys are {', '.join(message)}")
        if not isinstance(message.get("content"), str) and "tool_calls" not in message:
            raise BadRow("not text", f"a message in {name} has no text as its content")
    return found


def without_nulls(value: Any) -> Any:
    """Drop keys whose value is null, at any depth: Arrow fills in the keys that other rows have."""
    if isinstance(value, Mapping):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if is_list(value) else value


def only_answer(found: list[Message]) -> Message:
    """The only message, which must be the assistant's.

    Raises:
        BadRow: If it is not.
    """
    if len(found) != 1 or found[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in found)
        raise BadRow("no single answer", f"expected one assistant message after the prompt, got: {roles or 'nothing'}")
    return found[0]


def from_conversations(chosen: list[Message], rejected: list[Message], asked: int | None = None) -> PreferencePair:
    """A pair from two conversations: what they share at their beginning is the prompt, the rest are the answers.

    Args:
        chosen: The preferred conversation.
        rejected: The other one.
        asked: Number of messages that the row gives as the prompt, equal in both; None if it gives none.

    Raises:
        BadRow: If one of them is the beginning of the other, or an answer would not begin and end with an assistant
            message.

    Example:
        >>> hi, a, b = ({"role": role, "content": role} for role in ("user", "assistant", "tool"))
        >>> pair = from_conversations([hi, a, b, a], [hi, a | {"content": "no"}])
        >>> len(pair.prompt), len(pair.chosen), pair.rejected["content"]
        (1, 3, 'no')
    """
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if shared is None:
        if len(chosen) != len(rejected):
            raise BadRow("no shared prompt", "one of chosen and rejected is the beginning of the other")
        shared = len(chosen) - 1
    answers = chosen[shared:], rejected[shared:]
    if asked is None and len({answer[0]["role"] for answer in answers} | {"assistant"}) > 1:
        roles = " and ".join(answer[0]["role"] for answer in answers)
        raise BadRow("no shared prompt", f"message {shared + 1} is where they part, by {roles}, not by the assistant")
    better, worse = map(answer_of, answers)
    return PreferencePair(chosen[:shared], better, worse, shared_turns=asked is not None and shared > asked)


def answer_of(found: list[Message]) -> Answer:
    """An answer of one or several messages.

    Raises:
        BadRow: If its first or last message is not the assistant's.
    """
    if {found[0]["role"], found[-1]["role"]} != {"assistant"}:
        roles = ", ".join(message["role"] for message in found)
        raise BadRow("no single answer", f"an answer must begin and end with an assistant message, got: {roles}")
    return found[0] if len(found) == 1 else found


def is_blank(value: Answer | None) -> bool:
    """Whether an answer, or one of its assistant messages, has neither text nor tool calls."""
    if isinstance(value, list):
        return any(is_blank(message) for message in value if message["role"] == "assistant")
    if isinstance(value, dict):
        return not (value.get("content") or "").strip() and not value.get("tool_calls")
    return value is not None and not value.strip()


def from_json(value: Any, name: str) -> Any:
    """The value of a column that may hold JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as error:
        raise BadRow(f"bad {name}", f"{name} is text but no JSON: {error}") from error


def tools_of(value: Any) -> list[Any] | None:
    """The tools column: a list, or its JSON text.

    Raises:
        BadRow: If it is neither.
    """
    value = from_json(value, "tools")
    if not value:
        return None
    if not is_list(value):
        raise BadRow("bad tools", f"expected a list, got {type(value).__name__}")
    tools: list[Any] = without_nulls(value)
    return tools


def template_kwargs_of(value: Any) -> dict[str, Any] | None:
    """The chat_template_kwargs column: an object, or its JSON text.

    Raises:
        BadRow: If it is neither, or sets what this package sets itself.
    """
    value = without_nulls(from_json(value, "chat_template_kwargs"))
    if not value:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise BadRow("bad chat_template_kwargs", f"expected an object, got {type(value).__name__}")
    if taken := sorted(RESERVED & set(value)):
        raise BadRow("bad chat_template_kwargs", f"{taken[0]!r} is set by this package")
    return dict(value)


def number_of(row: Row, name: str, least: float = -math.inf) -> float | None:
    """A column that may hold a number; None if it is empty.

    Raises:
        BadRow: If it holds anything else, or a number below `least`.
    """
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < least:
        raise BadRow("bad number", f"{name} is {value!r}, expected a finite number" + (" of 0 or more" * (least == 0)))
    return number
