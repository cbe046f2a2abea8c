"""What one step says about preference learning: pure functions, named as TRL names them where it has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.types import PairLogps, PreferenceBatch, StepOutput

Statistics = dict[str, "tuple[Tensor, Tensor | float]"]

# Averaged as logarithms over pairs, shown as geometric means.
_GEOMETRIC = ("grad_balance/ratio", "grad_balance/ratio_policy")


def step_statistics(step: StepOutput, batch: PreferenceBatch, beta: float = 1.0) -> Statistics:
    """Weighted sums of every metric of one micro-batch, on its device; `finish` turns their means into metrics.

    Args:
        step: What the step left.
        batch: Its batch.
        beta: Scale of ``kl/margin``; the loss's own where it has one.

    Returns:
        For each name (sum, weight): per pair, per token or per optimizer step.
    """
    pairs, loss = step.pairs, step.loss
    count = 0 if batch.filler else len(batch)
    # A micro-batch is B / step_pairs of an optimizer step: over a window, the mean loss per step.
    statistics: Statistics = {"loss": (step.share, count / batch.step_pairs)}
    if loss.nll is not None:
        statistics["nll_loss"] = (-pairs.chosen.sum(), pairs.chosen_len.sum())
    statistics["logps/chosen"] = (pairs.chosen.sum(), count)
    statistics["logps/chosen_per_token"] = (pairs.chosen.sum(), pairs.chosen_len.sum())
    if loss.log_balance is not None:
        statistics |= _contrast(step, count) | _divergence(step, beta, count)
    return {name: (total * 0.0, 0.0) for name, (total, _) in statistics.items()} if batch.filler else statistics


def _contrast(step: StepOutput, count: int) -> Statistics:
    """Metrics that need both answers."""
    pairs, loss = step.pairs, step.loss
    chosen, rejected = loss.chosen_rewards, loss.rejected_rewards
    per_pair: dict[str, Tensor | None] = {
        "logps/rejected": pairs.rejected,
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
        "grad_balance/coefficient": loss.coefficient,
        "grad_balance/clipped_fraction": None if loss.clipped is None else loss.clipped.to(chosen.dtype),
        "grad_balance/ratio": loss.log_balance,
        "grad_balance/ratio_policy": loss.log_balance_policy,
    }
    statistics: Statistics = {name: (v.sum(), count) for name, v in per_pair.items() if v is not None}
    statistics["logps/rejected_per_token"] = (pairs.rejected.sum(), pairs.rejected_len.sum())
    return statistics


def _divergence(step: StepOutput, beta: float, count: int) -> Statistics:
    """Distance to the reference, on the data's tokens; empty without one."""
    pairs = step.pairs
    if step.kl is None or pairs.ref_chosen is None or pairs.ref_rejected is None:
        return {}
    kl_chosen, kl_rejected = step.kl.chunk(2)
    margin = beta * log_ratio_difference(pairs)
    return {
        "kl/chosen": (kl_chosen.sum(), pairs.chosen_len.sum()),
        "kl/rejected": (kl_rejected.sum(), pairs.rejected_len.sum()),
        "kl/margin": (margin.sum(), count),
    }


def log_ratio_difference(pairs: PairLogps) -> Tensor:
    """``h_w - h_l``, shape (B,)."""
    if pairs.ref_chosen is None or pairs.ref_rejected is None:
        raise ValueError("log-ratios need reference log-probabilities, got None")
    return (pairs.chosen - pairs.ref_chosen) - (pairs.rejected - pairs.ref_rejected)


def finish(means: Mapping[str, float]) -> dict[str, float]:
    """From the means of `step_statistics` to the metrics as they are shown: geometric means out of mean logarithms.

    Example:
        >>> finish({"grad_balance/ratio": 0.0, "loss": 0.7})
        {'grad_balance/ratio': 1.0, 'loss': 0.7}
    """
    return {name: _exp(value) if name in _GEOMETRIC else value for name, value in means.items()}


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0)) if not math.isnan(value) else torch.nan
