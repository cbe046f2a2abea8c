"""Weighted preference optimization: pairs count by how likely the policy is to write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.dpo import DPO
from adadpo_lightning.losses.options import require_number
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.sides import Sides, log_collisions, logps, per_token

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.types import PairLogps


@register_loss("wpo", twin=False)
@dataclass(frozen=True)
class WPO(DPO):
    """WPO: `DPO` times ``sg(w_w w_l)``, ``w = exp(mean over tokens of [log p - log sum_v p_v^2])``, arXiv 2406.11827.

    The sum over the vocabulary is the mean probability of a token that the policy itself samples, so that w is near 1
    for an answer as the policy would write it (the paper's sampled alignment).

    Args:
        beta: Scale of the implicit reward, above 0.
        label_smoothing: Assumed share of flipped labels, in [0, 0.5).
        max_weight: Upper clip of ``w_w w_l``, above 0; None disables it, as the paper's formula does. Its authors' code
            clips at 1: without a clip, a token that is likely among many unlikely ones has a weight far above 1.
    """

    beta: float = 0.01
    max_weight: float | None = None

    group = "margin"
    formula = "-w_w*w_l*logsigmoid({c}beta*h_w - beta*h_l), w = exp(mean(log p - log sum_v p_v^2))"
    source = "arXiv 2406.11827"

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        super().__post_init__()
        if self.max_weight is not None:
            require_number("max_weight", self.max_weight, above=0)

    @property
    def needs_collisions(self) -> bool:
        """The sum of squared probabilities at each token."""
        return True

    def pair_weight(self, x: PairLogps) -> Tensor:
        """``sg(w_w w_l)``, shape (B,)."""
        with torch.no_grad():
            sums, collisions = logps(x), log_collisions(x)
            log_w = per_token(Sides(sums.chosen - collisions.chosen, sums.rejected - collisions.rejected), x)
            weight = (log_w.chosen + log_w.rejected).exp()
            return weight if self.max_weight is None else weight.clamp(max=self.max_weight)


@register_loss("adawpo")
@dataclass(frozen=True)
class AdaWPO(Adaptive, WPO):
    """WPO's adaptive, gradient-balanced counterpart: the weight is common to both answers and cancels in c."""
