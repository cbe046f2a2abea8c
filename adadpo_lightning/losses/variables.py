"""What the losses of a family share: the variable of their scores, the reward that is logged, the link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadpo_lightning.losses.base import ContrastiveLoss, PairwiseLoss
from adadpo_lightning.losses.functional import logistic_link
from adadpo_lightning.losses.options import require_number
from adadpo_lightning.losses.sides import Sides, log_ratios, logps, per_token

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.types import PairLogps


@dataclass(frozen=True)
class ImplicitReward(PairwiseLoss):
    """Mixin: the score is DPO's implicit reward ``beta * h``, and so is what is logged whatever the score.

    Args:
        beta: Scale of the implicit reward, above 0.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        """Check the hyper-parameter."""
        require_number("beta", self.beta, above=0)

    @property
    def needs_reference(self) -> bool:
        """The reward is a log-ratio to the reference."""
        return True

    def variable(self, x: PairLogps) -> Sides:
        """Summed log-ratios h."""
        return log_ratios(x)

    def score(self, v: Tensor) -> Tensor:
        """``beta * h``."""
        return self.beta * v

    def rewards(self, x: PairLogps) -> Sides:
        """``beta * h``."""
        return Sides(*(self.beta * h for h in log_ratios(x)))


class LogisticLoss(ContrastiveLoss):
    """Mixin: the link is ``-logsigmoid``."""

    def link(self, margin: Tensor) -> Tensor:
        """``-logsigmoid``."""
        return logistic_link(margin)


class MeanLogp(PairwiseLoss):
    """Mixin: the scores' variable is the mean log-probability per token; no reference."""

    group = "reference-free"

    @property
    def sums_tokens(self) -> bool:
        """The variable is a mean."""
        return False

    def variable(self, x: PairLogps) -> Sides:
        """Mean log-probabilities per token."""
        return per_token(logps(x), x)
