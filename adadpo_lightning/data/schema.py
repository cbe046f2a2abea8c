"""One dataset row, in any of the shapes that preference data come in, to one typed pair.

A new shape is one small function under `register_format`: it says which rows it matches and reads one of them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from adadpo_lightning.errors import UserError, did_you_mean

Message = dict[str, Any]
Row = Mapping[str, Any]

ANSWER_NAMES = ("chosen", "completion", "response")
# Why a row is left out without being an error of the data: equal answers teach nothing.
IDENTICAL = "chosen equals rejected"
# Arguments of `apply_chat_template` that this package sets itself, or that change what it returns.
RESERVED = frozenset(
    {
        "conversation",
        "messages",
        "tools",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    }
)


class BadRow(ValueError):
    """A row that holds no usable pair.

    Args:
        reason: Short name under which such rows are counted.
        detail: What is wrong with this one.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        super().__init__(f"{reason}: {detail}" if detail else reason)


@dataclass(frozen=True)
class PreferencePair:
    """A prompt and its answers, before tokenisation.

    Args:
        prompt: The conversation before the answer, as messages, or text as it stands in the row.
        chosen: The preferred answer: one assistant message, or text.
        rejected: The other answer; None for rows that have one answer (``sft``).
        system: System prompt from a column of its own.
        tools: Tool descriptions for the chat template.
        weight: Loss weight of the pair, at least 0.
        margin: Target margin of the pair.
        chat_template_kwargs: Variables of the chat template for this pair.
    """

    prompt: list[Message] | str
    chosen: Message | str
    rejected: Message | str | None = None
    system: str | None = None
    tools: list[Any] | None = None
    weight: float | None = None
    margin: float | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def prompt_key(self) -> str:
        """The same for any two rows that ask the same; what the split by prompt compares."""
        messages = as_messages(self.prompt, "user")
        words = [(m.get("role"), str(m.get("content") or "").strip(), str(m.get("tool_calls", ""))) for m in messages]
        return json.dumps([self.system, words])


class RowFormat(NamedTuple):
    """A shape of rows: a predicate on a row, and a function that reads the prompt and the answers of one."""

    matches: Callable[[Row], bool]
    read: Callable[[Row], PreferencePair]


FORMATS: dict[str, RowFormat] = {}


def register_format(name: str, matches: Callable[[Row], bool]) -> Callable[[Callable[[Row], PreferencePair]], Any]:
    """Add a dataset format; the ones registered first are tried first.

    Args:
        name: What users write as ``format``.
        matches: Whether a row has this shape.

    Example:
        >>> @register_format("example", lambda row: "question" in row)
        ... def example(row):
        ...     return PreferencePair(row["question"], row["good"], row["bad"])
        >>> read_pair({"question": "2+2?", "good": "4", "bad": "5"}, "example").chosen
        '4'
        >>> _ = FORMATS.pop("example")
    """

    def add(read: Callable[[Row], PreferencePair]) -> Callable[[Row], PreferencePair]:
        FORMATS[name] = RowFormat(matches, read)
        return read

    return add


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _has(row: Row, *names: str) -> bool:
    return all(row.get(name) is not None for name in names)


@register_format("text", lambda row: _has(row, "prompt", "chosen", "rejected") and not _is_list(row["chosen"]))
def text(row: Row) -> PreferencePair:
    """Answers as text; the prompt as text or messages."""
    prompt, chosen, rejected = _columns(row, "prompt", "chosen", "rejected")
    pair = PreferencePair(_prompt(prompt), _text(chosen, "chosen"), _text(rejected, "rejected"))
    if isinstance(pair.prompt, str):
        return pair
    return replace(pair, chosen=_spoken(pair.chosen), rejected=_spoken(pair.rejected))


@register_format(
    "messages",
    lambda row: _has(row, "prompt", "chosen", "rejected") and _is_list(row["chosen"]) and len(row["chosen"]) == 1,
)
def messages(row: Row) -> PreferencePair:
    """Answers as lists of one assistant message each; the prompt as text or messages."""
    prompt, chosen, rejected = _columns(row, "prompt", "chosen", "rejected")
    asked = as_messages(_prompt(prompt), "user")
    return PreferencePair(
        asked, _only_answer(_messages(chosen, "chosen")), _only_answer(_messages(rejected, "rejected"))
    )


@register_format("conversations", lambda row: _has(row, "chosen", "rejected") and _is_list(row["chosen"]))
def conversations(row: Row) -> PreferencePair:
    """Chosen and rejected are whole conversations, as in UltraFeedback binarized: they differ in the last message."""
    chosen, rejected = _columns(row, "chosen", "rejected")
    pair = _from_conversations(_messages(chosen, "chosen"), _messages(rejected, "rejected"))
    asked = row.get("prompt")
    # As text the prompt column repeats a part of the conversation; as messages it is its beginning.
    if _is_list(asked) and _messages(asked, "prompt") != pair.prompt:
        raise BadRow("prompt differs", "the prompt column is not what chosen and rejected have before their answer")
    return pair


@register_format("hh", lambda row: _has(row, "chosen", "rejected") and isinstance(row["chosen"], str))
def hh(row: Row) -> PreferencePair:
    """Dialogues in the text form of Anthropic's HH data, without a prompt column."""
    chosen, rejected = _columns(row, "chosen", "rejected")
    return _from_conversations(_hh_messages(_text(chosen, "chosen")), _hh_messages(_text(rejected, "rejected")))


@register_format(
    "answer", lambda row: _has(row, "prompt") and _answer_name(row) is not None and not _has(row, "rejected")
)
def answer(row: Row) -> PreferencePair:
    """One answer and no rejected one, for ``sft``: ``prompt`` and ``chosen``, ``completion`` or ``response``."""
    (prompt,) = _columns(row, "prompt")
    name = _answer_name(row)
    if name is None:
        raise BadRow("missing column", f"expected one of {', '.join(ANSWER_NAMES)}; found {_found(row)}")
    if not _is_list(row[name]):
        pair = PreferencePair(_prompt(prompt), _text(row[name], name))
        return pair if isinstance(pair.prompt, str) else replace(pair, chosen=_spoken(pair.chosen))
    found = _messages(row[name], name)
    if len(found) > 1:
        return PreferencePair(found[:-1], _only_answer(found[-1:]))
    return PreferencePair(as_messages(_prompt(prompt), "user"), _only_answer(found))


@register_format("dialogue", lambda row: _is_list(row.get("messages")))
def dialogue(row: Row) -> PreferencePair:
    """One conversation in ``messages``, for ``sft``: its last message is the answer."""
    found = _messages(_columns(row, "messages")[0], "messages")
    return PreferencePair(found[:-1], _only_answer(found[-1:]))


def detect_format(rows: Iterable[Row], where: str) -> str:
    """Name of the format that most of the given rows have; the one registered first if two have as many.

    Raises:
        UserError: If no row has any; lists the columns found.
    """
    rows = list(rows)
    counts = {name: sum(map(fmt.matches, rows)) for name, fmt in FORMATS.items()}
    best = max(counts, key=lambda name: counts[name])
    if counts[best]:
        return best
    columns = sorted({name for row in rows for name in row})
    raise UserError(
        where,
        "missing columns: expected prompt, chosen and rejected (or chosen and rejected as whole conversations; or for "
        f"sft prompt and chosen, or messages), found {', '.join(columns) or 'none'}",
        "map them with the source's columns option, such as {prompt: question, chosen: good, rejected: bad}",
    )


def rename_columns(row: Row, columns: Mapping[str, str] | None) -> Row:
    """Apply a mapping from this package's column names to the dataset's.

    Raises:
        BadRow: If a column that it names is missing.

    Example:
        >>> rename_columns({"question": "2+2?", "id": 7}, {"prompt": "question"})
        {'id': 7, 'prompt': '2+2?'}
    """
    if not columns:
        return row
    for theirs in columns.values():
        if theirs not in row:
            raise BadRow("missing column", f"there is no column {theirs!r}; {did_you_mean(theirs, row)}")
    taken = set(columns.values())
    return {k: v for k, v in row.items() if k not in taken} | {ours: row[theirs] for ours, theirs in columns.items()}


def read_pair(row: Row, fmt: str) -> PreferencePair:
    r"""Read one row.

    Args:
        row: Column names (``prompt``, ``chosen``, ...) to values.
        fmt: One of `FORMATS`.

    Raises:
        BadRow: If the row holds no usable pair.

    Example:
        >>> asked = "\n\nHuman: Hi\n\nAssistant: "
        >>> pair = read_pair({"chosen": asked + "Hello!", "rejected": asked + "Go."}, "hh")
        >>> pair.prompt, pair.chosen["content"]
        ([{'role': 'user', 'content': 'Hi'}], 'Hello!')
    """
    pair = FORMATS[fmt].read(row)
    for name in ("chosen", "rejected"):
        if _is_blank(getattr(pair, name)):
            raise BadRow("empty answer", f"{name} has no text")
    if pair.chosen == pair.rejected:
        raise BadRow(IDENTICAL)
    if not pair.prompt:
        raise BadRow("empty prompt")
    system = row.get("system")
    check_text([pair.prompt, pair.chosen, pair.rejected, system, row.get("tools"), row.get("chat_template_kwargs")])
    if system and not isinstance(pair.prompt, str) and pair.prompt[0]["role"] == "system":
        raise BadRow("two system prompts", "one in the system column and one in the messages")
    return replace(
        pair,
        system=_text(system, "system") if system else None,
        tools=_tools(row.get("tools")),
        chat_template_kwargs=_template_kwargs(row.get("chat_template_kwargs")),
        weight=_number(row, "weight", least=0.0),
        margin=_number(row, "margin"),
    )


def check_text(value: Any) -> None:
    """Refuse text that no tokenizer can read, at any depth.

    Raises:
        BadRow: If text holds half of a surrogate pair.
    """
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadRow("lone surrogate", f"character {error.start + 1} of {value[:40]!r} is half a pair") from error
    elif isinstance(value, Mapping):
        check_text([*value.keys(), *value.values()])
    elif _is_list(value):
        for item in value:
            check_text(item)


def as_messages(value: list[Message] | str, role: str) -> list[Message]:
    """Text as one message of a role; messages as they are."""
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _columns(row: Row, *names: str) -> list[Any]:
    for name in names:
        if row.get(name) is None:
            raise BadRow("missing column", f"{name!r} is missing or null; found {_found(row)}")
    return [row[name] for name in names]


def _found(row: Row) -> str:
    return ", ".join(name for name in row if row[name] is not None) or "none"


def _answer_name(row: Row) -> str | None:
    return next((name for name in ANSWER_NAMES if row.get(name) is not None), None)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow("not text", f"{name} is {type(value).__name__} {str(value)[:40]!r}, expected text")
    return value


def _prompt(value: Any) -> list[Message] | str:
    return _messages(value, "prompt") if _is_list(value) else _text(value, "prompt")


def _spoken(value: Any) -> Message:
    return {"role": "assistant", "content": value}


def _messages(value: Any, name: str) -> list[Message]:
    if not _is_list(value) or not value or not all(isinstance(message, Mapping) for message in value):
        raise BadRow("not messages", f"{name} is to be a non-empty list of messages with role and content")
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
    return [without_nulls(v) for v in value] if _is_list(value) else value


def _only_answer(found: list[Message]) -> Message:
    if len(found) != 1 or found[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in found)
        raise BadRow("no single answer", f"expected one assistant message after the prompt, got: {roles or 'nothing'}")
    return found[0]


def _from_conversations(chosen: list[Message], rejected: list[Message]) -> PreferencePair:
    if chosen[:-1] != rejected[:-1]:
        raise BadRow("no shared prompt", "chosen and rejected differ before their last message")
    return PreferencePair(chosen[:-1], _only_answer(chosen[-1:]), _only_answer(rejected[-1:]))


def _hh_messages(dialogue: str) -> list[Message]:
    before, *turns = re.split(r"(?:^|\n\n)(Human|Assistant):", dialogue)
    if before.strip() or not turns:
        raise BadRow("not a dialogue", "expected turns that begin with '\\n\\nHuman:' and '\\n\\nAssistant:'")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(turns[::2], turns[1::2], strict=True)]


def _is_blank(value: Message | str | None) -> bool:
    if isinstance(value, dict):
        return not (value.get("content") or "").strip() and not value.get("tool_calls")
    return value is not None and not value.strip()


def _from_json(value: Any, name: str) -> Any:
    """The value of a column that may hold JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as error:
        raise BadRow(f"bad {name}", f"{name} is text but no JSON: {error}") from error


def _tools(value: Any) -> list[Any] | None:
    value = _from_json(value, "tools")
    if not value:
        return None
    if not _is_list(value):
        raise BadRow("bad tools", f"expected a list, got {type(value).__name__}")
    tools: list[Any] = without_nulls(value)
    return tools


def _template_kwargs(value: Any) -> dict[str, Any] | None:
    value = without_nulls(_from_json(value, "chat_template_kwargs"))
    if not value:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise BadRow("bad chat_template_kwargs", f"expected an object, got {type(value).__name__}")
    if taken := sorted(RESERVED & set(value)):
        raise BadRow("bad chat_template_kwargs", f"{taken[0]!r} is set by this package")
    return dict(value)


def _number(row: Row, name: str, least: float = -math.inf) -> float | None:
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
