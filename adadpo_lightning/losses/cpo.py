"""Contrastive preference optimization: reference-free DPO with a likelihood anchor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.base import ContrastiveLoss
from adadpo_lightning.losses.functional import logistic_link
from adadpo_lightning.losses.options import check_beta_and_smoothing, require_number
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.sides import Sides, logps

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.types import PairLogps


@register_loss("cpo", twin=False)
@dataclass(frozen=True)
class CPO(ContrastiveLoss):
    """CPO: ``-logsigmoid(beta (l_w - l_l)) + nll_weight * NLL(y_w)``, arXiv 2401.08417, eq. 5.

    Args:
        beta: Scale of the summed log-probability, above 0.
        nll_weight: Weight of the chosen answers' negative log-likelihood (token mean), at least 0.
        label_smoothing: Assumed share of flipped labels, in [0, 0.5).
    """

    beta: float = 0.1
    nll_weight: float = 1.0
    label_smoothing: float = 0.0

    group = "reference-free"
    formula = "-logsigmoid({c}beta*l_w - beta*l_l) + nll_weight*NLL(y_w)"
    source = "arXiv 2401.08417"

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        check_beta_and_smoothing(self.beta, self.label_smoothing)
        require_number("nll_weight", self.nll_weight, least=0)

    def variable(self, x: PairLogps) -> Sides:
        """Summed log-probabilities."""
        return logps(x)

    def score(self, v: Tensor) -> Tensor:
        """``beta * l``."""
        return self.beta * v

    def link(self, margin: Tensor) -> Tensor:
        """``-logsigmoid``, smoothed."""
        return logistic_link(margin, self.label_smoothing)

    def nll(self, x: PairLogps) -> Tensor:
        """``-nll_weight * l_w``."""
        return -self.nll_weight * x.chosen


@register_loss("adacpo")
@dataclass(frozen=True)
class AdaCPO(Adaptive, CPO):
    """CPO's adaptive, gradient-balanced counterpart."""
