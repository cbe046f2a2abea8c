"""Identity preference optimization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.base import ContrastiveLoss
from adadpo_lightning.losses.options import require, require_number
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.sides import Sides, log_ratios, per_token

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.types import PairLogps


@register_loss("ipo", twin=False)
@dataclass(frozen=True)
class IPO(ContrastiveLoss):
    """Identity preference optimization: ``(h_w - h_l - 1/(2 tau))^2``, arXiv 2310.12036, eq. 17.

    Args:
        tau: Strength of the regularisation, above 0; the target margin is ``1/(2 tau)``.
        length_normalize: Use the mean log-ratio per token, as TRL does and the IPO authors advise, instead of the sum.
    """

    tau: float = 0.1
    length_normalize: bool = True

    formula = "({c}hbar_w - hbar_l - 1/(2*tau))^2"
    source = "arXiv 2310.12036"

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        require_number("tau", self.tau, above=0)
        require(
            isinstance(self.length_normalize, bool),
            "length_normalize",
            "true or false",
            self.length_normalize,
        )

    @property
    def needs_reference(self) -> bool:
        """The score is a log-ratio to the reference."""
        return True

    @property
    def sums_tokens(self) -> bool:
        """True only without length normalisation."""
        return not self.length_normalize

    def variable(self, x: PairLogps) -> Sides:
        """Log-ratios, averaged or summed over tokens."""
        return per_token(log_ratios(x), x) if self.length_normalize else log_ratios(x)

    def offset(self, x: PairLogps) -> float:
        """``-1/(2 tau)``."""
        return -0.5 / self.tau

    def link(self, margin: Tensor) -> Tensor:
        """The square."""
        return margin.square()


@register_loss("adaipo")
@dataclass(frozen=True)
class AdaIPO(Adaptive, IPO):
    """IPO's adaptive, gradient-balanced counterpart."""
