"""DPO-Positive: a penalty where the chosen answer falls below the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.options import require_number
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.variables import ImplicitReward, LogisticLoss

if TYPE_CHECKING:
    from torch import Tensor


@register_loss("dpop", twin=False)
@dataclass(frozen=True)
class DPOP(ImplicitReward, LogisticLoss):
    """DPOP: ``-logsigmoid(beta (h_w - h_l - lam max(0, -h_w)))``, Smaug, arXiv 2402.13228.

    The penalty stands inside the logarithm and inside beta. So the chosen score is ``1 + lam`` times as steep where
    h_w < 0, and the same as DPO's elsewhere.

    Args:
        beta: Scale of the implicit reward, above 0.
        lam: Weight of the penalty, at least 0.
    """

    lam: float = 50.0

    group = "remedy"
    formula = "-logsigmoid({c}beta*(h_w - lam*max(0, -h_w)) - beta*h_l)"
    source = "arXiv 2402.13228"

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        super().__post_init__()
        require_number("lam", self.lam, least=0)

    def score(self, v: Tensor) -> Tensor:
        """``beta (h - lam max(0, -h))``."""
        return self.beta * (v - self.lam * (-v).relu())

    def log_slope(self, v: Tensor) -> Tensor:
        """``log(1 + lam)`` where the answer is below the reference, else 0."""
        return torch.zeros_like(v).masked_fill(v < 0, math.log1p(self.lam))

    def rejected_score(self, v: Tensor) -> Tensor:
        """``beta * h``."""
        return self.beta * v

    def rejected_log_slope(self, v: Tensor) -> Tensor:
        """0: linear."""
        return torch.zeros_like(v)


@register_loss("adadpop")
@dataclass(frozen=True)
class AdaDPOP(Adaptive, DPOP):
    """DPOP's adaptive, gradient-balanced counterpart."""
