"""Length-controlled win rate: what is left of a win rate when both answers are equally long.

The logistic model of AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475), fitted with scikit-learn (extra ``eval``):

    logit P(win) = theta + phi * tanh((length - opponent's length) / std) + psi * difficulty

``std`` is over the comparisons (n - 1 in the divisor). The length-controlled win rate is the mean over prompts of
``sigmoid(theta + psi * difficulty)``: the length term at zero, the prompt's difficulty as it is. Without a difficulty
column the last term is left out. Soft preferences count as both outcomes, weighted by their probability.

Where AlpacaEval's paper and code leave a choice, it is an argument: see `length_controlled`. Its leaderboard also uses
data that are not shipped here: the difficulties, which it fits jointly over many models, and an `Anchor` of the
baseline against itself asked to be concise and to be verbose. Without the difficulties the fit extrapolates where one
side is much longer in nearly every comparison: on AlpacaEval's published annotations of 48 models, the same win rates
as on its leaderboard come with length-controlled ones that are 6.6 points away from it on average, 23 at most; with
difficulties fitted jointly over these 48 models and no anchor it is 1.1 and 6.9.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from adadpo_lightning.evaluation.options import Penalty

# Log-odds beyond this are no finite estimate but a fit on its way to infinity.
DIVERGED = 15.0


class LengthControlled(NamedTuple):
    """A fit of the model.

    Args:
        win_rate: Length-controlled win rate, in [0, 1].
        theta: Log-odds of a win at equal length and difficulty 0; infinite where every comparison was won or lost.
        phi: Weight of the tanh of the standardised length difference.
        psi: Weight of the difficulty; 0 without one.
        inverse_penalty: scikit-learn's C; infinite without a penalty.
    """

    win_rate: float
    theta: float
    phi: float
    psi: float
    inverse_penalty: float


class Anchor(NamedTuple):
    """Comparisons of the baseline with itself at another length: in them the model's term is absent.

    AlpacaEval's code adds such rows (those of its two "gamed" baselines) to pin down the length's weight.

    Args:
        preferences: For the longer or shorter version, in [0, 1], shape (A,).
        standard_gaps: Its length minus the plain version's over the standard deviation of its own file, shape (A,).
        difficulty: Difficulty of each instruction, shape (A,); None where the model has no such term.
        weight: Weight of a row, where a comparison of the model has 1; AlpacaEval has 0.2 over the number of files.
    """

    preferences: np.ndarray
    standard_gaps: np.ndarray
    difficulty: np.ndarray | None
    weight: float


class Interval(NamedTuple):
    """Bootstrap standard error and percentile interval of a number, and the resamples in which it could be had."""

    se: float
    low: float
    high: float
    resamples: int


def length_controlled(
    preferences: np.ndarray,
    length_differences: np.ndarray,
    difficulty: np.ndarray | None = None,
    *,
    penalty: Penalty = "none",
    inverse_penalty: float | None = None,
    anchor: Anchor | None = None,
) -> LengthControlled:
    """Fit the model and predict without the length term.

    Args:
        preferences: Probability that the model's answer is the better one, in [0, 1], shape (P,).
        length_differences: Length of the model's answer minus the opponent's, in any unit, shape (P,).
        difficulty: Difficulty of each instruction, shape (P,), or None for the model without that term.
        penalty: ``none`` is maximum likelihood: exchanging the two sides gives exactly 1 - x. ``l1_cv`` is what
            AlpacaEval's code does and its paper does not spell out: an L1 penalty on all three weights, its strength
            from 10 values between 1e-4 and 1e4 by five-fold cross-validation of the log loss.
        inverse_penalty: A fixed strength for ``l1_cv`` in place of the cross-validation.
        anchor: Further rows for the fit.

    Raises:
        UserError: For fewer than two comparisons, values out of range, a missing scikit-learn, and preferences that the
            length (with the difficulty) separates, so that no finite estimate exists.

    Example:
        >>> lengths = np.array([4.0, -4.0, 8.0, -8.0])
        >>> bias_alone = 1 / (1 + np.exp(-2 * np.tanh(lengths / lengths.std(ddof=1))))
        >>> fit = length_controlled(bias_alone, lengths)
        >>> round(fit.win_rate, 4), round(fit.phi, 3)
        (0.5, 2.0)
    """
    y, gap = np.asarray(preferences, np.float64), np.asarray(length_differences, np.float64)
    extra = None if difficulty is None else np.asarray(difficulty, np.float64)
    _check(y, gap, extra)
    if (y == y[0]).all() and y[0] in (0.0, 1.0):
        # The likelihood has no maximum, but its supremum is at this win rate whatever the lengths.
        return LengthControlled(float(y[0]), float(np.inf if y[0] else -np.inf), 0.0, 0.0, np.inf)
    spread = gap.std(ddof=1)
    longer = np.tanh(gap / spread) if spread > 0 else np.zeros_like(gap)
    x = np.stack([np.ones_like(y), longer, *([] if extra is None else [extra])], 1)
    rows = _Rows(x, y, np.ones_like(y))
    if anchor is not None:
        rows = rows.joined(_anchor_rows(anchor, x.shape[1]))
    if penalty == "l1_cv":
        strength = _cross_validated(rows) if inverse_penalty is None else inverse_penalty
        weights = _fit_l1(rows, strength)
    else:
        strength, weights = np.inf, _fit(rows)
    at_equal_length = x * np.array([1.0, 0.0, 1.0])[: x.shape[1]]
    psi = float(weights[2]) if extra is not None else 0.0
    win_rate = float(_sigmoid(at_equal_length @ weights).mean())
    return LengthControlled(win_rate, float(weights[0]), float(weights[1]), psi, float(strength))


def bootstrap(
    estimate: Callable[[np.ndarray], float], comparisons: int, *, resamples: int, seed: int, level: float = 0.95
) -> Interval:
    """Percentile bootstrap over comparisons.

    Args:
        estimate: From indices of comparisons, shape (P,), to a number.
        comparisons: How many comparisons there are, P.
        resamples: How often to draw P comparisons with replacement.
        seed: Seed of the draws.
        level: Coverage of the interval.

    Returns:
        Draws in which the estimate does not exist (a `UserError`) are left out and not counted in ``resamples``.

    Example:
        >>> wins = np.array([1.0, 0.0] * 50)
        >>> interval = bootstrap(lambda i: wins[i].mean(), 100, resamples=400, seed=0)
        >>> bool(0.04 < interval.se < 0.06), interval.resamples
        (True, 400)
    """
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        try:
            values.append(estimate(rng.integers(comparisons, size=comparisons)))
        except UserError:
            continue
    if len(values) < 2:
        return Interval(np.nan, np.nan, np.nan, len(values))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.std(values, ddof=1)), float(low), float(high), len(values))


def _check(y: np.ndarray, gap: np.ndarray, difficulty: np.ndarray | None) -> None:
    columns = {"preferences": y, "lengths": gap} | ({} if difficulty is None else {"difficulty": difficulty})
    for name, values in columns.items():
        if values.shape != y.shape or y.ndim != 1:
            raise UserError(name, f"expected shape ({len(y)},) as the preferences, got {values.shape}")
        if not np.isfinite(values).all():
            raise UserError(name, f"expected finite numbers, got {int((~np.isfinite(values)).sum())} that are not")
    if ((y < 0) | (y > 1)).any():
        raise UserError("preferences", f"expected values in [0, 1], got {y.min():g} to {y.max():g}")
    if len(y) < 2:
        raise UserError("comparisons", f"length control needs at least 2, got {len(y)}", "give more prompts")


class _Rows(NamedTuple):
    """Columns of the model (own term, length, difficulty), preferences and weights."""

    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray

    def joined(self, other: _Rows) -> _Rows:
        return _Rows(*map(np.concatenate, zip(self, other, strict=True)))

    def taken(self, rows: np.ndarray) -> _Rows:
        return _Rows(*(values[rows] for values in self))

    def both_outcomes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each as a win and as a loss, weighted by their probabilities; scikit-learn wants hard labels."""
        labels = np.repeat([1, 0], len(self.y))
        weights = np.concatenate([self.y, 1 - self.y]) * np.tile(self.weight, 2)
        kept = weights > 0
        return np.tile(self.x, (2, 1))[kept], labels[kept], weights[kept]


def _anchor_rows(anchor: Anchor, columns: int) -> _Rows:
    y = np.asarray(anchor.preferences, np.float64)
    if columns == 3 and anchor.difficulty is None:
        raise UserError("anchor", "has no difficulty, which the comparisons have", "give it for both or for none")
    x = np.zeros((len(y), columns))
    x[:, 1] = np.tanh(anchor.standard_gaps)
    if columns == 3:
        x[:, 2] = anchor.difficulty
    return _Rows(x, y, np.full_like(y, anchor.weight))


def _fit(rows: _Rows) -> np.ndarray:
    """Maximum likelihood; no finite weights exist where the columns separate wins from losses."""
    x, y, _ = rows
    # A column of zeros (equal lengths) or a multiple of the model's has any weight: left out, and 0.
    used = np.ptp(x, axis=0) > 0
    used[0] = True
    weights = np.zeros(x.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no convergence and a singular Hessian: caught below by the score
        model = _logistic_regression()(C=np.inf, solver="newton-cholesky", fit_intercept=False, tol=1e-10, max_iter=200)
        model.fit(*rows._replace(x=x[:, used]).both_outcomes())
    weights[used] = model.coef_[0]
    score = x[:, used].T @ (rows.weight * (y - _sigmoid(x @ weights))) / len(y)
    if np.abs(x * weights).max() > DIVERGED or np.abs(score).max() > 1e-5:
        raise UserError(
            "length control",
            "the length difference (with the difficulty) separates wins from losses: there is no finite estimate",
            "give more comparisons or take penalty l1_cv",
        )
    return weights


def _fit_l1(rows: _Rows, inverse_penalty: float) -> np.ndarray:
    features, labels, sample_weights = rows.both_outcomes()
    if np.ptp(labels) == 0:
        raise UserError(
            "length control",
            "a part of the cross-validation holds wins alone or losses alone",
            "give more comparisons or take penalty none",
        )
    model = _logistic_regression()(
        C=inverse_penalty,
        l1_ratio=1.0,
        solver="liblinear",
        fit_intercept=False,
        tol=1e-6,
        max_iter=1000,
        random_state=0,
    )
    weights: np.ndarray = model.fit(features, labels, sample_weights).coef_[0]
    return weights


def _cross_validated(rows: _Rows, folds: int = 5) -> float:
    """The C with the best held-out log loss; both outcomes of a comparison are in the same fold."""
    fold = np.arange(len(rows.y)) % min(folds, len(rows.y))

    def held_out(c: float) -> float:
        losses = []
        for k in range(fold.max() + 1):
            x, y, weight = rows.taken(fold == k)
            logits = x @ _fit_l1(rows.taken(fold != k), c)
            losses.append(np.mean(weight * (np.logaddexp(0, logits) - y * logits)))
        return float(np.mean(losses))

    return float(min(np.logspace(-4, 4, 10), key=held_out))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    p: np.ndarray = np.exp(-np.logaddexp(0, -logits))
    return p


def _logistic_regression() -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise UserError(
            "length control",
            "needs the package scikit-learn, which is not installed",
            "pip install 'adadpo-lightning[eval]'",
        ) from error
    return LogisticRegression
