"""Intervals and tests over a few seeds, by scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adadpo_lightning.errors import UserError

# The sign-flip test is exact up to 16 seeds; beyond, it draws this many sign patterns.
SIGN_PATTERNS = 2**16


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean and t-interval of independent values; NaN ends for fewer than two.

    Example:
        >>> [round(v, 2) for v in t_interval([1.0, 2.0, 3.0])]
        [2.0, -0.48, 4.48]
    """
    mean = float(np.mean(values)) if len(values) else math.nan
    if len(values) < 2:
        return mean, math.nan, math.nan
    if np.ptp(values) == 0:
        return mean, mean, mean
    low, high = _scipy().t.interval(level, len(values) - 1, loc=mean, scale=_scipy().sem(values))
    return mean, float(low), float(high)


def t_test(values: Sequence[float]) -> float:
    """Two-sided p of the one-sample t-test that the mean is 0; NaN for fewer than two values.

    Example:
        >>> round(t_test([1.0, 2.0, 1.5, 3.0, 0.5]), 4)
        0.0205
    """
    if len(values) < 2:
        return math.nan
    if np.ptp(values) == 0:
        return 0.0 if values[0] else 1.0
    return float(_scipy().ttest_1samp(values, 0.0).pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's adjusted p of each p of a family; NaN stays and does not count.

    The adjusted p of the i-th smallest of m is the largest ``(m - j + 1) p_j`` over j <= i, at most 1. Holm, "A Simple
    Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6 (1979).

    Example:
        >>> holm([0.01, 0.04, 0.03, float("nan")])
        [0.03, 0.06, 0.06, nan]
    """
    order = sorted((i for i, p in enumerate(values) if not math.isnan(p)), key=lambda i: values[i])
    adjusted, largest = [math.nan] * len(values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * values[i]))
        adjusted[i] = largest
    return adjusted


def sign_flip(values: Sequence[float]) -> float:
    """Two-sided p of the sign-flip test: the share of sign patterns with a mean at least as far from zero.

    Example:
        >>> sign_flip([1.0, 2.0, 1.5, 3.0, 0.5])
        0.0625
    """
    if not len(values):
        return math.nan
    if len(values) < 2:
        return 1.0
    test = _scipy().permutation_test(
        (np.asarray(values),), np.mean, permutation_type="samples", n_resamples=SIGN_PATTERNS, rng=0
    )
    return float(test.pvalue)


@dataclass(frozen=True)
class Count:
    """Number of cells in which one arm beats another.

    Args:
        wins: Cells with a difference above zero.
        cells: Cells compared.
        low: Lower end of the 95 % Clopper-Pearson interval of the share.
        high: Upper end of the interval.
    """

    wins: int
    cells: int
    low: float
    high: float


def count_wins(differences: Sequence[float]) -> Count:
    """Count differences above zero, with an interval that assumes independent cells."""
    wins, cells = sum(d > 0 for d in differences), len(differences)
    if not cells:
        return Count(0, 0, math.nan, math.nan)
    interval = _scipy().binomtest(wins, cells).proportion_ci()
    return Count(wins, cells, float(interval.low), float(interval.high))


def _scipy() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise UserError("study", "the report needs scipy", "pip install 'adadpo-lightning[study]'") from error
    return stats
