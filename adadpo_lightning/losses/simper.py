"""SimPER: the difference of inverse perplexities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.base import ContrastiveLoss
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.variables import MeanLogp

if TYPE_CHECKING:
    from torch import Tensor


@register_loss("simper", twin=False)
@dataclass(frozen=True)
class SimPER(MeanLogp, ContrastiveLoss):
    """SimPER: ``-exp(lbar_w) + exp(lbar_l)``, arXiv 2502.00883. No hyper-parameter.

    Linear in the geometric-mean token probabilities, so their gradients are equal already: the twin's c is 1.
    """

    formula = "-{c}exp(lbar_w) + exp(lbar_l)"
    source = "arXiv 2502.00883"

    def score(self, v: Tensor) -> Tensor:
        """Inverse perplexity."""
        return v.exp()

    def log_slope(self, v: Tensor) -> Tensor:
        """``lbar``."""
        return v

    def link(self, margin: Tensor) -> Tensor:
        """``-m``."""
        return -margin


@register_loss("adasimper")
@dataclass(frozen=True)
class AdaSimPER(Adaptive, SimPER):
    """SimPER's adaptive counterpart: SimPER itself but for a target ratio other than 1, a floor or a low ceiling."""
