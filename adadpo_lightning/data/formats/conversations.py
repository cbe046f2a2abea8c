"""Chosen and rejected as whole conversations, as in UltraFeedback binarized."""

from __future__ import annotations

from adadpo_lightning.data.formats.fields import columns_of, from_conversations, has, is_list, messages_of
from adadpo_lightning.data.formats.registry import register_format
from adadpo_lightning.data.schema import BadRow, PreferencePair, Row


@register_format("conversations", lambda row: has(row, "chosen", "rejected") and is_list(row["chosen"]))
def conversations(row: Row) -> PreferencePair:
    """Chosen and rejected are whole conversations, as in UltraFeedback binarized: they differ in the last message."""
    chosen, rejected = columns_of(row, "chosen", "rejected")
    pair = from_conversations(messages_of(chosen, "chosen"), messages_of(rejected, "rejected"))
    asked = row.get("prompt")
    # As text the prompt column repeats a part of the conversation; as messages it is its beginning.
    if is_list(asked) and messages_of(asked, "prompt") != pair.prompt:
        raise BadRow("prompt differs", "the prompt column is not what chosen and rejected have before their answer")
    return pair
