"""Efficient exact optimization on pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F

from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.base import ContrastiveLoss
from adadpo_lightning.losses.options import require_number
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.variables import ImplicitReward

if TYPE_CHECKING:
    from torch import Tensor


@register_loss("exo", twin=False)
@dataclass(frozen=True)
class EXO(ImplicitReward, ContrastiveLoss):
    """EXO: ``KL(p || q)`` of the policy's preference ``p = (S(m), S(-m))`` to the labels' ``q = (1 - e, e)``.

    Source: arXiv 2402.00856, eq. 16. DPO minimises the KL divergence the other way round.

    Args:
        beta: Scale of the implicit reward, above 0.
        label_smoothing: e, the probability that the labels give to the rejected answer, in (0, 0.5).
    """

    label_smoothing: float = 1e-3

    formula = "S(m)*(log S(m) - log(1-e)) + S(-m)*(log S(-m) - log e), m = {c}beta*h_w - beta*h_l, e = label_smoothing"
    source = "arXiv 2402.00856"

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        super().__post_init__()
        require_number("label_smoothing", self.label_smoothing, above=0, below=0.5)

    def link(self, margin: Tensor) -> Tensor:
        """Reverse KL divergence."""
        log_p, log_1p = F.logsigmoid(margin), F.logsigmoid(-margin)
        e = self.label_smoothing
        return margin.sigmoid() * (log_p - math.log1p(-e)) + (-margin).sigmoid() * (log_1p - math.log(e))


@register_loss("adaexo")
@dataclass(frozen=True)
class AdaEXO(Adaptive, EXO):
    """EXO's adaptive, gradient-balanced counterpart."""
