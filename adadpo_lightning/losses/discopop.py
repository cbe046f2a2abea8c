"""DiscoPOP: a loss that a language model discovered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F

from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.base import ContrastiveLoss
from adadpo_lightning.losses.functional import logistic_link
from adadpo_lightning.losses.options import require_number
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.variables import ImplicitReward

if TYPE_CHECKING:
    from torch import Tensor


@register_loss("discopop", twin=False)
@dataclass(frozen=True)
class DiscoPOP(ImplicitReward, ContrastiveLoss):
    """DiscoPOP: ``(1 - q) (-logsigmoid(m)) + q exp(-m)``, ``q = S(m / tau)``, m DPO's margin, arXiv 2406.08414, eq. 5.

    Not convex: between a negative and a positive margin the loss rises, and pairs in between are pushed apart.

    Args:
        beta: Scale of the implicit reward, above 0.
        tau: Temperature of the modulation, in (0, 1].
    """

    beta: float = 0.05
    tau: float = 0.05

    formula = "(1-q)*(-logsigmoid(m)) + q*exp(-m), q = S(m/tau), m = {c}beta*h_w - beta*h_l"
    source = "arXiv 2406.08414"

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        super().__post_init__()
        require_number("tau", self.tau, above=0, most=1)

    def link(self, margin: Tensor) -> Tensor:
        """Logistic and exponential loss, mixed by the margin; ``q exp(-m)`` in log space, where it is finite."""
        scaled = margin / self.tau
        return (-scaled).sigmoid() * logistic_link(margin) + (F.logsigmoid(scaled) - margin).exp()


@register_loss("adadiscopop")
@dataclass(frozen=True)
class AdaDiscoPOP(Adaptive, DiscoPOP):
    """DiscoPOP's adaptive, gradient-balanced counterpart."""
