"""Noise contrastive alignment of pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F

from adadpo_lightning.losses.balance import AdaptiveGradient
from adadpo_lightning.losses.base import PairwiseLoss
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.variables import ImplicitReward

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.losses.sides import Sides
    from adadpo_lightning.types import PairLogps


@register_loss("nca", twin=False)
@dataclass(frozen=True)
class NCA(ImplicitReward, PairwiseLoss):
    """NCA: ``-logsigmoid(r_w) - (logsigmoid(-r_w) + logsigmoid(-r_l)) / 2``, r = beta h, arXiv 2402.05369.

    Args:
        beta: Scale of the implicit reward, above 0.
    """

    beta: float = 0.01

    formula = "-logsigmoid(r_w) - logsigmoid(-r_w)/2 - logsigmoid(-r_l)/2, r = beta*h"
    source = "arXiv 2402.05369"

    def contrast(self, scores: Sides, x: PairLogps) -> Tensor:
        """Chosen answers against noise, which is chosen and rejected answers alike."""
        r_w, r_l = scores
        return -F.logsigmoid(r_w) - 0.5 * F.logsigmoid(-r_w) - 0.5 * F.logsigmoid(-r_l)


@register_loss("adanca")
@dataclass(frozen=True)
class AdaNCA(AdaptiveGradient, NCA):
    """NCA's adaptive, gradient-balanced counterpart."""
