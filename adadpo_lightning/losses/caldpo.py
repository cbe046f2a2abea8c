"""Cal-DPO: DPO with calibrated rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadpo_lightning.losses.balance import AdaptiveGradient
from adadpo_lightning.losses.base import PairwiseLoss
from adadpo_lightning.losses.functional import logistic_link
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.variables import ImplicitReward

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.losses.sides import Sides
    from adadpo_lightning.types import PairLogps


@register_loss("caldpo", twin=False)
@dataclass(frozen=True)
class CalDPO(ImplicitReward, PairwiseLoss):
    """Cal-DPO: DPO's loss on the log-ratios, and both calibrated to ``+-1/(2 beta)``, arXiv 2412.14516.

    Args:
        beta: The log-ratios' targets are ``1/(2 beta)`` and ``-1/(2 beta)``; above 0.
    """

    beta: float = 0.002

    formula = "-logsigmoid(h_w - h_l) + ((h_w - 1/(2*beta))^2 + (h_l + 1/(2*beta))^2)/2"
    source = "arXiv 2412.14516"

    def score(self, v: Tensor) -> Tensor:
        """``h``."""
        return v

    def contrast(self, scores: Sides, x: PairLogps) -> Tensor:
        """Logistic loss and calibration."""
        h_w, h_l = scores
        target = 0.5 / self.beta
        return logistic_link(h_w - h_l) + 0.5 * ((h_w - target).square() + (h_l + target).square())


@register_loss("adacaldpo")
@dataclass(frozen=True)
class AdaCalDPO(AdaptiveGradient, CalDPO):
    """Cal-DPO's adaptive, gradient-balanced counterpart."""
