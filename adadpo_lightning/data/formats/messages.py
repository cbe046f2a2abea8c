"""Answers as lists of one assistant message each."""

from __future__ import annotations

from adadpo_lightning.data.formats.fields import columns_of, has, is_list, messages_of, only_answer, prompt_of
from adadpo_lightning.data.formats.registry import register_format
from adadpo_lightning.data.schema import PreferencePair, Row, as_messages


@register_format(
    "messages",
    lambda row: has(row, "prompt", "chosen", "rejected") and is_list(row["chosen"]) and len(row["chosen"]) == 1,
)
def messages(row: Row) -> PreferencePair:
    """Answers as lists of one assistant message each; the prompt as text or messages."""
    prompt, chosen, rejected = columns_of(row, "prompt", "chosen", "rejected")
    asked = as_messages(prompt_of(prompt), "user")
    return PreferencePair(
        asked, only_answer(messages_of(chosen, "chosen")), only_answer(messages_of(rejected, "rejected"))
    )
