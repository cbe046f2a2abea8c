"""A judge that spoils another one with a preference for length and with noise, to study what training makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from random import Random
from typing import TYPE_CHECKING, Any

from adadpo_lightning import fingerprint
from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.comparisons import answer_length
from adadpo_lightning.evaluation.judges.base import PointwiseJudge, build_judge, register_judge, scores_of

if TYPE_CHECKING:
    from adadpo_lightning.evaluation.options import LengthUnit
    from adadpo_lightning.generation.responses import Response


@register_judge("biased")
@dataclass
class BiasedJudge(PointwiseJudge):
    """The score of another judge, plus a term for length, plus Gaussian noise.

    Args:
        judge: Key of the other judge, one that scores single answers.
        judge_options: Its options.
        per_unit: Added for each unit of length; below 0 it prefers short answers.
        unit: Unit of length: characters, words or tokens.
        noise: Standard deviation of the noise, in the unit of the score.
        seed: Seed of the noise. Each answer has its own noise, drawn from the seed and the texts of prompt and answer,
            so that neither their order nor a resume changes it.
        temperature: As in `preference_of`, in the unit of the score.
    """

    judge: str
    judge_options: dict[str, Any] | None = None
    per_unit: float = 0.0
    unit: LengthUnit = "tokens"
    noise: float = 0.0
    seed: int = 0
    temperature: float = 0.0
    _inner: PointwiseJudge = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the options and make the other judge.

        Raises:
            UserError: If a value is out of range, or the other judge compares two answers.
        """
        if not (self.noise >= 0 and isfinite(self.noise) and isfinite(self.per_unit)):
            raise UserError(
                "judge_options", f"expected noise >= 0 and finite numbers, got {self.noise} and {self.per_unit}"
            )
        if self.unit not in ("characters", "words", "tokens"):
            raise UserError("judge_options.unit", f"expected characters, words or tokens, got {self.unit!r}")
        inner = build_judge(self.judge, **(self.judge_options or {}))
        if not isinstance(inner, PointwiseJudge):
            raise UserError(
                "judge_options.judge", f"{self.judge!r} compares two answers", "choose one that scores single answers"
            )
        self._inner = inner

    def deciding(self) -> dict[str, Any]:
        """The options, and what the other judge depends on."""
        own = super().deciding()
        own["options"].pop("judge_options", None)
        own["options"]["judge"] = self._inner.deciding()
        return own

    def scores(self, responses: Sequence[Response]) -> list[float | None]:
        """The spoiled scores; None where the other judge gives none."""
        found = scores_of(self._inner, responses)
        return [
            None if score is None else score + self._length_term(response) + self._noise_of(response)
            for score, response in zip(found, responses, strict=True)
        ]

    def _length_term(self, response: Response) -> float:
        return self.per_unit * answer_length(response, self.unit) if self.per_unit else 0.0

    def _noise_of(self, response: Response) -> float:
        if not self.noise:
            return 0.0
        drawn = Random(fingerprint.of_data([self.seed, response.prompt, response.response]))  # noqa: S311  # no secret
        return drawn.gauss(0.0, self.noise)
