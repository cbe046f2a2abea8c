"""DPO that corrects for a known share of flipped labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.base import ContrastiveLoss
from adadpo_lightning.losses.functional import logistic_link
from adadpo_lightning.losses.options import check_beta_and_smoothing
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.variables import ImplicitReward

if TYPE_CHECKING:
    from torch import Tensor


@register_loss("robust", twin=False)
@dataclass(frozen=True)
class RobustDPO(ImplicitReward, ContrastiveLoss):
    """Robust DPO: ``(-(1 - e) logsigmoid(m) + e logsigmoid(-m)) / (1 - 2e)``, m DPO's margin, arXiv 2403.00409.

    An unbiased estimate of DPO's loss on clean labels, where label smoothing only lowers confidence.

    Args:
        beta: Scale of the implicit reward, above 0.
        label_smoothing: e, the assumed share of flipped labels, in [0, 0.5).
    """

    label_smoothing: float = 0.1

    formula = "(-(1-e)*logsigmoid(m) + e*logsigmoid(-m))/(1-2e), m = {c}beta*h_w - beta*h_l, e = label_smoothing"
    source = "arXiv 2403.00409"

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        check_beta_and_smoothing(self.beta, self.label_smoothing)

    def link(self, margin: Tensor) -> Tensor:
        """The logistic loss, corrected for flipped labels."""
        e = self.label_smoothing
        return ((1.0 - e) * logistic_link(margin) - e * logistic_link(-margin)) / (1.0 - 2.0 * e)


@register_loss("adarobust")
@dataclass(frozen=True)
class AdaRobustDPO(Adaptive, RobustDPO):
    """Robust DPO's adaptive, gradient-balanced counterpart."""
