"""One answer and no rejected one, for ``sft``."""

from __future__ import annotations

from dataclasses import replace

from adadpo_lightning.data.formats.fields import (
    ANSWER_NAMES,
    answer_name,
    columns_of,
    found_columns,
    has,
    is_list,
    messages_of,
    only_answer,
    prompt_of,
    spoken,
    text_of,
)
from adadpo_lightning.data.formats.registry import register_format
from adadpo_lightning.data.schema import BadRow, PreferencePair, Row, as_messages


@register_format("answer", lambda row: has(row, "prompt") and answer_name(row) is not None and not has(row, "rejected"))
def answer(row: Row) -> PreferencePair:
    """One answer and no rejected one, for ``sft``: ``prompt`` and ``chosen``, ``completion`` or ``response``."""
    (prompt,) = columns_of(row, "prompt")
    name = answer_name(row)
    if name is None:
        raise BadRow("missing column", f"expected one of {', '.join(ANSWER_NAMES)}; found {found_columns(row)}")
    if not is_list(row[name]):
        pair = PreferencePair(prompt_of(prompt), text_of(row[name], name))
        return pair if isinstance(pair.prompt, str) else replace(pair, chosen=spoken(pair.chosen))
    found = messages_of(row[name], name)
    if len(found) > 1:
        return PreferencePair(found[:-1], only_answer(found[-1:]))
    return PreferencePair(as_messages(prompt_of(prompt), "user"), only_answer(found))
