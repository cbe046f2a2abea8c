"""Balanced preference optimization: the smaller of the two rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from adadpo_lightning.losses.balance import AdaptiveGradient
from adadpo_lightning.losses.base import PairwiseLoss
from adadpo_lightning.losses.functional import logistic_link
from adadpo_lightning.losses.options import require_number
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.variables import ImplicitReward

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.losses.sides import Sides
    from adadpo_lightning.types import PairLogps


@register_loss("bpo", twin=False)
@dataclass(frozen=True)
class BPO(ImplicitReward, PairwiseLoss):
    """BPO: ``-logsigmoid(beta min(h_w, -alpha h_l))``, arXiv 2506.03557.

    Each pair moves one answer only, the one that lags, so its twin has nothing to balance and c is 1. At step 0 both
    rewards are 0, and the gradient is shared.

    Args:
        beta: Scale of the implicit reward, above 0.
        alpha: Weight of the rejected answer, in (0, 1].
    """

    alpha: float = 0.3

    group = "remedy"
    formula = "-logsigmoid(beta*min(h_w, -alpha*h_l))"
    source = "arXiv 2506.03557"

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        super().__post_init__()
        require_number("alpha", self.alpha, above=0, most=1)

    def contrast(self, scores: Sides, x: PairLogps) -> Tensor:
        """The logistic loss of the smaller reward."""
        return logistic_link(torch.minimum(scores.chosen, -self.alpha * scores.rejected))


@register_loss("adabpo")
@dataclass(frozen=True)
class AdaBPO(AdaptiveGradient, BPO):
    """BPO's adaptive counterpart, which differs from it at step 0 only, or with a floor or a low ceiling."""
