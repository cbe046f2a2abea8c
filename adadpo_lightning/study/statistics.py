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
