"""A judge that looks preferences up in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.comparisons import Comparison
from adadpo_lightning.evaluation.judges.base import Judge, register_judge
from adadpo_lightning.generation.prompts import read_objects
from adadpo_lightning.generation.responses import Response, read_number, read_text

COLUMNS = ("instruction", "output_1", "output_2", "preference")


@register_judge("annotations")
@dataclass
class AnnotationsJudge(Judge):
    """Preferences from a file, such as AlpacaEval's annotations.json.

    Its rows have ``instruction``, ``output_1``, ``output_2``, ``generator_1``, ``generator_2`` and ``preference``: 1 if
    the first output is the better one, 2 if the second is, anything between as a probability, 1.5 or 0 for a tie, null
    for no verdict. ``instruction_difficulty`` is optional.

    Args:
        annotations: The file.
        generator: The model to judge; null uses ``generator_2``, as AlpacaEval does. Rows in which it is
            ``generator_1`` are reversed.
    """

    annotations: str
    generator: str | None = None
    _rows: list[tuple[Comparison, float | None]] = field(init=False, repr=False)

    @property
    def by_order(self) -> bool:
        """False: the file has one verdict on two answers."""
        return False

    def __post_init__(self) -> None:
        """Read the file."""
        found = read_objects(SourceConfig(self.annotations))
        self._rows = [_annotation(row, where, self.generator) for where, row in found]

    def comparisons(self) -> list[Comparison]:
        """All comparisons of the file."""
        return [comparison for comparison, _ in self._rows]

    def preferences(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """The verdicts on the file's own comparisons; others are looked up by prompt and both answers.

        Of several rows with the same texts the last one counts in a look-up.

        Raises:
            UserError: If the file has no verdict on a comparison.
        """
        if list(comparisons) == self.comparisons():
            return [preference for _, preference in self._rows]
        known = {_texts(comparison): preference for comparison, preference in self._rows}
        missing = sum(_texts(comparison) not in known for comparison in comparisons)
        if missing:
            raise UserError(
                self.annotations,
                f"has no row for {missing} of {len(comparisons)} comparisons: prompt and both outputs must be the same",
                "annotate these responses, or leave the response files out",
            )
        return [known[_texts(comparison)] for comparison in comparisons]


def _texts(comparison: Comparison) -> tuple[str, str, str]:
    return comparison.model.prompt, comparison.model.response, comparison.baseline.response


def _annotation(row: Mapping[str, Any], where: str, generator: str | None) -> tuple[Comparison, float | None]:
    missing = [name for name in COLUMNS if name not in row]
    if missing:
        raise UserError(where, f"has no {', '.join(missing)}; found {', '.join(map(str, row))}")
    second_wins = _second_wins(row["preference"], where)
    difficulty = read_number(row, "instruction_difficulty", where)
    first, second = (
        Response(
            read_text(row, "instruction", where),
            read_text(row, f"output_{i}", where),
            str(row.get(f"generator_{i}") or ""),
            dataset=str(row.get("dataset") or ""),
            difficulty=difficulty,
        )
        for i in (1, 2)
    )
    if generator is None or second.generator == generator:
        return Comparison(second, first), second_wins
    if first.generator == generator:
        return Comparison(first, second), None if second_wins is None else 1 - second_wins
    raise UserError(where, f"compares {first.generator!r} and {second.generator!r}, not {generator!r}")


def _second_wins(preference: Any, where: str) -> float | None:
    if preference is None or preference != preference:  # a NaN is null, as pandas writes it
        return None
    if isinstance(preference, bool) or not isinstance(preference, (int, float)):
        raise UserError(where, f"expected a number as preference, got {preference!r}")
    if preference == 0:
        return 0.5
    if not 1 <= preference <= 2:
        raise UserError(where, f"expected a preference in [1, 2] (or 0 for a tie), got {preference!r}")
    return float(preference) - 1
