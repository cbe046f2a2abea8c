"""Prompt, chosen and rejected answer as text; the prompt may be messages."""

from __future__ import annotations

from dataclasses import replace

from adadpo_lightning.data.formats.fields import columns_of, has, is_list, prompt_of, spoken, text_of
from adadpo_lightning.data.formats.registry import register_format
from adadpo_lightning.data.schema import PreferencePair, Row


@register_format("text", lambda row: has(row, "prompt", "chosen", "rejected") and not is_list(row["chosen"]))
def text(row: Row) -> PreferencePair:
    """Answers as text; the prompt as text or messages."""
    prompt, chosen, rejected = columns_of(row, "prompt", "chosen", "rejected")
    pair = PreferencePair(prompt_of(prompt), text_of(chosen, "chosen"), text_of(rejected, "rejected"))
    if isinstance(pair.prompt, str):
        return pair
    return replace(pair, chosen=spoken(pair.chosen), rejected=spoken(pair.rejected))
