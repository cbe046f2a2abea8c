"""One conversation in ``messages``, for ``sft``."""

from __future__ import annotations

from adadpo_lightning.data.formats.fields import columns_of, is_list, messages_of, only_answer
from adadpo_lightning.data.formats.registry import register_format
from adadpo_lightning.data.schema import PreferencePair, Row


@register_format("dialogue", lambda row: is_list(row.get("messages")))
def dialogue(row: Row) -> PreferencePair:
    """One conversation in ``messages``, for ``sft``: its last message is the answer."""
    found = messages_of(columns_of(row, "messages")[0], "messages")
    return PreferencePair(found[:-1], only_answer(found[-1:]))
