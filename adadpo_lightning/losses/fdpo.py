"""DPO under other divergences to the reference than the reverse KL."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch.nn.functional as F

from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.functional import power_score, power_score_log_slope
from adadpo_lightning.losses.options import require, require_number
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.variables import ImplicitReward, LogisticLoss

if TYPE_CHECKING:
    from torch import Tensor


@register_loss("fdpo", twin=False)
@dataclass(frozen=True)
class FDPO(ImplicitReward, LogisticLoss):
    """f-DPO: ``-logsigmoid(beta (f'(exp h_w) - f'(exp h_l)))``, arXiv 2309.16240.

    Args:
        beta: Scale of the implicit reward, above 0.
        divergence: ``js`` (``f' = ln 2 + logsigmoid(h)``), ``forward_kl`` (``1 - exp(-h)``) or ``alpha``
            (``(1 - exp(-alpha h)) / alpha``). Reverse KL is `DPO`.
        alpha: Of the alpha-divergence, in (0, 1): towards 0 it is the reverse KL, towards 1 the forward KL.
    """

    divergence: Literal["js", "forward_kl", "alpha"] = "js"
    alpha: float = 0.5

    formula = "-logsigmoid({c}beta*f'(h_w) - beta*f'(h_l))"
    source = "arXiv 2309.16240"

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        super().__post_init__()
        known = ("js", "forward_kl", "alpha")
        require(self.divergence in known, "divergence", "'js', 'forward_kl' or 'alpha'", self.divergence)
        require_number("alpha", self.alpha, above=0, below=1)

    @property
    def _power(self) -> float:
        return 1.0 if self.divergence == "forward_kl" else self.alpha

    def score(self, v: Tensor) -> Tensor:
        """``beta * f'``; exponents above 40 continue on the tangent."""
        if self.divergence == "js":
            return self.beta * (math.log(2.0) + F.logsigmoid(v))
        return self.beta * power_score(v, self._power)

    def log_slope(self, v: Tensor) -> Tensor:
        """The logarithm of ``S(-h)`` for js, of ``exp(-alpha h)`` else."""
        return F.logsigmoid(-v) if self.divergence == "js" else power_score_log_slope(v, self._power)


@register_loss("adafdpo")
@dataclass(frozen=True)
class AdaFDPO(Adaptive, FDPO):
    """f-DPO's adaptive, gradient-balanced counterpart."""
