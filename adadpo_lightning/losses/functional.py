"""Numerically stable building blocks of the losses: pure functions of tensors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

# Upper bound of the mean log-probability in log-odds, which are infinite at p = 1. float32 rounds a confident model's
# mean to exactly 0, and one such pair must not make the whole batch infinite.
_LARGEST_LOGP = -1e-12


def log1mexp(x: Tensor) -> Tensor:
    """``log(1 - exp(x))`` for ``x < 0``, accurate near 0 and far from it, in value and gradient.

    Two forms, each used where the other loses precision (Maechler 2012, "Accurately computing log(1 - exp(-|a|))"). The
    unused branch of a `torch.where` still propagates gradients, so each branch gets an argument that is safe for it.

    Args:
        x: Negative numbers, any shape.

    Example:
        >>> log1mexp(torch.tensor([-1e-8, -50.0], dtype=torch.float64))
        tensor([-1.8421e+01, -1.9287e-22], dtype=torch.float64)
    """
    near = x > -math.log(2.0)
    x_near = torch.where(near, x, -1.0)
    x_far = torch.where(near, -1.0, x)
    return torch.where(near, torch.log(-torch.expm1(x_near)), torch.log1p(-torch.exp(x_far)))


def log_odds(logp: Tensor) -> Tensor:
    """``log p - log(1 - p)`` of a log-probability; finite for every ``logp <= 0``.

    Args:
        logp: Log-probabilities in nats, any shape; values above -1e-12 are treated as -1e-12.

    Source: ORPO, arXiv 2403.07691, eq. 4.
    """
    logp = logp.clamp(max=_LARGEST_LOGP)
    return logp - log1mexp(logp)


def log_one_minus_p(logp: Tensor) -> Tensor:
    """``log(1 - p)`` of a log-probability, with the same guard at p = 1 as `log_odds`."""
    return log1mexp(logp.clamp(max=_LARGEST_LOGP))


def logistic_link(margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """``-(1 - e) logsigmoid(m) - e logsigmoid(-m)``, per pair.

    Args:
        margin: Margin m, any shape.
        label_smoothing: e, the assumed share of flipped labels, in [0, 0.5).

    Source: DPO, arXiv 2305.18290, eq. 7; with e > 0 conservative DPO (Mitchell 2023).
    """
    loss = -F.logsigmoid(margin)
    if label_smoothing == 0.0:
        return loss
    return (1.0 - label_smoothing) * loss - label_smoothing * F.logsigmoid(-margin)


# Exponents up to this one are exact. Above it `power_score` continues on its tangent: a sum over an answer reaches
# exponents of hundreds, and one such pair must not make the whole batch infinite.
_LARGEST_EXPONENT = 40.0


def power_score(v: Tensor, alpha: float) -> Tensor:
    """``(1 - exp(-alpha v)) / alpha``; v itself for alpha 0, its limit.

    Args:
        v: Log-ratios or log-probabilities in nats, any shape.
        alpha: Shape; 1 is the forward KL divergence's score.

    Source: f-DPO, arXiv 2309.16240; AlphaPO, arXiv 2501.03884.

    Example:
        >>> power_score(torch.tensor([0.5, 1.0]), 1.0)
        tensor([0.3935, 0.6321])
    """
    if alpha == 0:
        return v
    exponent = -alpha * v
    tangent = math.exp(_LARGEST_EXPONENT) * (exponent - _LARGEST_EXPONENT).relu()
    return -(torch.expm1(exponent.clamp(max=_LARGEST_EXPONENT)) + tangent) / alpha


def power_score_log_slope(v: Tensor, alpha: float) -> Tensor:
    """``log`` of the derivative of `power_score`: ``-alpha v``, constant on the tangent."""
    return (-alpha * v).clamp(max=_LARGEST_EXPONENT)
