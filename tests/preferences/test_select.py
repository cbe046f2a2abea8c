"""Selection and judging: pure functions, against enumeration and against judges with a known bias."""

import math
from collections import Counter
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pytest
from scipy.optimize import minimize

from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.judges.base import Judge, PointwiseJudge, build_judge
from adadpo_lightning.generation.responses import Response
from adadpo_lightning.preferences.judging import judge_prompts
from adadpo_lightning.preferences.select import BELOW_GAP, EQUAL, TOO_FEW, UNSCORED, select, usable


def answers(*texts, **options):
    return [Response("why", text, tokens=len(text), **options) for text in texts]


def test_usable_answers():
    given = [*answers("a", "b", " ", "a", "b"), *answers("cut", finished=False)]
    assert usable(given, "drop") == ([0, 1], Counter({"duplicate": 2, "empty": 1, "cut off": 1}))
    assert usable(given, "keep") == ([0, 1, 5], Counter({"duplicate": 2, "empty": 1}))


@pytest.mark.parametrize("gap", [0.0, 1.0, 1.5])
@pytest.mark.parametrize("seed", range(5))
def test_selection_against_enumeration(seed, gap):
    rng = np.random.default_rng(seed)
    given, scores = answers(*"abcde"), [float(s) for s in rng.integers(0, 4, 5) / 2]
    scores[2] = None
    expected = {
        (a.response, b.response)
        for (a, s), (b, t) in permutations(zip(given, scores, strict=True), 2)
        if s is not None and t is not None and s > t and s - t >= gap
    }
    found = select(given, scores, "all", gap).pairs
    assert {(p.chosen.response.response, p.rejected.response.response) for p in found} == expected
    assert len(found) == len(expected)
    known = [s for s in scores if s is not None]
    selection = select(given, scores, "best_worst", gap)
    if not expected:
        assert selection.pairs == []
        assert selection.reason == (EQUAL if max(known) == min(known) else BELOW_GAP)
    else:
        (pair,) = selection.pairs
        assert (pair.chosen.score, pair.rejected.score) == (max(known), min(known))
        ranked = [answer.score for answer in select(given, scores, "list", gap).ranked]
        assert ranked == sorted(known, reverse=True)


def test_ties_and_missing_scores_form_no_pair():
    two = answers("a", "b")
    assert select(two, [0.3, 0.1 + 0.2], "all", 0.0).reason == EQUAL  # differ in the last bit
    assert select(two, [1.0, None], "all", 0.0).reason == UNSCORED
    assert select(two[:1], [1.0], "all", 0.0).reason == TOO_FEW
    assert len(select(two, [0.0, 0.3], "all", 0.1 + 0.2).pairs) == 1  # the gap itself is enough


@dataclass
class Biased(Judge):
    """Prefers the later letter, and whatever is shown first."""

    biased: bool = True
    undecided: str = ""
    asked: int = 0

    @property
    def by_order(self):
        return self.biased

    def preferences(self, comparisons):
        self.asked += len(comparisons)
        return [self._prefers(c.model.response, c.baseline.response) for c in comparisons]

    def _prefers(self, first, second):
        if self.undecided and self.undecided in (first, second):
            return None
        return 1 / (1 + math.exp(-(ord(first) - ord(second)) / 2 - (1.0 if self.biased else 0.0)))


def test_win_rates_have_no_bias_of_position():
    judge = Biased()
    for order in permutations("abc"):
        ((scores, missing),) = judge_prompts(judge, [answers(*order)])
        by_text = dict(zip(order, scores, strict=True))
        assert by_text["a"] < by_text["b"] < by_text["c"]
        assert by_text["b"] == pytest.approx(0.5)
        assert missing == 0
    assert judge.asked == 6 * 3 * 2
    once = Biased(biased=False)
    judge_prompts(once, [answers(*"abc"), answers("a"), []])
    assert once.asked == 3


def test_win_rates_have_the_order_of_bradley_terry():
    """Strengths fitted by maximum likelihood to the same verdicts, with every two answers compared."""
    rng = np.random.default_rng(0)
    wins = rng.uniform(0.05, 0.95, (5, 5))
    wins = np.triu(wins, 1) + np.tril(1 - wins.T, -1)

    class Table(Biased):
        def _prefers(self, first, second):
            return wins[ord(first) - ord("a"), ord(second) - ord("a")]

    ((scores, _),) = judge_prompts(Table(biased=False), [answers(*"abcde")])

    def loss(strength):
        difference = strength[:, None] - strength[None, :]
        return (
            np.triu(wins, 1) * np.logaddexp(0, -difference) + np.tril(wins, -1) * np.logaddexp(0, -difference)
        ).sum()

    fitted = minimize(loss, np.zeros(5), tol=1e-10).x
    assert np.argsort(fitted).tolist() == np.argsort(scores).tolist()


def test_a_comparison_without_a_verdict_is_counted_and_left_out():
    ((scores, missing),) = judge_prompts(Biased(undecided="b"), [answers(*"abc")])
    assert (scores[1], missing) == (None, 2)
    assert scores[0] == pytest.approx(1 - scores[2])


def test_pointwise_judges_give_their_scores():
    given = [answers("aaa", "b"), [], answers("cc")]
    assert [judged.scores for judged in judge_prompts(build_judge("length"), given)] == [[3, 1], [], [2]]
    shorter = build_judge("length", prefer="shorter", unit="tokens")
    assert [judged.scores for judged in judge_prompts(shorter, given)] == [[-3, -1], [], [-2]]


@pytest.mark.parametrize(
    ("found", "message"), [([math.nan, 1.0], "got nan"), ([math.inf, 1.0], "got inf"), ([1.0], "got 1 for 2")]
)
def test_scores_that_are_none_are_refused(found, message):
    class Odd(PointwiseJudge):
        key = "odd"

        def scores(self, responses):
            return found

    with pytest.raises(UserError, match=f"judge 'odd': expected a finite number or None per answer, {message}"):
        judge_prompts(Odd(), [answers("a", "b")])
