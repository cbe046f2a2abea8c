"""One dataset row, in any of the shapes that preference data come in, to one typed pair.

A new shape is one `RowFormat` in `FORMATS`: a predicate on a row and a function that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adadpo_lightning.errors import UserError, did_you_mean

Message = dict[str, Any]
Row = Mapping[str, Any]

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


class BadRow(ValueError):
    """A row that holds no usable pair; `reason` is the short name under which it is counted."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}: {detail}")


@dataclass(frozen=True)
class PreferencePair:
    """A prompt and its answers, before tokenisation.

    Args:
        prompt: The conversation up to the answer (messages), or text as it is.
        chosen: The preferred answer, of the same kind as `prompt`.
        rejected: The other answer; None for rows that have one answer (``sft``).
        tools: Tool descriptions for the chat template.
        weight: Loss weight of the pair.
        margin: Target margin of the pair.
    """

    prompt: list[Message] | str
    chosen: list[Message] | str
    rejected: list[Message] | str | None
    tools: Any = None
    weight: float | None = None
    margin: float | None = None


@dataclass(frozen=True)
class RowFormat:
    """A shape of rows.

    Args:
        matches: Whether a row has this shape.
        read: The row's (prompt, chosen, rejected).
    """

    matches: Callable[[Row], bool]
    read: Callable[[Row], tuple[Any, Any, Any]]


def _has(row: Row, *names: str) -> bool:
    return all(row.get(name) is not None for name in names)


def _is_text(row: Row, *names: str) -> bool:
    return all(isinstance(row.get(name), str) for name in names)


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) for m in value)


def _single_answer(row: Row) -> str | None:
    return next((name for name in ("chosen", "completion", "response") if row.get(name) is not None), None)


def _read_conversations(row: Row) -> tuple[Any, Any, Any]:
    """Chosen and rejected are message lists: whole conversations, or the answers to `prompt`."""
    chosen, rejected = _messages(row, "chosen"), _messages(row, "rejected")
    if chosen[0]["role"] == "assistant" and _has(row, "prompt"):
        prompt = row["prompt"]
        return prompt if isinstance(prompt, str) else _messages(row, "prompt"), chosen, rejected
    shared = common_prefix_length([chosen, rejected])
    # The answer is what differs; at least the last message of each.
    shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    if shared == 0:
        raise BadRow("no shared prompt", "chosen and rejected share no first message")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _read_text(row: Row) -> tuple[Any, Any, Any]:
    return row["prompt"], row["chosen"], row["rejected"]


def _read_hh(row: Row) -> tuple[Any, Any, Any]:
    """Dialogues in the text form of Anthropic's HH data: the last assistant turn is the answer."""
    chosen, rejected = _hh_messages(row["chosen"]), _hh_messages(row["rejected"])
    return _read_conversations({"chosen": chosen, "rejected": rejected})


def _read_single(row: Row) -> tuple[Any, Any, Any]:
    name = str(_single_answer(row))
    answer = _messages(row, name) if _is_messages(row[name]) else row[name]
    prompt = row["prompt"]
    return prompt if isinstance(prompt, str) else _messages(row, "prompt"), answer, None


def _read_dialogue(row: Row) -> tuple[Any, Any, Any]:
    messages = _messages(row, "messages")
    return messages[:-1], messages[-1:], None


FORMATS: dict[str, RowFormat] = {
    "hh": RowFormat(
        lambda r: _is_text(r, "chosen", "rejected") and not _has(r, "prompt") and ASSISTANT in r["chosen"], _read_hh
    ),
    "conversations": RowFormat(lambda r: _is_messages(r.get("chosen")) and _has(r, "rejected"), _read_conversations),
    "text": RowFormat(lambda r: _has(r, "prompt", "chosen", "rejected"), _read_text),
    "single": RowFormat(
        lambda r: _has(r, "prompt") and not _has(r, "rejected") and _single_answer(r) is not None, _read_single
    ),
    "dialogue": RowFormat(lambda r: _is_messages(r.get("messages")) and not _has(r, "chosen"), _read_dialogue),
}


def detect_format(row: Row) -> str:
    """Name of the first format that a row has.

    Raises:
        UserError: If it has none; lists the columns found.
    """
    for name, fmt in FORMATS.items():
        if fmt.matches(row):
            return name
    raise UserError(
        "columns",
        "expected prompt, chosen and rejected (or chosen and rejected as whole conversations, or prompt and chosen for "
        f"sft), found the columns {sorted(row)}",
        "name them with the source's `columns` option, for example {prompt: question, chosen: good, rejected: bad}",
    )


def rename_columns(row: Row, columns: Mapping[str, str] | None) -> Row:
    """Apply a mapping from our names to the dataset's.

    Raises:
        UserError: If a column that it names is missing.
    """
    if not columns:
        return row
    for ours, theirs in columns.items():
        if theirs not in row:
            raise UserError(f"columns.{ours}", f"there is no column {theirs!r}", did_you_mean(theirs, list(row)))
    taken = set(columns.values())
    return {k: v for k, v in row.items() if k not in taken} | {ours: row[theirs] for ours, theirs in columns.items()}


def read_pair(row: Row, fmt: str) -> PreferencePair:
    """Read one row.

    Args:
        row: Column names (`prompt`, `chosen`, ...) to values.
        fmt: One of `FORMATS`.

    Raises:
        BadRow: If the row holds no usable pair.

    Example:
        >>> read_pair({"prompt": "2+2?", "chosen": "4", "rejected": "5"}, "text").chosen
        '4'
    """
    _check_columns(row, fmt)
    prompt, chosen, rejected = FORMATS[fmt].read(row)
    for name, value in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
        if not (isinstance(value, (str, list)) or (name == "rejected" and value is None)):
            raise BadRow("not text", f"{name} is {type(value).__name__}, expected text or messages")
    if _is_blank(chosen) or (rejected is not None and _is_blank(rejected)):
        raise BadRow("empty answer", "chosen" if _is_blank(chosen) else "rejected")
    if chosen == rejected:
        raise BadRow("identical answers", "chosen equals rejected")
    prompt = _with_system(prompt, row.get("system"))
    return PreferencePair(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        tools=row.get("tools"),
        weight=_number(row, "weight"),
        margin=_number(row, "margin"),
    )


def as_messages(text_or_messages: list[Message] | str, role: str) -> list[Message]:
    """A text as one message of a role; messages as they are."""
    return [{"role": role, "content": text_or_messages}] if isinstance(text_or_messages, str) else text_or_messages


def common_prefix_length(sequences: Sequence[Sequence[Any]]) -> int:
    """How many first items all sequences share."""
    length = 0
    for items in zip(*sequences, strict=False):
        if any(item != items[0] for item in items[1:]):
            break
        length += 1
    return length


def _check_columns(row: Row, fmt: str) -> None:
    wanted = {"hh": ("chosen", "rejected"), "conversations": ("chosen", "rejected"), "single": ("prompt",)}
    for name in wanted.get(fmt, ("prompt", "chosen", "rejected") if fmt == "text" else ("messages",)):
        if row.get(name) is None:
            raise BadRow("missing value", f"column {name!r} is missing or null; found {sorted(row)}")
    if fmt == "hh" and not _is_text(row, "chosen", "rejected"):
        raise BadRow("not text", "chosen and rejected are to be text")
    if fmt == "single" and _single_answer(row) is None:
        raise BadRow("missing value", "no answer in chosen, completion or response")


def _with_system(prompt: list[Message] | str, system: Any) -> list[Message] | str:
    if system is None or system == "":
        return prompt
    if not isinstance(system, str):
        raise BadRow("not text", f"system is {type(system).__name__}, expected text")
    return [{"role": "system", "content": system}, *as_messages(prompt, "user")]


def _is_blank(answer: list[Message] | str) -> bool:
    if isinstance(answer, str):
        return not answer.strip()
    return all(not (m.get("content") or "").strip() and not m.get("tool_calls") for m in answer)


def _messages(row: Row, name: str) -> list[Message]:
    value = row[name]
    if not _is_messages(value):
        raise BadRow("not messages", f"{name} is to be a non-empty list of messages with role and content")
    # Arrow fills keys that other rows have with null.
    messages = [{k: v for k, v in message.items() if v is not None} for message in value]
    for message in messages:
        if not isinstance(message.get("role"), str):
            raise BadRow("not messages", f"a message in {name} has no role; its keys are {sorted(message)}")
        if not isinstance(message.get("content"), str) and "tool_calls" not in message:
            raise BadRow("not text", f"a message in {name} has no text as content")
    return messages


def _hh_messages(text: str) -> list[Message]:
    """Split a dialogue of ``Human:`` and ``Assistant:`` turns into messages."""
    messages: list[Message] = []
    for turn in text.split(HUMAN)[1:]:
        human, *answers = turn.split(ASSISTANT)
        messages.append({"role": "user", "content": human.strip()})
        messages += [{"role": "assistant", "content": answer.strip()} for answer in answers]
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRow("not a dialogue", f"expected turns of {HUMAN!r} and {ASSISTANT!r}, the last by the assistant")
    return messages


def _number(row: Row, name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or abs(value) == float("inf"):
        raise BadRow("not a number", f"{name} is {value!r}, expected a finite number")
    if name == "weight" and value < 0:
        raise BadRow("not a number", f"weight is {value!r}, expected at least 0")
    return float(value)
