"""Means, win rates and bootstrap intervals, with errors over prompts. Rates are fractions."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    se: float


class Interval(NamedTuple):
    """Bootstrap standard error and percentile interval, and the number of resamples that have an estimate."""

    se: float
    low: float
    high: float
    resamples: int


def mean_over_prompts(values: np.ndarray) -> Estimate:
    """Mean with its standard error, where only prompts are independent.

    Args:
        values: Shape (P,), or (P, S) for S comparisons on each of P prompts.

    Example:
        >>> mean_over_prompts(np.array([[1.0, 0.0], [1.0, 1.0]]))
        Estimate(value=0.75, se=0.25)
    """
    per_prompt = np.asarray(values, dtype=np.float64).reshape(len(values), -1).mean(1)
    spread = per_prompt.std(ddof=1) / np.sqrt(len(per_prompt)) if len(per_prompt) > 1 else np.nan
    return Estimate(float(per_prompt.mean()), float(spread))


def win_rate(scores: np.ndarray, opponents: np.ndarray) -> Estimate:
    """Fraction of comparisons won; a tie counts as half a win.

    Args:
        scores: One answer's score on each prompt, shape (P,).
        opponents: Scores of the S opposing answers, shape (P, S).

    Example:
        >>> win_rate(np.array([1.0, 0.0]), np.array([[0.0, 1.0], [1.0, 0.0]])).value
        0.5
    """
    difference = scores[:, None] - opponents
    # Sums of the same terms in another order differ in their last bits: these are ties.
    ties = np.isclose(difference, 0.0, atol=1e-9)
    return mean_over_prompts(np.where(ties, 0.5, difference > 0))


def bootstrap(
    estimate: Callable[[np.ndarray], float], comparisons: int, *, resamples: int, seed: int, level: float = 0.95
) -> Interval:
    """Percentile bootstrap over comparisons.

    Args:
        estimate: From indices of comparisons, shape (P,), to a number.
        comparisons: Number of comparisons, P.
        resamples: Number of times that P comparisons are drawn with replacement.
        seed: Random seed.
        level: Coverage of the interval.

    Returns:
        Resamples without an estimate (a `UserError`) are left out and not counted in ``resamples``.

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
