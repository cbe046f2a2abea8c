"""Extrapolate the time of a step and an epoch from a few measured micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adadpo_lightning.data.plan import StepPlan

Rows = tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """Pair indices of three micro-batches of a plan: the shortest pairs, those of medium length, and the longest."""

    shortest: Rows
    middle: Rows
    longest: Rows


@dataclass(frozen=True)
class Line:
    """Cost of a micro-batch: ``fixed + per_token * tokens``, both non-negative."""

    fixed: float
    per_token: float

    def at(self, tokens: float) -> float:
        """Cost of a micro-batch of `tokens` tokens."""
        return self.fixed + self.per_token * tokens


@dataclass(frozen=True)
class Duration:
    """Seconds of an average optimizer step and of an epoch."""

    step: float
    epoch: float


def sizes_of(plan: StepPlan) -> Sizes:
    """Micro-batches of the plan's size, from its shortest, medium and longest pairs.

    With a fixed number of pairs, the last is an upper bound: the plan mixes long pairs with short ones.
    """
    order = np.argsort(plan.lengths, kind="stable")
    middle = (len(order) - _count(plan, order)) // 2
    return Sizes(*(_rows(plan, pairs) for pairs in (order, order[middle:], order[::-1])))


def _rows(plan: StepPlan, order: NDArray[np.int64]) -> Rows:
    return tuple(order[: _count(plan, order)].tolist())


def _count(plan: StepPlan, order: NDArray[np.int64]) -> int:
    """Number of leading pairs that fill a micro-batch."""
    if plan.max_tokens is None:
        return min(plan.micro_batch_size, len(order))
    fitting = int(np.searchsorted(np.cumsum(plan.lengths[order]), plan.max_tokens, side="right"))
    return max(1, fitting)


def fit_line(tokens: Sequence[int], costs: Sequence[float]) -> Line:
    """Line through the first and the last measurement, or through the origin if a coefficient would be negative.

    Example:
        >>> fit_line([100, 300], [2.0, 4.0])
        Line(fixed=1.0, per_token=0.01)
        >>> fit_line([100], [2.0])
        Line(fixed=0.0, per_token=0.02)
    """
    run = tokens[-1] - tokens[0]
    slope = (costs[-1] - costs[0]) / run if run else 0.0
    fixed = costs[0] - slope * tokens[0]
    if slope <= 0 or fixed < 0:
        return Line(0.0, costs[-1] / tokens[-1])
    return Line(fixed, slope)


def duration(plan: StepPlan, micro_batch: Line, update: float) -> Duration:
    """Estimated time of a plan.

    Args:
        plan: The plan.
        micro_batch: Seconds of forward and backward pass.
        update: Seconds of the optimizer per step.
    """
    tokens = tokens_per_epoch(plan) / plan.ranks
    epoch = plan.steps * (plan.accumulate * micro_batch.fixed + update) + tokens * micro_batch.per_token
    return Duration(epoch / plan.steps, epoch)


def tokens_per_epoch(plan: StepPlan, steps: int = 32) -> float:
    """Tokens of all forward passes of an epoch; where pairs share prompts, extrapolated from the first steps."""
    total = float(plan.lengths.sum())
    if plan.groups is None:
        return total
    order = plan.order(0)
    sampled = range(min(steps, plan.steps))
    batches = [b for step in sampled for rank in plan.step_batches(order, step) for b in rank if not b.filler]
    whole = sum(int(plan.lengths[plan.step_rows(order, step)].sum()) for step in sampled)
    return total * sum(plan.tokens(np.array(batch.rows)) for batch in batches) / whole
