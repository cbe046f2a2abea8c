"""Self-play preference optimization with hard labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadpo_lightning.losses.balance import AdaptiveGradient
from adadpo_lightning.losses.base import PairwiseLoss
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.variables import ImplicitReward

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.losses.sides import Sides
    from adadpo_lightning.types import PairLogps


@register_loss("sppo", twin=False)
@dataclass(frozen=True)
class SPPO(ImplicitReward, PairwiseLoss):
    """SPPO: ``(h_w - 1/(2 beta))^2 + (h_l + 1/(2 beta))^2``, arXiv 2405.00675, eq. 4.7 with probabilities of 1 and 0.

    Args:
        beta: The log-ratios' targets are ``1/(2 beta)`` and ``-1/(2 beta)``; above 0. 1/beta is the paper's eta.
    """

    beta: float = 0.001

    formula = "(h_w - 1/(2*beta))^2 + (h_l + 1/(2*beta))^2"
    source = "arXiv 2405.00675"

    def score(self, v: Tensor) -> Tensor:
        """``h``."""
        return v

    def contrast(self, scores: Sides, x: PairLogps) -> Tensor:
        """Squared distances to the targets."""
        target = 0.5 / self.beta
        return (scores.chosen - target).square() + (scores.rejected + target).square()


@register_loss("adasppo")
@dataclass(frozen=True)
class AdaSPPO(AdaptiveGradient, SPPO):
    """SPPO's adaptive, gradient-balanced counterpart."""
