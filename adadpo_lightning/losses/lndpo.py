"""DPO on length-normalised log-ratios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.sides import Sides, log_ratios, per_token
from adadpo_lightning.losses.variables import ImplicitReward, LogisticLoss

if TYPE_CHECKING:
    from adadpo_lightning.types import PairLogps


@register_loss("lndpo", twin=False)
@dataclass(frozen=True)
class LNDPO(ImplicitReward, LogisticLoss):
    """Length-normalised DPO: ``-logsigmoid(beta (hbar_w - hbar_l))``, Tulu 3, arXiv 2411.15124.

    Args:
        beta: Scale of the mean log-ratio per token, above 0.
    """

    beta: float = 5.0

    formula = "-logsigmoid({c}beta*hbar_w - beta*hbar_l)"
    source = "arXiv 2411.15124"

    @property
    def sums_tokens(self) -> bool:
        """The variable is a mean."""
        return False

    def variable(self, x: PairLogps) -> Sides:
        """Mean log-ratios per token."""
        return per_token(log_ratios(x), x)


@register_loss("adalndpo")
@dataclass(frozen=True)
class AdaLNDPO(Adaptive, LNDPO):
    """LNDPO's adaptive, gradient-balanced counterpart."""
