"""Quantities that both answers of a pair have: log-ratios, log-probabilities, gradients and the ratio of these."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from adadpo_lightning.types import PairLogps


class Sides(NamedTuple):
    """One quantity for both answers of each pair, each of shape (B,)."""

    chosen: Tensor
    rejected: Tensor


def log_ratios(x: PairLogps) -> Sides:
    """``h_s = l_s - l0_s``: log-ratio to the reference, summed over tokens.

    Raises:
        UserError: If the pair has no reference log-probabilities.
    """
    if x.ref_chosen is None or x.ref_rejected is None:
        raise UserError(
            "PairLogps.ref_chosen",
            "this loss needs reference log-probabilities, got None",
            "pass ref_chosen and ref_rejected, or in a config set model.reference to frozen, adapter_off or cached",
        )
    return Sides(x.chosen - x.ref_chosen, x.rejected - x.ref_rejected)


def tail_log_ratios(x: PairLogps) -> Sides:
    """The part of `log_ratios` beyond the first ``min(n_w, n_l)`` tokens; 0 for the shorter answer.

    Raises:
        UserError: If the pair has no tails.
    """
    if x.chosen_tail is None or x.rejected_tail is None or x.ref_chosen_tail is None or x.ref_rejected_tail is None:
        raise UserError(
            "PairLogps.chosen_tail",
            "this loss needs the sums beyond the shorter answer's length under policy and reference, got None",
            "pass chosen_tail, rejected_tail, ref_chosen_tail and ref_rejected_tail",
        )
    return Sides(x.chosen_tail - x.ref_chosen_tail, x.rejected_tail - x.ref_rejected_tail)


def log_collisions(x: PairLogps) -> Sides:
    """``log sum_v p_v^2`` under the policy, summed over tokens.

    Raises:
        UserError: If the pair does not have it.
    """
    if x.chosen_log_collision is None or x.rejected_log_collision is None:
        raise UserError(
            "PairLogps.chosen_log_collision",
            "this loss needs the policy's collision probabilities, got None",
            "pass chosen_log_collision and rejected_log_collision",
        )
    return Sides(x.chosen_log_collision, x.rejected_log_collision)


def per_token(sides: Sides, x: PairLogps) -> Sides:
    """Divide a sum over each answer's tokens by the number of its tokens."""
    return Sides(sides.chosen / x.chosen_len, sides.rejected / x.rejected_len)


def logps(x: PairLogps) -> Sides:
    """``l_s``: log-probability under the policy, summed over tokens."""
    return Sides(x.chosen, x.rejected)


def log_gradients(loss: Callable[[Tensor, Tensor], Tensor], at: Sides) -> Sides:
    """``log |dL/dv_s|`` by autograd through the pairs' own numbers, not through the model; -inf where it is 0.

    Works under ``inference_mode`` too, where validation runs.

    Args:
        loss: A function of two tensors of shape (B,), one per side, to the loss of each pair, shape (B,).
        at: Where to take the gradients.
    """
    slopes = torch.func.grad(lambda *v: loss(*v).sum(), argnums=(0, 1))(at.chosen.detach(), at.rejected.detach())
    tiny = torch.finfo(at.chosen.dtype).tiny  # below it digits are lost
    return Sides(*(torch.where(slope.abs() > tiny, slope.abs(), 0.0).log() for slope in slopes))


def log_ratio_of(logs: Sides) -> Tensor:
    """``log g_w - log g_l``; NaN where either gradient is 0, so that there is nothing to compare, shape (B,)."""
    defined = logs.chosen.isfinite() & logs.rejected.isfinite()
    return torch.where(defined, logs.chosen - logs.rejected, math.nan)
