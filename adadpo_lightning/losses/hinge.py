"""Hinge loss on DPO's implicit rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.base import ContrastiveLoss
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.variables import ImplicitReward

if TYPE_CHECKING:
    from torch import Tensor


@register_loss("hinge", twin=False)
@dataclass(frozen=True)
class Hinge(ImplicitReward, ContrastiveLoss):
    """Hinge: ``max(0, 1 - beta (h_w - h_l))``, SLiC's loss (arXiv 2305.10425) on log-ratios (arXiv 2309.06657).

    Args:
        beta: Scale of the implicit reward, above 0.
    """

    formula = "max(0, 1 - {c}beta*h_w + beta*h_l)"
    source = "arXiv 2305.10425, 2309.06657"

    def link(self, margin: Tensor) -> Tensor:
        """``max(0, 1 - m)``."""
        return (1.0 - margin).relu()


@register_loss("adahinge")
@dataclass(frozen=True)
class AdaHinge(Adaptive, Hinge):
    """Hinge's adaptive, gradient-balanced counterpart."""
