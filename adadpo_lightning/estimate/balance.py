"""How evenly a plan shares work over ranks, and what the rest costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adadpo_lightning.data.plan import StepPlan


@dataclass(frozen=True)
class Imbalance:
    """Work of the slowest rank over the mean of all ranks, minus 1, averaged over steps.

    Args:
        by_step: If ranks wait for each other once per optimizer step (DDP).
        in_lockstep: If they wait in each micro-batch (FSDP2, which gathers every block over all ranks).
    """

    by_step: float
    in_lockstep: float


def imbalance(plan: StepPlan, work: NDArray[np.float64], steps: Iterable[int]) -> Imbalance:
    """Imbalance of some full steps of a plan's first epoch.

    Args:
        plan: The plan.
        work: Work of each pair in any unit, for example tokens or FLOP, shape (pairs,). Pairs must share nothing.
        steps: Numbers of the steps.
    """
    order, found = plan.order(0), []
    for step in steps:
        ranks = plan.step_batches(order, step)
        # Ranks x micro-batches. A filler contributes nothing, and is computed all the same.
        loads = np.array([[work[list(batch.rows)].sum() for batch in batches] for batches in ranks])
        mean = loads.mean()
        found.append((loads.mean(1).max() / mean - 1, loads.max(0).mean() / mean - 1))
    return Imbalance(*(float(value) for value in np.mean(found, axis=0)))
