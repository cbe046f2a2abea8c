"""Chosen and rejected as whole conversations, as in UltraFeedback binarized, or as trajectories of several turns."""

from __future__ import annotations

from adadpo_lightning.data.formats.fields import columns_of, from_conversations, has, is_list, messages_of
from adadpo_lightning.data.formats.registry import register_format
from adadpo_lightning.data.schema import BadRow, PreferencePair, Row


@register_format("conversations", lambda row: has(row, "chosen", "rejected") and is_list(row["chosen"]))
def conversations(row: Row) -> PreferencePair:
    """Chosen and rejected are whole conversations: the messages that they share at the beginning are the prompt."""
    chosen, rejected = columns_of(row, "chosen", "rejected")
    chosen, rejected = messages_of(chosen, "chosen"), messages_of(rejected, "rejected")
    asked = row.get("prompt")
    # As text the prompt column repeats a part of the conversation; as messages it is its beginning.
    if not is_list(asked):
        return from_conversations(chosen, rejected)
    prompt = messages_of(asked, "prompt")
    if not chosen[: len(prompt)] == prompt == rejected[: len(prompt)]:
        raise BadRow("prompt differs", "chosen and rejected do not both begin with the messages of the prompt column")
    return from_conversations(chosen, rejected, len(prompt))
