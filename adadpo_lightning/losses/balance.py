"""The only home of "adaptive": one stop-gradient coefficient per pair on the chosen score.

Source: AdaDPO, arXiv 2605.28440. The coefficient makes the gradient with respect to a probability-like quantity equally
large on both sides: ``c* = k (u_w / a'(v_w))^alpha_w / (u_l / a'(v_l))^alpha_l``, clipped at a ceiling.
"""
# No `from __future__ import annotations` here: twins in other modules inherit these fields, and the command line must
# be able to resolve their types there.

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from adadpo_lightning.errors import UserError
from adadpo_lightning.losses.base import ContrastiveLoss, PairwiseLoss
from adadpo_lightning.losses.options import require, require_number
from adadpo_lightning.losses.schedule import Number
from adadpo_lightning.losses.sides import Sides, log_ratio_of, log_ratios, logps, per_token
from adadpo_lightning.types import PairLogps


@dataclass(frozen=True, kw_only=True)
class Adaptive(PairwiseLoss):
    """Mixin that turns a pairwise loss into its adaptive, gradient-balanced counterpart.

    Args:
        ceiling: C, upper clip of the coefficient, in (0, 1e6]. The paper uses 2.0: stable in [1.5, 2.5], worse from 5.
        floor: Lower clip, not in the paper; None disables it. ``floor = ceiling = c0`` is a constant coefficient, which
            is DPO-Shift (arXiv 2502.07599) with ``lambda = 1 / c0`` and beta scaled by ``c0``.
        apply: ``margin`` (the paper): c scales the chosen score, forward and backward. ``gradient``: backward only;
            margin and loss value are those of the plain loss.
        space: What to balance gradients in: ``ratio`` (probability ratio to the reference) or ``policy`` (probability).
            None means ratio where the loss needs a reference, else policy.
        normalize: ``token`` (geometric mean per token, the paper's stable form) or ``sequence`` (its exact, unstable
            form; for losses built on sums).
        target_ratio: k, target ratio of the chosen to the rejected gradient; 1 means equal.
        alpha_w: Exponent on the chosen factor; 1 balances fully, 0 disables it.
        alpha_l: Exponent on the rejected factor.
    """

    ceiling: Number = 2.0
    floor: Number | None = None
    apply: Literal["margin", "gradient"] = "margin"
    space: Literal["ratio", "policy"] | None = None
    normalize: Literal["token", "sequence"] = "token"
    target_ratio: Number = 1.0
    alpha_w: Number = 1.0
    alpha_l: Number = 1.0

    def __post_init__(self) -> None:
        """Validate these options and those of the loss itself."""
        super().__post_init__()
        require_number("ceiling", self.ceiling, above=0)
        # Above this, the square of c times a long answer's score overflows float32.
        require(self.ceiling <= 1e6, "ceiling", "at most 1e6", self.ceiling)
        if self.floor is not None:
            require_number("floor", self.floor, least=0)
            require(self.floor <= self.ceiling, "floor", f"at most the ceiling {self.ceiling}", self.floor)
        require(self.apply in ("margin", "gradient"), "apply", "'margin' or 'gradient'", self.apply)
        if self.apply == "margin" and not isinstance(self, ContrastiveLoss):
            raise UserError("loss.apply", f"'margin' scales a margin, and {self.key!r} has none", "set it to gradient")
        require(self.space in (None, "ratio", "policy"), "space", "'ratio', 'policy' or null", self.space)
        require(self.normalize in ("token", "sequence"), "normalize", "'token' or 'sequence'", self.normalize)
        require_number("target_ratio", self.target_ratio, above=0)
        require_number("alpha_w", self.alpha_w)
        require_number("alpha_l", self.alpha_l)
        if self.space == "ratio" and not super().needs_reference:
            raise UserError(
                "loss.space",
                f"'ratio' needs a reference, but {self.key!r} has none",
                "set it to policy or null",
            )
        if self.normalize == "sequence" and not self.sums_tokens:
            raise UserError(
                "loss.normalize",
                f"'sequence' needs a score built on summed log-probabilities, but {self.key!r} uses their mean",
                "set it to token",
            )

    def log_u(self, x: PairLogps) -> Sides:
        """``log u_s`` in the chosen space."""
        ratio = self.needs_reference if self.space is None else self.space == "ratio"
        u = log_ratios(x) if ratio else logps(x)
        return per_token(u, x) if self.normalize == "token" else u

    def log_coefficient(self, x: PairLogps) -> tuple[Tensor, Tensor | None]:
        """Clipped ``log c``, and whether c* reached the ceiling; neither carries a gradient.

        The clips act on the logarithm: ``exp`` of a sum over a long answer would overflow before they could.
        """
        with torch.no_grad():
            u, slopes = self.compared(self.log_u(x), x), self.log_slopes(x, self.variable(x))
            log_c = (
                math.log(self.target_ratio)
                + self.alpha_w * (u.chosen - slopes.chosen)
                - self.alpha_l * (u.rejected - slopes.rejected)
            )
            log_c = torch.where(log_ratio_of(slopes).isnan(), 0.0, log_c)  # a side without gradient: nothing to balance
            ceiling = _log_at_most(self.ceiling, log_c.dtype)
            clipped = log_c >= ceiling
            if self.floor:
                log_c = log_c.clamp(min=math.log(self.floor))
            return log_c.clamp(max=ceiling), clipped

    def apply_coefficient(self, score: Tensor, coefficient: Tensor) -> Tensor:
        """``c * a_w``; with ``apply: gradient``, a_w with only its gradient scaled by c."""
        if self.apply == "margin":
            return coefficient * score
        held = score.detach()  # plus a term of value 0 and gradient c: the value equals the plain loss's bit for bit
        return held + coefficient * (score - held)


@dataclass(frozen=True, kw_only=True)
class AdaptiveGradient(Adaptive):
    """`Adaptive` for losses that are no function of one margin: c acts through the gradient alone."""

    apply: Literal["margin", "gradient"] = "gradient"


@lru_cache(maxsize=128)
def _log_at_most(bound: float, dtype: torch.dtype) -> float:
    """The largest number of `dtype` near ``log(bound)`` whose exponential is not above `bound` after rounding."""
    log = torch.tensor(bound, dtype=torch.float64).log().to(dtype)
    while log.exp() > bound:
        log = torch.nextafter(log, torch.full_like(log, -math.inf))
    return log.item()
