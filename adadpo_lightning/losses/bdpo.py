"""Bounded DPO: the rejected answer under a mixture of policy and reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.options import require_number
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.variables import ImplicitReward, LogisticLoss

if TYPE_CHECKING:
    from torch import Tensor


@register_loss("bdpo", twin=False)
@dataclass(frozen=True)
class BDPO(ImplicitReward, LogisticLoss):
    """Bounded DPO: ``-logsigmoid(beta (h_w - log(lam exp(h_l) + 1 - lam)))``, arXiv 2506.12725.

    However unlikely the rejected answer gets, its score stays above ``beta log(1 - lam)``, so its gradient ends.

    Args:
        beta: Scale of the implicit reward, above 0.
        lam: Share of the policy in the mixture, in (0, 1); 1 would be DPO.
    """

    lam: float = 0.5

    group = "remedy"
    formula = "-logsigmoid({c}beta*h_w - beta*log(lam*exp(h_l) + 1 - lam))"
    source = "arXiv 2506.12725"

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        super().__post_init__()
        require_number("lam", self.lam, above=0, below=1)

    def _log_mixture(self, v: Tensor) -> Tensor:
        return torch.logaddexp(v + math.log(self.lam), torch.full_like(v, math.log1p(-self.lam)))

    def rejected_score(self, v: Tensor) -> Tensor:
        """``beta`` times the log-ratio of the mixture."""
        return self.beta * self._log_mixture(v)

    def rejected_log_slope(self, v: Tensor) -> Tensor:
        """The logarithm of the policy's share of the mixture at this answer."""
        return v + math.log(self.lam) - self._log_mixture(v)


@register_loss("adabdpo")
@dataclass(frozen=True)
class AdaBDPO(Adaptive, BDPO):
    """Bounded DPO's adaptive, gradient-balanced counterpart."""
