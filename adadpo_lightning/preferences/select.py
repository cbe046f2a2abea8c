"""Selection: from the scored answers to one prompt to its pairs. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from adadpo_lightning.generation.responses import Response
    from adadpo_lightning.preferences.options import Select, Unfinished

# Sums of the same terms in another order differ in their last bits: closer scores are equal.
TIE = 1e-9
IDENTICAL = "all answers identical"
TOO_FEW = "fewer than two usable answers"
CUT_OFF = "fewer than two answers ended before max_new_tokens"
UNSCORED = "fewer than two scored answers"
EQUAL = "all scores equal"
BELOW_GAP = "largest difference of score below min_gap"


class Scored(NamedTuple):
    """An answer and its score; a higher score is better."""

    response: Response
    score: float


class Pair(NamedTuple):
    """Two answers to one prompt."""

    chosen: Scored
    rejected: Scored

    @property
    def gap(self) -> float:
        """Difference of the scores, above 0."""
        return self.chosen.score - self.rejected.score


class Selection(NamedTuple):
    """What became of one prompt.

    Args:
        pairs: Its pairs, the largest difference of score first.
        ranked: Its answers, the best first, for a ranked list; empty if there is no pair.
        reason: Why there is no pair; empty if there is one.
    """

    pairs: list[Pair]
    ranked: list[Scored]
    reason: str


def usable(answers: Sequence[Response], unfinished: Unfinished) -> tuple[list[int], Counter[str]]:
    """Which answers to a prompt may be in a pair, and how many may not, by reason.

    Args:
        answers: All answers to the prompt. Of identical ones the first may be.
        unfinished: As in `MakePairsOptions`.

    Example:
        >>> from adadpo_lightning.generation.responses import Response
        >>> usable([Response("hi", text) for text in ("a", "b", "a", " ")], "drop")
        ([0, 1], Counter({'duplicate': 1, 'empty': 1}))
    """
    kept: dict[str, int] = {}
    left_out: Counter[str] = Counter()
    for i, answer in enumerate(answers):
        if not answer.response.strip():
            left_out["empty"] += 1
        elif not answer.finished and unfinished == "drop":
            left_out["cut off"] += 1
        elif answer.response in kept:
            left_out["duplicate"] += 1
        else:
            kept[answer.response] = i
    return list(kept.values()), left_out


def select(answers: Sequence[Response], scores: Sequence[float | None], how: Select, min_gap: float) -> Selection:
    """The pairs of one prompt.

    Args:
        answers: Its usable answers: no two are identical.
        scores: Their scores; None for an answer without one, which is in no pair.
        how: ``best_worst`` or ``list``: the best answer against the worst; ``all``: every two answers. Of answers with
            equal scores the one sampled first counts as the better one, which depends on nothing in them.
        min_gap: Least difference of score within a pair; equal scores never form one.

    Example:
        >>> from adadpo_lightning.generation.responses import Response
        >>> answers = [Response("hi", text) for text in "abc"]
        >>> [(p.chosen.response.response, p.rejected.response.response, p.gap)
        ...  for p in select(answers, [0.0, 3.0, 1.0], "all", 2.0).pairs]
        [('b', 'a', 3.0), ('b', 'c', 2.0)]
        >>> select(answers, [1.0, 1.0, 1.0], "all", 0.0).reason
        'all scores equal'
    """
    scored = [Scored(answer, score) for answer, score in zip(answers, scores, strict=True) if score is not None]
    if len(scored) < 2:
        return Selection([], [], TOO_FEW if len(answers) < 2 else UNSCORED)
    ranked = sorted(scored, key=lambda each: -each.score)
    candidates = [Pair(*two) for two in combinations(ranked, 2)] if how == "all" else [Pair(ranked[0], ranked[-1])]
    pairs = [pair for pair in candidates if pair.gap > TIE and pair.gap >= min_gap - TIE]
    if not pairs:
        return Selection([], [], EQUAL if ranked[0].score - ranked[-1].score <= TIE else BELOW_GAP)
    return Selection(sorted(pairs, key=lambda pair: -pair.gap), ranked, "")
