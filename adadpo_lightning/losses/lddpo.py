"""Length-desensitised DPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.dpo import DPO
from adadpo_lightning.losses.options import require_number
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.sides import Sides, log_ratios, tail_log_ratios

if TYPE_CHECKING:
    from adadpo_lightning.types import PairLogps


@register_loss("lddpo", twin=False)
@dataclass(frozen=True)
class LDDPO(DPO):
    """LD-DPO: `DPO` whose tokens beyond the shorter answer's length count `alpha` times, arXiv 2409.06411.

    ``-logsigmoid(beta (k_w - k_l))``, k the log-ratio summed over the first ``min(n_w, n_l)`` tokens of the answer plus
    alpha times that over the rest.

    Args:
        beta: Scale of the implicit reward, above 0.
        label_smoothing: Assumed share of flipped labels, in [0, 0.5).
        alpha: Weight of the tokens beyond the shorter answer's length, in [0, 1]; 1 is DPO, 0 leaves them out.
    """

    alpha: float = 0.5

    group = "margin"
    formula = "-logsigmoid({c}beta*k_w - beta*k_l), k = h[:min(n_w, n_l)] + alpha*h[min(n_w, n_l):]"
    source = "arXiv 2409.06411"

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        super().__post_init__()
        require_number("alpha", self.alpha, least=0, most=1)

    @property
    def needs_tails(self) -> bool:
        """The two sums of each answer."""
        return True

    def variable(self, x: PairLogps) -> Sides:
        """Log-ratios in which the tokens beyond the shorter answer's length count alpha times."""
        h, tail = log_ratios(x), tail_log_ratios(x)
        return Sides(*(whole - (1.0 - self.alpha) * beyond for whole, beyond in zip(h, tail, strict=True)))

    def rewards(self, x: PairLogps) -> Sides:
        """The scores, ``beta * k``."""
        return Sides(*(self.score(v) for v in self.variable(x)))


@register_loss("adalddpo")
@dataclass(frozen=True)
class AdaLDDPO(Adaptive, LDDPO):
    """LD-DPO's adaptive, gradient-balanced counterpart."""
