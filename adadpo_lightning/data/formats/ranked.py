"""A prompt and several answers with scores or ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from adadpo_lightning.data.formats.fields import (
    columns_of,
    found_columns,
    is_list,
    messages_of,
    number_of,
    only_answer,
    prompt_of,
    spoken,
    text_of,
)
from adadpo_lightning.data.formats.registry import register_format
from adadpo_lightning.data.schema import BadRow, Message, RankedList, Row

PROMPT_NAMES = ("prompt", "instruction", "question")
RESPONSE_NAMES = ("responses", "completions", "answers", "generations")
SCORE_NAMES = ("scores", "ratings")
RANK_NAMES = ("ranks", "ranking")


def name_in(row: Row, names: Sequence[str], what: str = "") -> str | None:
    """The only one of several columns that the row has; None if it has none.

    Raises:
        BadRow: If it has two of them, or none and `what` says what is needed.
    """
    found = [name for name in names if row.get(name) is not None]
    if len(found) > 1:
        raise BadRow("ambiguous columns", f"{' and '.join(map(repr, found))} are both there: which has the {what}?")
    if not found and what:
        raise BadRow("missing column", f"expected one of {', '.join(names)}; found {found_columns(row)}")
    return found[0] if found else None


def _has_list(row: Row, names: Sequence[str]) -> bool:
    return any(is_list(row.get(name)) for name in names)


def _is_ranked(row: Row) -> bool:
    asked = any(row.get(name) is not None for name in PROMPT_NAMES)
    return asked and _has_list(row, RESPONSE_NAMES) and _has_list(row, (*SCORE_NAMES, *RANK_NAMES))


@register_format("ranked", _is_ranked)
def ranked(row: Row) -> RankedList:
    """A prompt, a list of responses, and a list of scores (the highest is the best) or of ranks (1 is the best)."""
    prompt = row[str(name_in(row, PROMPT_NAMES, "prompt"))]
    name = str(name_in(row, RESPONSE_NAMES, "responses"))
    scores, ranks = (name_in(row, names) for names in (SCORE_NAMES, RANK_NAMES))
    if scores is None and ranks is None:
        columns_of(row, SCORE_NAMES[0])
    responses = _listed(row, name)
    numbers = {column: numbers_of(row, column) for column in (scores, ranks) if column is not None}
    for column, values in numbers.items():
        if len(values) != len(responses):
            raise BadRow("uneven lists", f"{len(responses)} {name} and {len(values)} {column}")
    if ranks is not None:
        numbers[ranks] = [-rank for rank in numbers[ranks]]
    found = list(numbers.values())
    if len(found) > 1 and not _agree(*found):
        raise BadRow("scores contradict ranks", f"{scores} and {ranks} order the {name} differently")
    answers = [response_of(response, f"{name}[{i}]") for i, response in enumerate(responses)]
    return ranked_list(prompt, answers, found[0])


def ranked_list(prompt: Any, answers: Sequence[str | Message], scores: list[float]) -> RankedList:
    """A ranked list of answers that are text or messages, from a prompt that is text or messages."""
    asked = prompt_of(prompt)
    if isinstance(asked, str) and all(isinstance(answer, str) for answer in answers):
        return RankedList(asked, list(answers), scores)
    return RankedList(asked, [spoken(answer) if isinstance(answer, str) else answer for answer in answers], scores)


def response_of(value: Any, name: str) -> str | Message:
    """One response: text, an assistant message, or a list of it.

    Raises:
        BadRow: If it is something else.
    """
    if isinstance(value, Mapping):
        value = [value]
    return only_answer(messages_of(value, name)) if is_list(value) else text_of(value, name)


def numbers_of(row: Row, name: str) -> list[float]:
    """A column that is a list of finite numbers.

    Raises:
        BadRow: If it is something else.
    """
    named = {f"{name}[{i}]": value for i, value in enumerate(_listed(row, name))}
    numbers = [number_of(named, key) for key in named]
    if None in numbers:
        raise BadRow("bad number", f"{name}[{numbers.index(None)}] is empty, expected a number")
    return [number for number in numbers if number is not None]


def _listed(row: Row, name: str) -> Sequence[Any]:
    value = row[name]
    if not is_list(value):
        raise BadRow("not a list", f"{name} is {type(value).__name__} {str(value)[:40]!r}, expected a list")
    listed: Sequence[Any] = value
    return listed


def _agree(first: list[float], second: list[float]) -> bool:
    """Whether no two answers are in a different order."""
    both = sorted(zip(first, second, strict=True))
    return all(b <= d for (a, b), (c, d) in pairwise(both) if a < c)
