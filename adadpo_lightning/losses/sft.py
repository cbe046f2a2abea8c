"""Supervised fine-tuning on the chosen answers: the warm-up stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from adadpo_lightning.losses.base import PreferenceLoss
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.types import LossOutput

if TYPE_CHECKING:
    from adadpo_lightning.types import PairLogps


@register_loss("sft")
@dataclass(frozen=True)
class SFT(PreferenceLoss):
    """Negative log-likelihood of the chosen answers, averaged over tokens. The rejected answers are not read."""

    group = "likelihood"
    formula = "NLL(y_w)"
    source = "warm-up stage"

    @property
    def needs_rejected(self) -> bool:
        """The rejected answers are not read."""
        return False

    def __call__(self, x: PairLogps) -> LossOutput:
        """Compute the loss; `per_pair` and the rewards are zeros because nothing is contrasted."""
        x = x.in_float32()
        nll = -x.chosen if x.weight is None else -x.chosen * x.weight
        zeros = torch.zeros_like(x.chosen, requires_grad=False)
        return LossOutput(
            per_pair=zeros,
            chosen_rewards=zeros,
            rejected_rewards=zeros,
            coefficient=torch.ones_like(zeros),
            nll=nll,
        )
