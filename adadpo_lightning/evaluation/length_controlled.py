"""Length-controlled win rate: the win rate that remains when both answers are equally long.

The logistic model of AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475):

    logit P(win) = theta + phi * tanh((length - opponent's length) / std) + psi * difficulty

``std`` is over the comparisons (n - 1 in the divisor). The length-controlled win rate is the mean over prompts of
``sigmoid(theta + psi * difficulty)``: the length term is set to zero, the prompt's difficulty stays. Without a
difficulty column the last term is left out. Soft preferences count as both outcomes, weighted by their probability.

Where AlpacaEval's paper and code leave a choice, it is an argument: see `length_controlled`. Its leaderboard also uses
data that are not shipped here: the difficulties, which it fits jointly over many models, and an `Anchor` of the
baseline against itself asked to be concise and to be verbose. Without the difficulties the fit extrapolates where one
side is much longer in nearly every comparison: on AlpacaEval's published annotations of 48 models, the win rates equal
those of its leaderboard, but the length-controlled ones differ by 6.6 points on average and 23 at most; with
difficulties fitted jointly over these 48 models and no anchor by 1.1 and 6.9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.logistic import Rows, cross_validated, fit, fit_l1, sigmoid
from adadpo_lightning.evaluation.statistics import Estimate, mean_over_prompts

if TYPE_CHECKING:
    from adadpo_lightning.evaluation.options import Penalty


class LengthControlled(NamedTuple):
    """A fit of the model.

    Args:
        win_rate: Length-controlled win rate, in [0, 1].
        theta: Log-odds of a win at equal length and difficulty 0; infinite where all comparisons were won or lost.
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
    """Comparisons of the baseline with itself at another length, in which the model's term is absent.

    AlpacaEval's code adds such rows (those of its two "gamed" baselines) to determine the weight of the length.

    Args:
        preferences: For the longer or shorter version, in [0, 1], shape (A,).
        standard_gaps: Its length minus the plain version's over the standard deviation of its own file, shape (A,).
        difficulty: Difficulty of each instruction, shape (A,); None where the model has no such term.
        weight: Weight of a row, where a comparison of the model has 1; AlpacaEval's is 0.2 over the number of files.
    """

    preferences: np.ndarray
    standard_gaps: np.ndarray
    difficulty: np.ndarray | None
    weight: float


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
            AlpacaEval's code does and its paper does not describe: an L1 penalty on all three weights, its strength
            from 10 values between 1e-4 and 1e4 by five-fold cross-validation of the log loss (extra ``eval``).
        inverse_penalty: A fixed strength for ``l1_cv`` instead of the cross-validation.
        anchor: Further rows for the fit.

    Raises:
        UserError: For fewer than two comparisons, values out of range, a missing scikit-learn, and preferences that the
            length (with the difficulty) separates, so that no finite estimate exists.

    Example:
        >>> lengths = np.array([4.0, -4.0, 8.0, -8.0])
        >>> bias_alone = 1 / (1 + np.exp(-2 * np.tanh(lengths / lengths.std(ddof=1))))
        >>> found = length_controlled(bias_alone, lengths)
        >>> round(found.win_rate, 4), round(found.phi, 3)
        (0.5, 2.0)
    """
    y, gap = np.asarray(preferences, np.float64), np.asarray(length_differences, np.float64)
    extra = None if difficulty is None else np.asarray(difficulty, np.float64)
    _check(y, gap, extra)
    if (y == y[0]).all() and y[0] in (0.0, 1.0):
        # The likelihood has no maximum, but its supremum is at this win rate whatever the lengths.
        return LengthControlled(float(y[0]), float(np.inf if y[0] else -np.inf), 0.0, 0.0, np.inf)
    x = _columns(gap, extra)
    rows = Rows(x, y, np.ones_like(y))
    if anchor is not None:
        rows = rows.joined(_anchor_rows(anchor, x.shape[1]))
    if penalty == "l1_cv":
        strength = cross_validated(rows) if inverse_penalty is None else inverse_penalty
        weights = fit_l1(rows, strength)
    else:
        strength, weights = np.inf, fit(rows)
    at_equal_length = x * np.array([1.0, 0.0, 1.0])[: x.shape[1]]
    psi = float(weights[2]) if extra is not None else 0.0
    win_rate = float(sigmoid(at_equal_length @ weights).mean())
    return LengthControlled(win_rate, float(weights[0]), float(weights[1]), psi, float(strength))


def length_controlled_win_rate(preferences: np.ndarray, length_differences: np.ndarray) -> Estimate:
    """Win rate of `length_controlled` for several comparisons per prompt, with a standard error clustered by prompt.

    Args:
        preferences: Probability that the judge prefers the model's answer, shape (P, S).
        length_differences: Length of the model's answer minus the opponent's, shape (P, S).

    Raises:
        UserError: As `length_controlled`.

    Example:
        >>> lengths = np.array([[4.0], [-4.0], [8.0], [-8.0]])
        >>> bias_alone = 1 / (1 + np.exp(-2 * np.tanh(lengths / lengths.std())))
        >>> round(length_controlled_win_rate(bias_alone, lengths).value, 3)
        0.5
    """
    if np.ptp(length_differences) == 0:
        return mean_over_prompts(preferences)
    y, gap = preferences.reshape(-1), length_differences.reshape(-1)
    found = length_controlled(y, gap)
    if not np.isfinite(found.theta):
        return Estimate(found.win_rate, 0.0)
    x = _columns(gap, None)
    p = sigmoid(x @ np.array([found.theta, found.phi]))
    scores = ((y - p)[:, None] * x).reshape(*preferences.shape, 2).sum(1)
    inverse = np.linalg.inv(x.T @ (x * (p * (1 - p))[:, None]))
    variance = (inverse @ (scores.T @ scores) @ inverse)[0, 0]
    return Estimate(found.win_rate, float(found.win_rate * (1 - found.win_rate) * np.sqrt(variance)))


def _columns(gap: np.ndarray, difficulty: np.ndarray | None) -> np.ndarray:
    """Columns of the model: its own term, the length, the difficulty if there is one; shape (P, 2 or 3)."""
    spread = gap.std(ddof=1)
    longer = np.tanh(gap / spread) if spread > 0 else np.zeros_like(gap)
    return np.stack([np.ones_like(gap), longer, *([] if difficulty is None else [difficulty])], 1)


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


def _anchor_rows(anchor: Anchor, columns: int) -> Rows:
    y = np.asarray(anchor.preferences, np.float64)
    if columns == 3 and anchor.difficulty is None:
        raise UserError("anchor", "has no difficulty, which the comparisons have", "give it for both or for neither")
    x = np.zeros((len(y), columns))
    x[:, 1] = np.tanh(anchor.standard_gaps)
    if columns == 3:
        x[:, 2] = anchor.difficulty
    return Rows(x, y, np.full_like(y, anchor.weight))
