"""Comparisons: two answers to one prompt, matched from two files, with the difficulty of the prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.errors import UserError
from adadpo_lightning.generation.prompts import read_objects
from adadpo_lightning.generation.responses import read_number

if TYPE_CHECKING:
    from adadpo_lightning.evaluation.options import LengthUnit
    from adadpo_lightning.generation.responses import Response


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt: the model's, and the opponent's."""

    model: Response
    baseline: Response


def match_responses(responses: Sequence[Response], baseline: Sequence[Response]) -> list[Comparison]:
    """Match two files by prompt; of a repeated prompt the first with the first, and so on.

    Raises:
        UserError: If a response has no counterpart. The baseline may have answers to further prompts.
    """
    waiting = defaultdict(list)
    for response in reversed(baseline):
        waiting[response.prompt].append(response)
    matched = [
        (response, waiting[response.prompt].pop() if waiting[response.prompt] else None) for response in responses
    ]
    lonely = [response for response, opponent in matched if opponent is None]
    if lonely:
        raise UserError(
            "baseline",
            f"has no answer to {len(lonely)} of {len(responses)} prompts, the first: {lonely[0].prompt[:80]!r}",
            "answer the same prompts with both models",
        )
    return [Comparison(response, opponent) for response, opponent in matched if opponent is not None]


def read_difficulties(path: str) -> dict[int | str, float]:
    """Difficulty of each instruction, from rows with ``instruction_difficulty`` and ``instruction`` or ``index``.

    Args:
        path: File, such as AlpacaEval's instruction_difficulty.csv; an index is the number of the prompt, from 0.

    Raises:
        UserError: If a row lacks one of these; names file and row.
    """
    table: dict[int | str, float] = {}
    for where, row in read_objects(SourceConfig(path)):
        value = read_number(row, "instruction_difficulty", where)
        key = row["instruction"] if row.get("instruction") is not None else _index(row, where)
        if value is None or not isinstance(key, (str, int)):
            raise UserError(where, f"expected instruction_difficulty and instruction or index, found {dict(row)}")
        table[key] = value
    return table


def with_difficulties(comparisons: Sequence[Comparison], table: Mapping[int | str, float]) -> list[Comparison]:
    """Comparisons with the difficulties of a table.

    Raises:
        UserError: If a prompt has none.
    """
    found = [table.get(pair.model.prompt, table.get(i)) for i, pair in enumerate(comparisons)]
    if None in found:
        raise UserError(
            "difficulty",
            f"has no value for {found.count(None)} of {len(found)} prompts",
            "give the difficulty of all prompts",
        )
    return [
        replace(pair, model=replace(pair.model, difficulty=value))
        for pair, value in zip(comparisons, found, strict=True)
    ]


def difficulties(pairs: Sequence[Comparison]) -> list[float] | None:
    """The difficulty of each prompt; None if no response has one.

    Raises:
        UserError: If only some have one.
    """
    found = [p.model.difficulty if p.model.difficulty is not None else p.baseline.difficulty for p in pairs]
    given = [value for value in found if value is not None]
    if given and len(given) < len(found):
        raise UserError(
            "instruction_difficulty",
            f"is given for {len(given)} of {len(found)} prompts",
            "give it for all of them or for none",
        )
    return given or None


def answer_length(response: Response, unit: LengthUnit) -> float:
    """Length of an answer.

    Raises:
        UserError: If the unit is tokens and the response file has none.
    """
    if unit == "characters":
        return len(response.response)
    if unit == "words":
        return len(response.response.split())
    if response.tokens is None:
        raise UserError("length_unit", "the response files have no token counts", "set it to characters or words")
    return response.tokens


def _index(row: Mapping[str, object], where: str) -> int | None:
    value = read_number(row, "index", where)
    if value is not None and value != int(value):
        raise UserError(f"{where}: index", f"expected the number of a prompt, got {value:g}", "fix the row")
    return None if value is None else int(value)
