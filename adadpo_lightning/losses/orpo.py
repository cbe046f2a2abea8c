"""Odds-ratio preference optimization: a likelihood loss with a contrast of log-odds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.base import ContrastiveLoss
from adadpo_lightning.losses.functional import log_odds, log_one_minus_p, logistic_link
from adadpo_lightning.losses.options import require_number
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.sides import Sides
from adadpo_lightning.losses.variables import MeanLogp

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.types import PairLogps


@register_loss("orpo", twin=False)
@dataclass(frozen=True)
class ORPO(MeanLogp, ContrastiveLoss):
    """ORPO: ``NLL(y_w) - lam * logsigmoid(log_odds_w - log_odds_l)``, arXiv 2403.07691, eq. 6 and 7.

    Args:
        lam: Weight of the odds-ratio term, above 0.
    """

    lam: float = 0.1

    formula = "-lam*logsigmoid({c}log_odds(p_w) - log_odds(p_l)) + NLL(y_w)"
    source = "arXiv 2403.07691"

    def __post_init__(self) -> None:
        """Check the hyper-parameter."""
        require_number("lam", self.lam, above=0)

    def score(self, v: Tensor) -> Tensor:
        """Log-odds of the geometric-mean token probability."""
        return log_odds(v)

    def log_slope(self, v: Tensor) -> Tensor:
        """``a'(v) = 1 / (1 - p)``."""
        return -log_one_minus_p(v)

    def link(self, margin: Tensor) -> Tensor:
        """``-lam * logsigmoid``."""
        return self.lam * logistic_link(margin)

    def rewards(self, x: PairLogps) -> Sides:
        """``lam * lbar``, as TRL logs it."""
        return Sides(*(self.lam * v for v in self.variable(x)))

    def nll(self, x: PairLogps) -> Tensor:
        """``-l_w``."""
        return -x.chosen


@register_loss("adaorpo")
@dataclass(frozen=True)
class AdaORPO(Adaptive, ORPO):
    """ORPO's adaptive, gradient-balanced counterpart."""
