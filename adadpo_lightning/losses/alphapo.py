"""AlphaPO: SimPO with a power of the probability as its score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.functional import power_score, power_score_log_slope
from adadpo_lightning.losses.options import require_number
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.variables import LogisticLoss, MeanLogp

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.types import PairLogps


@register_loss("alphapo", twin=False)
@dataclass(frozen=True)
class AlphaPO(MeanLogp, LogisticLoss):
    """AlphaPO: ``-logsigmoid(a_w - a_l - gamma)``, ``a = beta (1 - exp(-alpha lbar)) / alpha``, arXiv 2501.03884.

    Args:
        beta: Scale of the score, above 0.
        alpha: Shape of the score; towards 0 it is SimPO, whose score is `beta * lbar`.
        gamma: Target margin, at least 0.
    """

    beta: float = 2.5
    alpha: float = 0.25
    gamma: float = 0.1

    formula = "-logsigmoid({c}a_w - a_l - gamma), a = beta*(1 - exp(-alpha*lbar))/alpha"
    source = "arXiv 2501.03884"

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        require_number("beta", self.beta, above=0)
        require_number("alpha", self.alpha)
        require_number("gamma", self.gamma, least=0)

    def score(self, v: Tensor) -> Tensor:
        """``beta (1 - p^-alpha) / alpha``; exponents above 40 continue on the tangent."""
        return self.beta * power_score(v, self.alpha)

    def log_slope(self, v: Tensor) -> Tensor:
        """``log p^-alpha``."""
        return power_score_log_slope(v, self.alpha)

    def offset(self, x: PairLogps) -> float:
        """``-gamma``."""
        return -self.gamma


@register_loss("adaalphapo")
@dataclass(frozen=True)
class AdaAlphaPO(Adaptive, AlphaPO):
    """AlphaPO's adaptive, gradient-balanced counterpart."""
