"""A judge that only looks at length: the control for every other judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.comparisons import answer_length
from adadpo_lightning.evaluation.judges.base import PointwiseJudge, register_judge

if TYPE_CHECKING:
    from adadpo_lightning.evaluation.options import LengthUnit
    from adadpo_lightning.generation.responses import Response


@register_judge("length")
@dataclass
class LengthJudge(PointwiseJudge):
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

    def scores(self, responses: Sequence[Response]) -> list[float | None]:
        """The length, negative where shorter is better."""
        sign = 1 if self.prefer == "longer" else -1
        return [sign * answer_length(response, self.unit) for response in responses]
