"""Gradients of a loss by autograd, and the balance between them, computed apart from the losses' own closed forms."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from adadpo_lightning.losses.base import PairwiseLoss, PreferenceLoss
from adadpo_lightning.losses.sides import Sides

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.types import PairLogps


def gradients(loss: PreferenceLoss, x: PairLogps, part: str = "per_pair") -> Sides:
    """``dL/dl_s`` of each pair by autograd, for one part of the loss; zeros where it does not depend on a side.

    Args:
        loss: The loss.
        x: The pairs.
        part: ``per_pair`` for the contrastive part, ``nll`` for the likelihood part.
    """
    leaf, (chosen, rejected) = as_leaf(x)
    total = getattr(loss(leaf), part).sum()
    return Sides(*grad(total, chosen, rejected))


def autograd_log_balance(loss: PreferenceLoss, x: PairLogps) -> Tensor:
    """``log g_w - log g_l`` in policy space per token, by autograd; NaN where a gradient is 0, shape (B,)."""
    slopes = gradients(loss, x)
    return _log_ratio(slopes) - (x.chosen / x.chosen_len - x.rejected / x.rejected_len)


def own_log_balance(loss: PairwiseLoss, x: PairLogps) -> Tensor:
    """``log g_w - log g_l`` with ``g_s = |dL/dv_s| / u_s`` in the loss's own space, by autograd, shape (B,)."""
    slopes = gradients(loss, x)
    leaf, (chosen, rejected) = as_leaf(x)
    v = loss.variable(leaf)
    dv = Sides(*grad(v.chosen.sum() + v.rejected.sum(), chosen, rejected))
    u = _log_u(loss, x)
    return _log_ratio(slopes) - _log_ratio(dv) - (u.chosen - u.rejected)


def as_leaf(x: PairLogps) -> tuple[PairLogps, Sides]:
    """The pairs with chosen and rejected log-probabilities as leaves of autograd, and these leaves."""
    sides = Sides(x.chosen.detach().clone().requires_grad_(), x.rejected.detach().clone().requires_grad_())
    return replace(x, chosen=sides.chosen, rejected=sides.rejected), sides


def grad(total: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Gradients of `total`; zeros for inputs that it does not depend on."""
    if not total.requires_grad:
        return tuple(torch.zeros_like(t) for t in inputs)
    return torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)


def _log_u(loss: PairwiseLoss, x: PairLogps) -> Sides:
    """``log u_s`` as the method defines it, written apart from the losses' own."""
    space = getattr(loss, "space", None) or ("ratio" if loss.needs_reference else "policy")
    chosen, rejected = x.chosen, x.rejected
    if space == "ratio" and x.ref_chosen is not None and x.ref_rejected is not None:
        chosen, rejected = chosen - x.ref_chosen, rejected - x.ref_rejected
    if getattr(loss, "normalize", "token") == "token":
        chosen, rejected = chosen / x.chosen_len, rejected / x.rejected_len
    return Sides(chosen, rejected)


def _log_ratio(sides: Sides) -> Tensor:
    smallest = 1e6 * torch.finfo(sides.chosen.dtype).tiny  # below the smallest number digits are lost, here or before
    big = (sides.chosen.abs() > smallest) & (sides.rejected.abs() > smallest)
    return torch.where(big, sides.chosen.abs().log() - sides.rejected.abs().log(), math.nan)
