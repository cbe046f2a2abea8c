"""Direct preference optimization, and its length-regularised form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.base import ContrastiveLoss
from adadpo_lightning.losses.functional import logistic_link
from adadpo_lightning.losses.options import check_beta_and_smoothing, require_number
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.variables import ImplicitReward

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.types import PairLogps


@register_loss("dpo", twin=False)
@dataclass(frozen=True)
class DPO(ImplicitReward, ContrastiveLoss):
    """Direct preference optimization: ``-logsigmoid(beta (h_w - h_l))``, arXiv 2305.18290, eq. 7.

    Args:
        beta: Scale of the implicit reward, above 0; larger values keep the policy closer to the reference.
        label_smoothing: Assumed share of flipped labels, in [0, 0.5).
    """

    label_smoothing: float = 0.0

    formula = "-logsigmoid({c}beta*h_w - beta*h_l)"
    source = "arXiv 2305.18290"

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        check_beta_and_smoothing(self.beta, self.label_smoothing)

    def link(self, margin: Tensor) -> Tensor:
        """``-logsigmoid``, smoothed."""
        return logistic_link(margin, self.label_smoothing)


@register_loss("adadpo")
@dataclass(frozen=True)
class AdaDPO(Adaptive, DPO):
    """DPO's adaptive, gradient-balanced counterpart."""


@register_loss("rdpo", twin=False)
@dataclass(frozen=True)
class RDPO(DPO):
    """DPO with length regularisation: margin plus ``alpha (n_w - n_l)``, arXiv 2403.19159, eq. 9.

    Args:
        beta: Scale of the implicit reward, above 0.
        alpha: Penalty per token of length difference, at least 0.
        label_smoothing: Assumed share of flipped labels, in [0, 0.5).
    """

    alpha: float = 0.05

    formula = "-logsigmoid({c}beta*h_w - beta*h_l + alpha*(n_w - n_l))"
    source = "arXiv 2403.19159"

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        super().__post_init__()
        require_number("alpha", self.alpha, least=0)

    def offset(self, x: PairLogps) -> Tensor:
        """``alpha (n_w - n_l)``."""
        return self.alpha * (x.chosen_len - x.rejected_len).to(x.chosen.dtype)


@register_loss("adardpo")
@dataclass(frozen=True)
class AdaRDPO(Adaptive, RDPO):
    """RDPO's adaptive, gradient-balanced counterpart."""
