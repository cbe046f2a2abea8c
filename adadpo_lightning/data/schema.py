"""A preference pair before tokenization, and the error for unusable rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
Row = Mapping[str, Any]
Answer = Message | list[Message] | str

# Why a row is left out without being an error of the data: equal answers teach nothing.
IDENTICAL = "chosen equals rejected"
NO_PAIR = "ranked list without a pair"
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
    """A row without a usable pair.

    Args:
        reason: Short name under which such rows are counted.
        detail: What is wrong with this one.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        super().__init__(f"{reason}: {detail}" if detail else reason)


TOO_DEEP = BadRow("nested too deep", "a value holds too many levels")


@dataclass(frozen=True)
class PreferencePair:
    """A prompt and its answers, before tokenization.

    Args:
        prompt: The conversation before the answer, as messages, or text as in the row.
        chosen: The preferred answer: one assistant message, text, or several messages of which the first and the last
            are the assistant's.
        rejected: The other answer; None for rows that have one answer (``sft``).
        system: System prompt from a column of its own.
        tools: Tool descriptions for the chat template.
        weight: Loss weight of the pair, at least 0.
        margin: Target margin of the pair.
        chat_template_kwargs: Variables of the chat template for this pair.
        answer_indices: Positions of the chosen and the rejected answer in the ranked list that the pair was made from;
            None for a row that is a pair.
        shared_turns: Whether `prompt` ends with turns that the row gives as the beginning of both answers.
    """

    prompt: list[Message] | str
    chosen: Answer
    rejected: Answer | None = None
    system: str | None = None
    tools: list[Any] | None = None
    weight: float | None = None
    margin: float | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    answer_indices: tuple[int, int | None] | None = None
    shared_turns: bool = False

    @property
    def answers(self) -> list[Answer]:
        """The answers that there are, the chosen one first."""
        return [answer for answer in (self.chosen, self.rejected) if answer is not None]

    @property
    def prompt_key(self) -> str:
        """Key that is equal for rows with the same prompt, for the split by prompt."""
        messages = as_messages(self.prompt, "user")
        words = [(m.get("role"), str(m.get("content") or "").strip(), str(m.get("tool_calls", ""))) for m in messages]
        return json.dumps([self.system, words])


@dataclass(frozen=True)
class RankedList:
    """A prompt and several answers with scores; `data.lists` makes it into pairs.

    Args:
        prompt: As in `PreferencePair`.
        answers: The answers, each one assistant message, or all of them text.
        scores: The score of each answer; the highest is the best. Ranks are negated.
        system: As in `PreferencePair`.
        tools: As in `PreferencePair`.
        weight: Loss weight of each pair, at least 0.
        margin: Target margin of each pair.
        chat_template_kwargs: As in `PreferencePair`.
    """

    prompt: list[Message] | str
    answers: list[Message | str]
    scores: list[float]
    system: str | None = None
    tools: list[Any] | None = None
    weight: float | None = None
    margin: float | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def check_text(value: Any) -> None:
    """Reject text that tokenizers cannot read, at any depth.

    Raises:
        BadRow: If text holds half of a surrogate pair.
    """
    if value is None:
        return
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadRow("lone surrogate", f"character {error.start + 1} of {value[:40]!r} is half a pair") from error
    elif isinstance(value, Mapping):
        check_text([*value.keys(), *value.values()])
    elif isinstance(value, Sequence):
        for item in value:
            check_text(item)


def as_messages(value: list[Message] | str, role: str) -> list[Message]:
    """Wrap a text as one message of a role; messages are returned unchanged."""
    return [{"role": role, "content": value}] if isinstance(value, str) else value
