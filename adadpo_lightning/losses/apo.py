"""Anchored preference optimization: each answer against the reference rather than against the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadpo_lightning.losses.balance import AdaptiveGradient
from adadpo_lightning.losses.base import PairwiseLoss
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.variables import ImplicitReward

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.losses.sides import Sides
    from adadpo_lightning.types import PairLogps


@register_loss("apozero", twin=False)
@dataclass(frozen=True)
class APOZero(ImplicitReward, PairwiseLoss):
    """APO-zero: ``1 - S(beta h_w) + S(beta h_l)``, arXiv 2408.06266, eq. 7: chosen up, rejected down.

    Args:
        beta: Scale of the implicit reward, above 0.
    """

    formula = "1 - sigmoid(beta*h_w) + sigmoid(beta*h_l)"
    source = "arXiv 2408.06266"

    def contrast(self, scores: Sides, x: PairLogps) -> Tensor:
        """``S(-a_w)`` rather than ``1 - S(a_w)``, which rounds to 0 in float32."""
        return (-scores.chosen).sigmoid() + scores.rejected.sigmoid()


@register_loss("adaapozero")
@dataclass(frozen=True)
class AdaAPOZero(AdaptiveGradient, APOZero):
    """APO-zero's adaptive, gradient-balanced counterpart."""


@register_loss("apodown", twin=False)
@dataclass(frozen=True)
class APODown(ImplicitReward, PairwiseLoss):
    """APO-down: ``S(beta h_w) + 1 - S(beta (h_w - h_l))``, arXiv 2408.06266, eq. 8: both down, the rejected more.

    For chosen answers that are worse than what the model answers already.

    Args:
        beta: Scale of the implicit reward, above 0.
    """

    formula = "sigmoid(beta*h_w) + 1 - sigmoid(beta*(h_w - h_l))"
    source = "arXiv 2408.06266"

    def contrast(self, scores: Sides, x: PairLogps) -> Tensor:
        """The chosen answer against the reference, and the rejected one against it."""
        return scores.chosen.sigmoid() + (scores.rejected - scores.chosen).sigmoid()


@register_loss("adaapodown")
@dataclass(frozen=True)
class AdaAPODown(AdaptiveGradient, APODown):
    """APO-down's adaptive, gradient-balanced counterpart."""
