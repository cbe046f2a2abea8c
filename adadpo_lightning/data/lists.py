"""Makes ranked lists into pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal, NamedTuple, get_args

from adadpo_lightning.data.schema import BadRow, PreferencePair, RankedList
from adadpo_lightning.errors import UserError

PairsOf = Literal["best_worst", "all", "adjacent"]
MarginOf = Literal["none", "score_difference"]


@dataclass(frozen=True)
class ListOptions:
    """Which pairs a ranked list is made into. Rows of pairs are not changed.

    Answers with equal scores never form a pair. Each pair has the `weight` of its row, so that with ``all`` a list
    of K answers counts up to K(K-1)/2 times.

    Args:
        pairs: ``best_worst``: the best answer against the worst one (of equal ones, the first in the row). ``all``:
            each answer against each one with a lower score. ``adjacent``: each answer against the next one in the
            order of the scores.
        min_gap: Minimum difference of the scores in a pair; of the ranks, if the row has ranks.
        margin: Target margin of the pairs. ``none``: the row's `margin` column, if it has one.
            ``score_difference``: the difference of the scores, which must be on the scale of the loss's score.

    Raises:
        UserError: If an option is out of its range.
    """

    pairs: PairsOf = "best_worst"
    min_gap: float = 0.0
    margin: MarginOf = "none"

    def __post_init__(self) -> None:
        """Check the options."""
        for name, known in (("pairs", get_args(PairsOf)), ("margin", get_args(MarginOf))):
            if getattr(self, name) not in known:
                raise UserError(
                    f"data.lists.{name}", f"expected one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        if not 0 <= self.min_gap < math.inf:
            raise UserError("data.lists.min_gap", f"expected a finite number of 0 or more, got {self.min_gap}")


BEST_AGAINST_WORST = ListOptions()


class Expansion(NamedTuple):
    """What a ranked list was made into.

    Args:
        pairs: Its pairs, the best chosen answer first.
        ties: Number of pairs that were not made because their scores are equal.
        narrow: Number of pairs that were not made because their scores differ by less than `ListOptions.min_gap`.
    """

    pairs: list[PreferencePair]
    ties: int
    narrow: int


def expand(ranked: RankedList, options: ListOptions) -> Expansion:
    """The pairs of a ranked list.

    Raises:
        BadRow: If the pairs would have two target margins.

    Example:
        >>> ranked = RankedList("Name a prime.", ["8", "7", "9", "6"], [0.0, 1.0, 0.0, 0.2])
        >>> made = expand(ranked, ListOptions(pairs="all", min_gap=0.3))
        >>> [(pair.chosen, pair.rejected) for pair in made.pairs], made.ties, made.narrow
        ([('7', '6'), ('7', '8'), ('7', '9')], 1, 2)
    """
    scores = ranked.scores
    by_differences = options.margin == "score_difference"
    if by_differences and ranked.margin is not None:
        raise BadRow("two margins", "the row has a margin column, and data.lists.margin is score_difference")
    wanted = list(_wanted(scores, options.pairs))
    unequal = [(better, worse) for better, worse in wanted if scores[better] > scores[worse]]
    wide = [(better, worse) for better, worse in unequal if scores[better] - scores[worse] >= options.min_gap]
    pairs = [
        PreferencePair(
            ranked.prompt,
            ranked.answers[better],
            ranked.answers[worse],
            system=ranked.system,
            tools=ranked.tools,
            weight=ranked.weight,
            margin=scores[better] - scores[worse] if by_differences else ranked.margin,
            chat_template_kwargs=ranked.chat_template_kwargs,
            answer_indices=(better, worse),
        )
        for better, worse in wide
    ]
    return Expansion(pairs, ties=len(wanted) - len(unequal), narrow=len(unequal) - len(wide))


def _wanted(scores: list[float], pairs: PairsOf) -> list[tuple[int, int]]:
    """Positions of (better or equal, worse or equal) answers."""
    # Python's sort is stable: of equal answers the first in the row comes first.
    order = sorted(range(len(scores)), key=lambda answer: -scores[answer])
    if pairs == "best_worst":
        return [(order[0], scores.index(min(scores)))] if len(order) > 1 else []
    return list(pairwise(order) if pairs == "adjacent" else combinations(order, 2))


def best(ranked: RankedList) -> PreferencePair:
    """The best answer alone, the first in the row of equal ones; for a loss that reads no rejected answers."""
    answer = ranked.scores.index(max(ranked.scores))
    return PreferencePair(
        ranked.prompt,
        ranked.answers[answer],
        system=ranked.system,
        tools=ranked.tools,
        weight=ranked.weight,
        chat_template_kwargs=ranked.chat_template_kwargs,
        answer_indices=(answer, None),
    )
