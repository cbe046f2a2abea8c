"""The length-controlled win rate against a known model, scipy's optimum, and what it must do at the edges."""

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import PredefinedSplit

from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.length_controlled import Anchor, length_controlled, length_controlled_win_rate
from adadpo_lightning.evaluation.statistics import bootstrap, mean_over_prompts


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def draw(rng, n=4000, theta=0.4, phi=1.2, psi=0.8, longer=300.0):
    """Hard preferences of a known model, with the win rate that it has at equal length."""
    gap, difficulty = rng.normal(longer, 500.0, n), rng.normal(0, 1, n)
    logits = theta + phi * np.tanh(gap / gap.std(ddof=1)) + psi * difficulty
    wins = (rng.random(n) < sigmoid(logits)).astype(float)
    return wins, gap, difficulty, sigmoid(theta + psi * difficulty).mean()


def test_it_recovers_the_win_rate_at_equal_length():
    wins, gap, difficulty, truth = draw(np.random.default_rng(0))
    assert wins.mean() - truth > 0.05  # what length alone has won
    fit = length_controlled(wins, gap, difficulty)
    assert fit.win_rate == pytest.approx(truth, abs=0.02)
    assert (fit.theta, fit.phi, fit.psi) == pytest.approx((0.4, 1.2, 0.8), abs=0.15)
    assert length_controlled(wins, gap).win_rate == pytest.approx(truth, abs=0.03)


def test_soft_preferences_are_fitted_exactly():
    _, gap, difficulty, truth = draw(np.random.default_rng(1), n=300)
    soft = sigmoid(0.4 + 1.2 * np.tanh(gap / gap.std(ddof=1)) + 0.8 * difficulty)
    fit = length_controlled(soft, gap, difficulty)
    assert (fit.theta, fit.phi, fit.psi) == pytest.approx((0.4, 1.2, 0.8), abs=1e-8)
    assert fit.win_rate == pytest.approx(truth, abs=1e-9)


@pytest.mark.parametrize("with_difficulty", [True, False])
@pytest.mark.parametrize("penalty", ["none", "l1_cv"])
def test_exchanged_sides_give_the_complement(with_difficulty, penalty):
    wins, gap, difficulty, _ = draw(np.random.default_rng(2), n=200)
    hard = difficulty if with_difficulty else None
    one = length_controlled(wins, gap, hard, penalty=penalty, inverse_penalty=1.0)
    other = length_controlled(1 - wins, -gap, hard, penalty=penalty, inverse_penalty=1.0)
    assert one.win_rate + other.win_rate == pytest.approx(1, abs=1e-9 if penalty == "none" else 1e-4)


def test_without_an_effect_of_length_it_is_about_the_win_rate():
    wins, gap, difficulty, _ = draw(np.random.default_rng(3), phi=0.0)
    assert length_controlled(wins, gap, difficulty).win_rate == pytest.approx(wins.mean(), abs=0.01)


def test_the_unit_of_length_does_not_matter():
    wins, gap, difficulty, _ = draw(np.random.default_rng(4), n=200)
    assert length_controlled(wins, 4.2 * gap, difficulty).win_rate == pytest.approx(
        length_controlled(wins, gap, difficulty).win_rate, abs=1e-9
    )


@pytest.mark.parametrize("anchored", [False, True])
def test_scipy_finds_the_same_optimum(anchored):
    rng = np.random.default_rng(5)
    wins, gap, difficulty, _ = draw(rng, n=150)
    x = np.stack([np.ones(150), np.tanh(gap / gap.std(ddof=1)), difficulty], 1)
    y, weight, anchor = wins, np.ones(150), None
    if anchored:
        anchor = Anchor(rng.random(40), rng.normal(0, 1, 40), rng.normal(0, 1, 40), 0.1)
        rows = np.stack([np.zeros(40), np.tanh(anchor.standard_gaps), anchor.difficulty], 1)
        x, y, weight = np.concatenate([x, rows]), np.append(wins, anchor.preferences), np.append(weight, [0.1] * 40)

    def loss(w):
        return (weight * (np.logaddexp(0, x @ w) - y * (x @ w))).sum()

    best = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-8}).x
    fit = length_controlled(wins, gap, difficulty, anchor=anchor)
    assert (fit.theta, fit.phi, fit.psi) == pytest.approx(tuple(best), abs=1e-5)


def test_it_agrees_with_the_closed_newton_fit_of_the_embedded_task():
    rng = np.random.default_rng(6)
    gap = rng.normal(3, 8, (500, 1))
    preferences = sigmoid(rng.normal(0.5, 1, (500, 1)) + gap / 10)
    other = length_controlled_win_rate(preferences, gap)
    assert length_controlled(preferences[:, 0], gap[:, 0]).win_rate == pytest.approx(other.value, abs=1e-4)


def test_the_cross_validated_penalty_is_scikit_learns():
    wins, gap, difficulty, _ = draw(np.random.default_rng(7), n=100, theta=0.1, phi=0.2, psi=0.1)
    x = np.stack([np.ones(100), np.tanh(gap / gap.std(ddof=1)), difficulty], 1)
    theirs = LogisticRegressionCV(
        Cs=10, cv=PredefinedSplit(np.arange(100) % 5), l1_ratios=(1.0,), solver="liblinear", fit_intercept=False,
        scoring="neg_log_loss", tol=1e-6, max_iter=1000, use_legacy_attributes=False,
    ).fit(x, wins.astype(int))  # fmt: skip
    ours = length_controlled(wins, gap, difficulty, penalty="l1_cv")
    assert ours.inverse_penalty == pytest.approx(theirs.C_)
    assert ours.win_rate == pytest.approx(theirs.predict_proba(x * [1, 0, 1])[:, 1].mean(), abs=1e-4)


def test_an_anchor_finds_the_length_effect_of_a_model_that_is_always_longer():
    """Then its own comparisons cannot tell length from quality."""
    rng = np.random.default_rng(8)
    theta, phi = -0.5, 2.0
    gap = 500 + rng.normal(0, 50, 805)
    wins = (rng.random(805) < sigmoid(theta + phi * np.tanh(gap / gap.std(ddof=1)))).astype(float)
    standard = rng.normal(0, 1, 805)
    against_itself = (rng.random(805) < sigmoid(phi * np.tanh(standard))).astype(float)
    anchored = length_controlled(wins, gap, anchor=Anchor(against_itself, standard, None, 0.1)).win_rate
    assert anchored == pytest.approx(sigmoid(theta), abs=0.07)


def test_the_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    covered = []
    for seed in range(40):
        wins, gap, _, _ = draw(np.random.default_rng(seed), n=200, psi=0.0)
        again = lambda i, w=wins, g=gap: length_controlled(w[i], g[i]).win_rate  # noqa: E731
        interval = bootstrap(again, 200, resamples=40, seed=seed)
        covered.append(interval.low < sigmoid(0.4) < interval.high)
    assert 0.83 <= np.mean(covered) <= 1.0


def test_the_bootstrap_error_of_a_mean_is_the_textbook_one():
    values = np.random.default_rng(9).random(300)
    interval = bootstrap(lambda i: values[i].mean(), 300, resamples=1000, seed=0)
    assert interval.se == pytest.approx(mean_over_prompts(values).se, rel=0.1)


@pytest.mark.parametrize(("side", "rate"), [(1.0, 1.0), (0.0, 0.0)])
def test_all_won_or_all_lost(side, rate):
    fit = length_controlled(np.full(5, side), np.arange(5.0))
    assert fit.win_rate == rate
    assert np.isinf(fit.theta)


def test_equal_lengths_leave_the_win_rate():
    fit = length_controlled(np.array([1.0, 0.0, 1.0, 0.8]), np.full(4, 7.0))
    assert fit.win_rate == pytest.approx(0.7, abs=1e-9)
    assert fit.phi == 0


BAD = {
    "one comparison": ([1.0], [3.0], "needs at least 2, got 1"),
    "separated": ([1.0, 1.0, 0.0, 0.0], [2.0, 1.0, -1.0, -3.0], "separates wins from losses"),
    "two points": ([1.0, 0.0], [1.0, -1.0], "separates wins from losses"),
    "percent": ([70.0, 30.0], [1.0, 2.0], r"values in \[0, 1\], got 30 to 70"),
    "nan": ([0.5, np.nan], [1.0, 2.0], "preferences: expected finite numbers, got 1"),
    "shapes": ([0.5, 0.6], [1.0, 2.0, 3.0], r"lengths: expected shape \(2,\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_has_no_answer_says_why(case):
    preferences, gaps, message = BAD[case]
    with pytest.raises(UserError, match=message):
        length_controlled(np.array(preferences), np.array(gaps))


def test_a_penalty_gives_a_finite_answer_where_length_separates():
    fit = length_controlled(
        np.array([1.0, 1, 0, 0] * 5), np.array([2.0, 1, -1, -3] * 5), penalty="l1_cv", inverse_penalty=1.0
    )
    assert 0 < fit.win_rate < 1
