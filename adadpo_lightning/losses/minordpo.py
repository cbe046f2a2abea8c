"""MinorDPO: rejected answers that are below the reference are left alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.variables import ImplicitReward, LogisticLoss

if TYPE_CHECKING:
    from torch import Tensor


@register_loss("minordpo", twin=False)
@dataclass(frozen=True)
class MinorDPO(ImplicitReward, LogisticLoss):
    """MinorDPO: ``-logsigmoid(beta (h_w - max(0, h_l)))``, arXiv 2408.09834.

    Args:
        beta: Scale of the implicit reward, above 0.
    """

    group = "remedy"
    formula = "-logsigmoid({c}beta*h_w - beta*max(0, h_l))"
    source = "arXiv 2408.09834"

    def rejected_score(self, v: Tensor) -> Tensor:
        """``beta max(0, h)``."""
        return self.beta * v.relu()

    def rejected_log_slope(self, v: Tensor) -> Tensor:
        """0 above the reference; no slope below it."""
        return torch.zeros_like(v).masked_fill(v <= 0, -math.inf)


@register_loss("adaminordpo")
@dataclass(frozen=True)
class AdaMinorDPO(Adaptive, MinorDPO):
    """MinorDPO's adaptive, gradient-balanced counterpart; c is 1 where the rejected answer is left alone."""
