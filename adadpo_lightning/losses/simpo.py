"""Simple preference optimization: reference-free, on mean log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.base import ContrastiveLoss
from adadpo_lightning.losses.functional import logistic_link
from adadpo_lightning.losses.options import check_beta_and_smoothing, require_number
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.variables import MeanLogp

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.types import PairLogps


@register_loss("simpo", twin=False)
@dataclass(frozen=True)
class SimPO(MeanLogp, ContrastiveLoss):
    """SimPO: ``-logsigmoid(beta (lbar_w - lbar_l) - gamma)``, gamma = beta * gamma_beta_ratio, arXiv 2405.14734, eq. 6.

    Args:
        beta: Scale of the mean log-probability, above 0.
        gamma_beta_ratio: Target margin over beta, at least 0.
        label_smoothing: Assumed share of flipped labels, in [0, 0.5).
    """

    beta: float = 2.0
    gamma_beta_ratio: float = 0.5
    label_smoothing: float = 0.0

    formula = "-logsigmoid({c}beta*lbar_w - beta*lbar_l - beta*gamma_beta_ratio)"
    source = "arXiv 2405.14734"

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        check_beta_and_smoothing(self.beta, self.label_smoothing)
        require_number("gamma_beta_ratio", self.gamma_beta_ratio, least=0)

    def score(self, v: Tensor) -> Tensor:
        """``beta * lbar``."""
        return self.beta * v

    def offset(self, x: PairLogps) -> float:
        """``-gamma``."""
        return -self.beta * self.gamma_beta_ratio

    def link(self, margin: Tensor) -> Tensor:
        """``-logsigmoid``, smoothed."""
        return logistic_link(margin, self.label_smoothing)


@register_loss("adasimpo")
@dataclass(frozen=True)
class AdaSimPO(Adaptive, SimPO):
    """SimPO's adaptive, gradient-balanced counterpart."""
