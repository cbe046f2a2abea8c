"""Options of evaluation: how preferences become win rates, and everything that the ``evaluate`` command takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from adadpo_lightning.errors import UserError

LengthUnit = Literal["characters", "words", "tokens"]
Penalty = Literal["none", "l1_cv"]


@dataclass(frozen=True)
class EvaluationOptions:
    """How preferences become numbers.

    Args:
        length_unit: Unit of answer length. AlpacaEval counts characters.
        penalty: Penalty of the length-controlled fit, see `length_controlled`.
        resamples: Bootstrap resamples of the comparisons; 0 disables the bootstrap.
        seed: Random seed of the bootstrap.

    Raises:
        UserError: If a choice is unknown or a value is out of range.
    """

    length_unit: LengthUnit = "characters"
    penalty: Penalty = "none"
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the choices."""
        for name, choices in (("length_unit", get_args(LengthUnit)), ("penalty", get_args(Penalty))):
            if getattr(self, name) not in choices:
                raise UserError(name, f"expected one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.resamples < 0:
            raise UserError("bootstrap", f"expected 0 or more resamples, got {self.resamples}")
        if self.seed < 0:
            raise UserError("seed", f"expected 0 or more, got {self.seed}")


@dataclass(frozen=True)
class EvaluateOptions:
    """Win rate and length-controlled win rate of a model's responses against a baseline's, according to a judge.

    Args:
        judge: annotations (a file of preferences), gold (embedded task), length (the longer answer wins),
            openai_compatible (HTTP endpoint), reward_model (a sequence classifier), sentiment (the more positive answer
            wins), biased (another judge with a preference for length and with noise), or the key of a judge that an
            installed package registers.
        output: JSON file to write.
        responses: The model's responses, in any format of ``generate``.
        baseline: The opponent's responses to the same prompts; a file with prompt and chosen or output also works.
        annotations: File of preferences such as AlpacaEval's annotations.json, for that judge; it contains the
            responses.
        judge_options: Options of the judge, such as --judge_options.model=DIR.
        length_unit: Unit of answer length; AlpacaEval counts characters, tokens need responses of ``generate``.
        penalty: Penalty of the length-controlled fit: none, or l1_cv as in AlpacaEval's code.
        difficulty: File with each prompt's difficulty for the length-controlled fit, such as AlpacaEval's
            instruction_difficulty.csv; null uses the column of that name in the responses or annotations, if any.
        length_anchor: Files of preferences of the baseline against itself, asked to be concise and to be verbose, which
            AlpacaEval adds to the length-controlled fit.
        bootstrap: Bootstrap resamples; 0 disables the bootstrap.
        seed: Random seed of the bootstrap.

    Raises:
        UserError: If a choice is unknown, a value is out of range, or only one response file is given.
    """

    judge: str
    output: str
    responses: str | None = None
    baseline: str | None = None
    annotations: str | None = None
    judge_options: dict[str, Any] | None = None
    length_unit: LengthUnit = "characters"
    penalty: Penalty = "none"
    difficulty: str | None = None
    length_anchor: list[str] | None = None
    bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the choices."""
        _ = self.statistics
        if (self.responses is None) != (self.baseline is None):
            missing = "baseline" if self.baseline is None else "responses"
            raise UserError(missing, "two response files are needed, got one", "set responses and baseline")

    @property
    def statistics(self) -> EvaluationOptions:
        """The part that says how preferences become numbers."""
        return EvaluationOptions(self.length_unit, self.penalty, self.bootstrap, self.seed)
