"""Binary classifier optimization, without the shift of its rewards."""

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


@register_loss("bco", twin=False)
@dataclass(frozen=True)
class BCO(ImplicitReward, PairwiseLoss):
    """BCO on pairs: ``-logsigmoid(beta h_w) - logsigmoid(-beta h_l)``, arXiv 2404.04656.

    The paper subtracts a running mean of the rewards, which depends on earlier batches. It is left out here, as in
    TRL's ``bco_pair``.

    Args:
        beta: Scale of the implicit reward, above 0.
    """

    beta: float = 0.01

    formula = "-logsigmoid(beta*h_w) - logsigmoid(-beta*h_l)"
    source = "arXiv 2404.04656"

    def contrast(self, scores: Sides, x: PairLogps) -> Tensor:
        """Cross-entropy of a classifier whose logit is the reward."""
        return logistic_link(scores.chosen) + logistic_link(-scores.rejected)


@register_loss("adabco")
@dataclass(frozen=True)
class AdaBCO(AdaptiveGradient, BCO):
    """BCO's adaptive, gradient-balanced counterpart."""
