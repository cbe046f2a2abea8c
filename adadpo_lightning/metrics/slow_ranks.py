"""Which ranks compute more slowly than the others."""

from __future__ import annotations

from statistics import median_low
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def slowness(seconds: Sequence[float], positions: Sequence[float]) -> list[float]:
    """How many times the median each rank takes: in seconds or in seconds per position, whichever is less.

    A rank that is only given more to compute is not slow per position; one that is given less pays its fixed costs for
    fewer positions, and takes no longer. Neither makes the others wait because of its machine. The median is the lower
    one, so that of two ranks the slower one stands out.

    Args:
        seconds: Time that each rank computed.
        positions: Number of token positions that each rank computed in that time.

    Example:
        >>> slowness([1.0, 1.0, 2.0, 1.0], [100, 100, 100, 100])
        [1.0, 1.0, 2.0, 1.0]
        >>> slowness([1.0, 1.0, 2.0, 1.0], [100, 100, 200, 100])
        [1.0, 1.0, 1.0, 1.0]
    """
    rates = [spent / count for spent, count in zip(seconds, positions, strict=True)]
    return [min(pair) for pair in zip(_over_median(seconds), _over_median(rates), strict=True)]


def _over_median(values: Sequence[float]) -> list[float]:
    middle = median_low(values)
    return [value / middle for value in values]
