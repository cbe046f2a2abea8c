"""A judge that prefers the more positive answer, by VADER's word list (extra ``sentiment``)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from adadpo_lightning.errors import UserError, did_you_mean
from adadpo_lightning.evaluation.judges.base import PointwiseJudge, register_judge

if TYPE_CHECKING:
    from adadpo_lightning.generation.responses import Response

Per = Literal["sentence", "text"]
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


@register_judge("sentiment")
@dataclass
class SentimentJudge(PointwiseJudge):
    """The more positive answer wins, whatever it says; the prompt is not read.

    The score is VADER's compound score (Hutto and Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment
    Analysis of Social Media Text"), from -1, most negative, to 1. It needs no model and is the same everywhere, which
    makes it a judge for trials; it knows English words, and neither irony nor context.

    Args:
        per: ``sentence`` is the mean over the answer's sentences. ``text`` scores the answer as a whole; as that adds
            up the valence of its words, a longer answer has a more extreme score.
        temperature: As in `preference_of`, in that unit.
    """

    per: Per = "sentence"
    temperature: float = 0.0

    def __post_init__(self) -> None:
        """Check the choice, and that VADER is installed.

        Raises:
            UserError: If not.
        """
        if self.per not in get_args(Per):
            raise UserError(
                "judge_options.per", f"unknown unit {self.per!r}", did_you_mean(str(self.per), get_args(Per))
            )
        _ = self._analyzer

    @cached_property
    def _analyzer(self) -> Any:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError as error:
            raise UserError(
                "judge",
                "sentiment needs the package vaderSentiment, which is not installed",
                "pip install 'adadpo-lightning[sentiment]'",
            ) from error
        return SentimentIntensityAnalyzer()

    def scores(self, responses: Sequence[Response]) -> list[float | None]:
        """The sentiment of each answer, in [-1, 1]; an empty answer is neutral, 0."""
        return [self.sentiment(response.response) for response in responses]

    def sentiment(self, text: str) -> float:
        """The sentiment of a text, in [-1, 1].

        Example:
            >>> judge = SentimentJudge()
            >>> judge.sentiment("The food was wonderful. It came late."), judge.sentiment("The food was awful.")
            (0.28595, -0.4588)
        """
        parts = [text] if self.per == "text" else [part for part in _SENTENCE_END.split(text) if part.strip()]
        values = [float(self._analyzer.polarity_scores(part)["compound"]) for part in parts]
        return sum(values) / len(values) if values else 0.0
