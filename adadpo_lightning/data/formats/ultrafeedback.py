"""Completions that carry their scores, as in UltraFeedback before it was made into pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adadpo_lightning.data.formats.fields import columns_of, is_list, text_of
from adadpo_lightning.data.formats.ranked import PROMPT_NAMES, name_in, numbers_of, ranked_list
from adadpo_lightning.data.formats.registry import register_format
from adadpo_lightning.data.schema import BadRow, RankedList, Row


def _is_ultrafeedback(row: Row) -> bool:
    found: Any = row.get("completions")
    asked = any(row.get(name) is not None for name in PROMPT_NAMES)
    return asked and is_list(found) and all(isinstance(item, Mapping) and "overall_score" in item for item in found)


@register_format("ultrafeedback", _is_ultrafeedback)
def ultrafeedback(row: Row) -> RankedList:
    """``instruction``, and ``completions`` with ``response`` and ``overall_score`` (the highest is the best)."""
    prompt = row[str(name_in(row, PROMPT_NAMES, "prompt"))]
    (completions,) = columns_of(row, "completions")
    items = completions if is_list(completions) else [completions]
    answers = []
    for i, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise BadRow("not completions", f"completions[{i}] is {type(item).__name__}, expected an object")
        (response,) = columns_of(item, "response")
        answers.append(text_of(response, f"completions[{i}].response"))
    scores = {"overall_score": [item.get("overall_score") for item in items]}
    return ranked_list(prompt, answers, numbers_of(scores, "overall_score"))
