"""Options of ``make-pairs``."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from adadpo_lightning.errors import UserError, did_you_mean
from adadpo_lightning.generation.options import AnswerOptions, GenerateOptions

Select = Literal["best_worst", "all", "list"]
Unfinished = Literal["drop", "keep"]


@dataclass(frozen=True)
class MakePairsOptions(AnswerOptions):
    """From prompts to preference pairs: answers sampled from a model, scored by a judge; an interrupted job resumes.

    Args:
        output_dir: Directory to write: pairs.jsonl for ``fit``, report.md, and the answers and scores behind them.
        judge: Key of a judge of ``evaluate``. Judges that score single answers (biased, gold, length, reward_model,
            sentiment) give their score; those that compare two (openai_compatible) give each answer its mean win rate
            against the others to the same prompt, asked in both orders.
        samples: Answers per prompt, at least 2.
        temperature: Sampling temperature, above 0.
        judge_options: Options of the judge, such as --judge_options.model=DIR.
        select: best_worst pairs the best answer with the worst, all makes every pair of answers that differ enough,
            list writes one row per prompt with all answers and scores.
        min_gap: Least difference of score within a pair; equal scores never form a pair. In units of the judge's score.
        unfinished: What to do with answers that reach max_new_tokens: drop leaves them out, because training would
            teach the model to stop in the middle of a sentence; keep uses them.

    Raises:
        UserError: If a value is out of range.
    """

    output_dir: str
    judge: str
    _: KW_ONLY
    samples: int = 5
    temperature: float = 0.8
    judge_options: dict[str, Any] | None = None
    select: Select = "best_worst"
    min_gap: float = 0.0
    unfinished: Unfinished = "drop"

    def __post_init__(self) -> None:
        """Check the choices and the ranges."""
        super().__post_init__()
        for name, known in (("select", get_args(Select)), ("unfinished", get_args(Unfinished))):
            if getattr(self, name) not in known:
                raise UserError(
                    name, f"unknown choice {getattr(self, name)!r}", did_you_mean(getattr(self, name), known)
                )
        if self.samples < 2:
            raise UserError("samples", f"expected at least 2 answers to choose from, got {self.samples}")
        if not 0 <= self.min_gap < float("inf"):
            raise UserError("min_gap", f"expected 0 or more, got {self.min_gap}")

    @property
    def root(self) -> Path:
        """The output directory."""
        return Path(self.output_dir)

    @property
    def generate(self) -> GenerateOptions:
        """The part that ``generate`` does."""
        asked = {name: getattr(self, name) for name in AnswerOptions.__dataclass_fields__}
        return GenerateOptions(**asked, output=str(self.root / "responses.jsonl"))
