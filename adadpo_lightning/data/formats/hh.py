"""Dialogues as text, as in Anthropic's HH data."""

from __future__ import annotations

import re

from adadpo_lightning.data.formats.fields import columns_of, from_conversations, has, text_of
from adadpo_lightning.data.formats.registry import register_format
from adadpo_lightning.data.schema import BadRow, Message, PreferencePair, Row


@register_format("hh", lambda row: has(row, "chosen", "rejected") and isinstance(row["chosen"], str))
def hh(row: Row) -> PreferencePair:
    """Dialogues in the text form of Anthropic's HH data, without a prompt column."""
    chosen, rejected = columns_of(row, "chosen", "rejected")
    return from_conversations(_hh_messages(text_of(chosen, "chosen")), _hh_messages(text_of(rejected, "rejected")))


def _hh_messages(dialogue: str) -> list[Message]:
    before, *turns = re.split(r"(?:^|\n\n)(Human|Assistant):", dialogue)
    if before.strip() or not turns:
        raise BadRow("not a dialogue", "expected turns that begin with '\\n\\nHuman:' and '\\n\\nAssistant:'")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(turns[::2], turns[1::2], strict=True)]
