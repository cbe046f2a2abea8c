"""Answers as lists of messages that follow the prompt."""

from __future__ import annotations

from collections.abc import Mapping

from adadpo_lightning.data.formats.fields import (
    columns_of,
    from_conversations,
    has,
    is_list,
    messages_of,
    prompt_of,
    without_nulls,
)
from adadpo_lightning.data.formats.registry import register_format
from adadpo_lightning.data.schema import PreferencePair, Row, as_messages


def _follows_prompt(row: Row) -> bool:
    """Whether the chosen answer is a list of messages that begins behind the prompt, not with it."""
    if not has(row, "prompt", "chosen", "rejected") or not is_list(row["chosen"]) or not row["chosen"]:
        return False
    asked, first = row["prompt"], row["chosen"][0]
    if not isinstance(first, Mapping) or first.get("role") != "assistant":
        return False
    # A conversation may itself begin with the assistant.
    return not is_list(asked) or without_nulls(row["chosen"][: len(asked)]) != without_nulls(asked)


@register_format("messages", _follows_prompt)
def messages(row: Row) -> PreferencePair:
    """Answers as lists of messages after the prompt, which is text or messages."""
    prompt, chosen, rejected = columns_of(row, "prompt", "chosen", "rejected")
    asked = as_messages(prompt_of(prompt), "user")
    better, worse = [*asked, *messages_of(chosen, "chosen")], [*asked, *messages_of(rejected, "rejected")]
    return from_conversations(better, worse, len(asked))
