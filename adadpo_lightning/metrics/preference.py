"""Preference metrics of one step: pure functions, with TRL's metric names if TRL has the metric."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from adadpo_lightning.metrics import names
from adadpo_lightning.metrics.functional import (
    correlation_from_moments,
    correlation_moments,
    losses_of_likelihood,
    successes,
)

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.types import PreferenceBatch, StepOutput

Statistics = dict[str, "tuple[Tensor, Tensor | float]"]

# Averaged as logarithms over pairs, reported as geometric means.
_GEOMETRIC = (names.BALANCE_RATIO, names.BALANCE_RATIO_POLICY)
# Averaged as squares over optimizer steps, reported as root mean squares.
_SQUARES = (names.GRAD_NORM_CHOSEN, names.GRAD_NORM_REJECTED, names.GRAD_NORM_PROMPT)
# Over a full set, the loss is the sum of a contrastive term (mean over pairs), an NLL term (mean over tokens) and the
# routers' term (mean over pairs of each micro-batch's own).
_TERMS = ("loss/contrast", "loss/nll", "loss/aux")
# Moments of margin and length difference; reported as their correlation.
_MOMENTS = tuple(f"length/moment_{name}" for name in ("m", "d", "mm", "dd", "md"))


def step_statistics(step: StepOutput, batch: PreferenceBatch, beta: float = 1.0, *, by_step: bool = True) -> Statistics:
    """Weighted sums of all metrics of a micro-batch, on its device; `finish` turns their means into metrics.

    Args:
        step: Output of the step.
        batch: Batch of the step.
        beta: Scale of ``kl/margin``: beta of the loss, if it has one.
        by_step: Whether the loss is the mean over optimizer steps, as in training. Otherwise it is the loss over all
            pairs seen, normalized by their number of pairs and tokens: a limited validation does not see all pairs of
            its plan.

    Returns:
        ``(sum, weight)`` for each name; weights count pairs, tokens or optimizer steps.
    """
    pairs, loss = step.pairs, step.loss
    count = 0 if batch.filler else len(batch)
    statistics: Statistics
    if by_step:
        # A micro-batch is B / step_pairs of an optimizer step, so a window yields the mean loss per step.
        statistics = {names.LOSS: (step.share, count / batch.step_pairs)}
    else:
        statistics = {_TERMS[0]: (loss.per_pair.sum(), count)}
        if loss.nll is not None:
            statistics[_TERMS[1]] = (loss.nll.sum(), pairs.chosen_len.sum())
        if step.aux_loss is not None and step.aux_coefficient:
            statistics[_TERMS[2]] = (step.aux_coefficient * step.aux_loss * count, count)
    if loss.nll is not None:
        statistics[names.NLL_LOSS] = (-pairs.chosen.sum(), pairs.chosen_len.sum())
    if step.aux_loss is not None:
        statistics[names.AUX_LOSS] = (step.aux_loss * count, count)
    statistics[names.LOGPS_CHOSEN] = (pairs.chosen.sum(), count)
    statistics[names.LOGPS_CHOSEN_PER_TOKEN] = (pairs.chosen.sum(), pairs.chosen_len.sum())
    if loss.log_balance is not None:
        statistics |= _contrast(step, count) | _divergence(step, beta, count)
    if step.entropy is not None:
        for side, total in zip(("chosen", "rejected"), step.entropy.chunk(2), strict=True):
            lengths = pairs.chosen_len if side == "chosen" else pairs.rejected_len
            statistics[f"entropy/{side}"] = (total.sum(), lengths.sum())
    return {name: (total * 0.0, 0.0) for name, (total, _) in statistics.items()} if batch.filler else statistics


def _contrast(step: StepOutput, count: int) -> Statistics:
    """Metrics that need both answers."""
    pairs, loss = step.pairs, step.loss
    chosen, rejected = loss.chosen_rewards, loss.rejected_rewards
    per_pair: dict[str, Tensor | None] = {
        names.LOGPS_REJECTED: pairs.rejected,
        names.REWARDS_CHOSEN: chosen,
        names.REWARDS_REJECTED: rejected,
        names.REWARDS_MARGINS: chosen - rejected,
        names.REWARDS_ACCURACIES: successes(chosen, rejected),
        names.BALANCE_COEFFICIENT: loss.coefficient,
        names.BALANCE_CLIPPED: None if loss.clipped is None else loss.clipped.to(chosen.dtype),
        names.PAIR_WEIGHT: loss.pair_weight,
        names.BALANCE_RATIO: loss.log_balance,
        names.BALANCE_RATIO_POLICY: loss.log_balance_policy,
    }
    statistics: Statistics = {name: (v.sum(), count) for name, v in per_pair.items() if v is not None}
    for name in _GEOMETRIC:  # pairs with a gradient on one side only have no ratio
        if (ratio := per_pair[name]) is not None:
            statistics[name] = (ratio.nansum(), (~ratio.isnan()).sum())
    statistics[names.LOGPS_REJECTED_PER_TOKEN] = (pairs.rejected.sum(), pairs.rejected_len.sum())
    moments: Tensor = correlation_moments(chosen - rejected, pairs.chosen_len - pairs.rejected_len)
    statistics |= dict(zip(_MOMENTS, ((moment, count) for moment in moments), strict=True))
    return statistics


def _divergence(step: StepOutput, beta: float, count: int) -> Statistics:
    """Distance to the reference on the tokens of the data; empty without a reference."""
    pairs = step.pairs
    if step.kl is None or pairs.ref_chosen is None or pairs.ref_rejected is None:
        return {}
    kl_chosen, kl_rejected = step.kl.chunk(2)
    # The reference equals the policy at step 0.
    drift_chosen, drift_rejected = pairs.chosen - pairs.ref_chosen, pairs.rejected - pairs.ref_rejected
    margin = beta * (drift_chosen - drift_rejected)
    statistics: Statistics = {
        names.KL_CHOSEN: (kl_chosen.sum(), pairs.chosen_len.sum()),
        names.KL_REJECTED: (kl_rejected.sum(), pairs.rejected_len.sum()),
        names.KL_MARGIN: (margin.sum(), count),
    }
    return statistics | displacement(drift_chosen, drift_rejected, count)


def displacement(drift_chosen: Tensor, drift_rejected: Tensor, count: int) -> Statistics:
    """Change of the log-probabilities of `count` pairs since step 0, nats, each (B,)."""
    return {
        names.DISPLACEMENT_CHOSEN: (drift_chosen.sum(), count),
        names.DISPLACEMENT_REJECTED: (drift_rejected.sum(), count),
        names.DISPLACEMENT_CHOSEN_FELL: (losses_of_likelihood(drift_chosen).sum(), count),
    }


def gradient_statistics(squares: Tensor, batch: PreferenceBatch) -> Statistics:
    """Squared gradient norms of a micro-batch, per optimizer step.

    Args:
        squares: Result of `gradient_squares`.
        batch: Batch of the step.
    """
    weight = 0.0 if batch.filler else len(batch) / batch.step_pairs
    return {
        name: (square * 0.0 if batch.filler else square, weight)
        for name, square in zip(_SQUARES, squares.unbind(), strict=True)
    }


def finish(means: Mapping[str, float], seen: Iterable[str] = ()) -> dict[str, float]:
    """Turn the means of the statistics into the reported metrics.

    Mean logarithms become geometric means, mean squares root mean squares, and moments a correlation.

    Args:
        means: The means by name.
        seen: Names of all statistics. A ratio among them that has no mean, because no pair had one, becomes NaN: a
            logger would repeat its last value otherwise.

    Example:
        >>> finish({"grad_balance/ratio": 0.0, "grad_norm/chosen": 9.0, "grad_norm/rejected": 4.0})
        {'grad_balance/ratio': 1.0, 'grad_norm/chosen': 3.0, 'grad_norm/rejected': 2.0, 'grad_norm/ratio': 1.5}
    """
    means = {name: math.nan for name in _GEOMETRIC if name in seen} | dict(means)
    terms = [means[name] for name in _TERMS if name in means]
    metrics = {names.LOSS: sum(terms)} if terms else {}
    metrics |= {name: _shown(name, value) for name, value in means.items() if name not in (*_MOMENTS, *_TERMS)}
    if metrics.get(names.GRAD_NORM_REJECTED):
        metrics[names.GRAD_NORM_RATIO] = metrics[names.GRAD_NORM_CHOSEN] / metrics[names.GRAD_NORM_REJECTED]
    if _MOMENTS[0] in means:
        moments = torch.tensor([means[name] for name in _MOMENTS], dtype=torch.float64)
        metrics[names.LENGTH_DIFFERENCE] = means[_MOMENTS[1]]
        correlation = correlation_from_moments(moments).item()
        if not math.isnan(correlation):  # at step 0 all margins are equal
            metrics[names.LENGTH_MARGIN_CORRELATION] = correlation
    return metrics


def _shown(name: str, mean: float) -> float:
    if name in _GEOMETRIC:
        return math.nan if math.isnan(mean) else math.exp(min(mean, 700.0))
    return math.sqrt(mean) if name in _SQUARES else mean
