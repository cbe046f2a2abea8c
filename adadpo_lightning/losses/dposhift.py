"""DPO-Shift: a smaller weight on the rejected answer."""

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


@register_loss("dposhift", twin=False)
@dataclass(frozen=True)
class DPOShift(ImplicitReward, LogisticLoss):
    """DPO-Shift: ``-logsigmoid(beta (h_w - lam h_l))``, arXiv 2502.07599.

    The same as `AdaDPO` with ``floor = ceiling = 1 / lam`` and beta multiplied by lam.

    Args:
        beta: Scale of the implicit reward, above 0.
        lam: Weight of the rejected reward, in (0, 1].
    """

    lam: float = 0.75

    group = "remedy"
    formula = "-logsigmoid({c}beta*h_w - beta*lam*h_l)"
    source = "arXiv 2502.07599"

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        super().__post_init__()
        require_number("lam", self.lam, above=0, most=1)

    def rejected_score(self, v: Tensor) -> Tensor:
        """``beta * lam * h``."""
        return self.lam * self.score(v)

    def rejected_log_slope(self, v: Tensor) -> Tensor:
        """``log lam``."""
        return torch.full_like(v, math.log(self.lam))


@register_loss("adadposhift")
@dataclass(frozen=True)
class AdaDPOShift(Adaptive, DPOShift):
    """DPO-Shift's adaptive, gradient-balanced counterpart."""
