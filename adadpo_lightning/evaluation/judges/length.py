"""A judge that only looks at length: the control for every other judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.comparisons import answer_length
from adadpo_lightning.evaluation.judges.base import Judge, preference_of, register_judge

if TYPE_CHECKING:
    from adadpo_lightning.evaluation.comparisons import Comparison
    from adadpo_lightning.evaluation.options import LengthUnit


@register_judge("length")
@dataclass
class LengthJudge(Judge):
    """The longer answer wins, or the shorter one.

    Args:
        prefer: ``longer`` or ``shorter``.
        unit: Unit of length: characters, words or tokens.
        temperature: As in `preference_of`, in that unit.
    """

    prefer: str = "longer"
    unit: LengthUnit = "characters"
    temperature: float = 0.0

    def __post_init__(self) -> None:
        """Check the choices."""
        for name, known in (("prefer", ("longer", "shorter")), ("unit", ("characters", "words", "tokens"))):
            if getattr(self, name) not in known:
                raise UserError(
                    f"judge_options.{name}", f"expected one of {', '.join(known)}, got {getattr(self, name)!r}"
                )

    def preferences(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """Compare the lengths."""
        sign = 1 if self.prefer == "longer" else -1
        return [
            preference_of(
                sign * answer_length(pair.model, self.unit),
                sign * answer_length(pair.baseline, self.unit),
                self.temperature,
            )
            for pair in comparisons
        ]
