"""Plackett-Luce DPO: the loss of a whole ranked list."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.registry import register_loss
from adadpo_lightning.losses.sides import Sides, log_ratios
from adadpo_lightning.losses.variables import ImplicitReward, LogisticLoss

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.types import PairLogps


@register_loss("pldpo", twin=False)
@dataclass(frozen=True)
class PLDPO(ImplicitReward, LogisticLoss):
    """DPO over ranked lists: ``sum_k -log(exp(beta h_k) / sum_{j>=k} exp(beta h_j))``, arXiv 2305.18290, appendix A.3.

    Pair k of a list is the choice of answer k among it and all answers below: ``-logsigmoid(beta h_k - logsumexp_{j>k}
    beta h_j)``. A list's pairs sum to its loss, and a list of two answers has that of `DPO`. As any loss it is averaged
    over the pairs of a step, here choices: a list counts by its number of answers minus one.

    Args:
        beta: Scale of the implicit reward, above 0; larger values keep the policy closer to the reference.
    """

    group = "listwise"
    formula = "-logsigmoid({c}beta*h_k - log(sum_(j>k) exp(beta*h_j))), summed over k"
    source = "arXiv 2305.18290, A.3"

    @property
    def needs_lists(self) -> bool:
        """All answers of a list."""
        return True

    @property
    def takes_margin(self) -> bool:
        """A target between two neighbours is none between an answer and all that are below."""
        return False

    def contrast(self, scores: Sides, x: PairLogps) -> Tensor:
        """The score of each choice against all that are below it."""
        return self.link(scores.chosen - below(scores.rejected, x).logsumexp(1))

    def compared(self, u: Sides, x: PairLogps) -> Sides:
        """The chosen answer, and all that are below: ``log`` of the harmonic mean of ``u_j``, weighted by ``q_j``.

        ``q_j``, the softmax of the scores of those below, is the share of answer j in their gradient, so that the sum
        of their gradients in u is ``g sum_j q_j / u_j``.
        """
        log_q = below(self.beta * log_ratios(x).rejected, x).log_softmax(1)
        return Sides(u.chosen, -(log_q - below(u.rejected, x, outside=0.0)).logsumexp(1))


@register_loss("adapldpo")
@dataclass(frozen=True)
class AdaPLDPO(Adaptive, PLDPO):
    """PLDPO's adaptive, gradient-balanced counterpart: each choice against the sum of the gradients below it."""


def below(rejected: Tensor, x: PairLogps, *, outside: float = -math.inf) -> Tensor:
    """For each pair the numbers of the answers below its chosen one: its own rejected answer and those that follow.

    Args:
        rejected: A number of each pair's rejected answer, shape (B,).
        x: Says which pairs are a list.
        outside: Value at other answers.

    Returns:
        Shape (B, B): row k has the numbers of list mates from k on, and `outside` elsewhere.
    """
    pair = torch.arange(len(rejected), device=rejected.device)
    last = pair if x.list_rest is None else pair + x.list_rest
    inside = (pair >= pair[:, None]) & (pair <= last[:, None])
    return torch.where(inside, rejected, outside)
