"""What a preference loss is: a score, a link, and a slot for the balancing coefficient.

A pairwise contrastive loss is ``link(score(v_w) - score(v_l) + offset)`` with the score's variable v taken from the
pair's log-probabilities. The adaptive twin fills the slot: ``link(c * score(v_w) - score(v_l) + offset)``. It is a
slot and not a wrapper around a finished loss because c depends on the loss's own variable and slope (see `balance`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch

from adadpo_lightning.errors import UserError
from adadpo_lightning.types import LossOutput

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.types import PairLogps


class Sides(NamedTuple):
    """One quantity for both answers of each pair, each of shape (B,)."""

    chosen: Tensor
    rejected: Tensor


def log_ratios(x: PairLogps) -> Sides:
    """``h_s = l_s - l0_s``: log-ratio to the reference, summed over tokens.

    Raises:
        UserError: If the pair has no reference log-probabilities.
    """
    if x.ref_chosen is None or x.ref_rejected is None:
        raise UserError(
            "PairLogps.ref_chosen",
            "this loss needs reference log-probabilities, got None",
            "pass ref_chosen and ref_rejected, or in a config set model.reference to frozen, adapter_off or cached",
        )
    return Sides(x.chosen - x.ref_chosen, x.rejected - x.ref_rejected)


def per_token(sides: Sides, x: PairLogps) -> Sides:
    """Divide a sum over each answer's tokens by the number of its tokens."""
    return Sides(sides.chosen / x.chosen_len, sides.rejected / x.rejected_len)


def logps(x: PairLogps) -> Sides:
    """``l_s``: log-probability under the policy, summed over tokens."""
    return Sides(x.chosen, x.rejected)


class PreferenceLoss(ABC):
    """Anything that turns `PairLogps` into `LossOutput`.

    A plain ABC rather than a dataclass, so that the command line can choose among its subclasses. `formula` is shown to
    users; ``{c}`` marks the place of the adaptive twin's coefficient.
    """

    key: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    source: ClassVar[str] = ""

    @property
    def needs_reference(self) -> bool:
        """Whether the loss needs reference log-probabilities."""
        return False

    @property
    def needs_rejected(self) -> bool:
        """Whether the loss reads the rejected answer; if not, its forward pass is skipped."""
        return True

    @abstractmethod
    def __call__(self, x: PairLogps) -> LossOutput:
        """Compute the loss of each pair.

        Args:
            x: Log-probabilities and lengths; half precision is converted to float32 first.
        """


class ContrastiveLoss(PreferenceLoss):
    """A loss of the form ``link(c * score(v_w) - score(v_l) + offset)``, where plain means c = 1.

    A new loss defines `variable` and `link`, and overrides `score`, `offset`, `log_slope`, `rewards` and `nll` where
    the defaults do not fit. All are pure functions of tensors of shape (B,).
    """

    @abstractmethod
    def variable(self, x: PairLogps) -> Sides:
        """The score's argument v: a log-ratio or a log-probability, summed or averaged over tokens."""

    @abstractmethod
    def link(self, margin: Tensor) -> Tensor:
        """The loss as a function of the margin."""

    def score(self, v: Tensor) -> Tensor:
        """The score a(v); the identity by default."""
        return v

    def log_slope(self, v: Tensor) -> Tensor:
        """``log a'(v)`` without constants such as beta, which cancel; 0 for a linear score."""
        return torch.zeros_like(v)

    def offset(self, x: PairLogps) -> Tensor | float:
        """A term added to the difference of the scores; must not depend on the policy."""
        return 0.0

    def rewards(self, x: PairLogps) -> Sides:
        """Implicit rewards, for logging; the scores by default."""
        return Sides(*(self.score(v) for v in self.variable(x)))

    def nll(self, x: PairLogps) -> Tensor | None:
        """Weighted negative log-likelihood of the chosen answers, summed over tokens; None if there is no such term."""
        return None

    @property
    def sums_tokens(self) -> bool:
        """Whether the variable is a sum over tokens (dpo) rather than their mean (simpo)."""
        return True

    # The slot for the coefficient, and the space in which balance is measured: `balance.Adaptive` overrides both.

    def log_coefficient(self, x: PairLogps) -> tuple[Tensor, Tensor | None]:
        """``log c`` per pair and whether it was clipped at the ceiling (None for losses without one)."""
        return torch.zeros_like(x.chosen), None

    def apply_coefficient(self, score: Tensor, coefficient: Tensor) -> Tensor:
        """The chosen score, scaled by the coefficient."""
        return score

    def log_u(self, x: PairLogps) -> Sides:
        """``log u_s``: the probability-like quantity in which gradients are compared, in the space of the loss."""
        return per_token(log_ratios(x) if self.needs_reference else logps(x), x)

    def __call__(self, x: PairLogps) -> LossOutput:
        """Assemble the loss; see the class."""
        x = x.in_float32()
        v = self.variable(x)
        log_c, clipped = self.log_coefficient(x)
        coefficient = log_c.exp()
        chosen_score = self.apply_coefficient(self.score(v.chosen), coefficient)
        margin = chosen_score - self.score(v.rejected) + self.offset(x)
        if x.margin is not None:
            margin = margin - x.margin
        per_pair, nll = self.link(margin), self.nll(x)
        if x.weight is not None:
            per_pair = per_pair * x.weight
            nll = None if nll is None else nll * x.weight
        rewards = self.rewards(x)
        with torch.no_grad():
            own, policy = self._log_balance(x, v, log_c)
        return LossOutput(
            per_pair=per_pair,
            chosen_rewards=rewards.chosen.detach(),
            rejected_rewards=rewards.rejected.detach(),
            coefficient=coefficient,
            nll=nll,
            log_balance=own,
            log_balance_policy=policy,
            clipped=clipped,
        )

    def _log_balance(self, x: PairLogps, v: Sides, log_c: Tensor) -> tuple[Tensor, Tensor]:
        """``log(g_w / g_l)`` in the loss's own space and in policy space per token.

        In closed form: the link's derivative and the score's constants are equal on both sides and cancel, so the ratio
        stays exact where the gradients themselves underflow.
        """
        slope_ratio = log_c + self.log_slope(v.chosen) - self.log_slope(v.rejected)
        u, p = self.log_u(x), per_token(logps(x), x)
        own = slope_ratio - u.chosen + u.rejected
        policy = slope_ratio - p.chosen + p.rejected
        if not self.sums_tokens:  # d v_s / d l_s = 1 / n_s
            policy = policy + torch.log(x.rejected_len.to(policy.dtype) / x.chosen_len)
        return own, policy


def require(condition: bool, option: str, expected: str, got: object) -> None:
    """Check one hyper-parameter.

    Raises:
        UserError: If the condition is false; names the option, what was expected and what was given.
    """
    if not condition:
        raise UserError(f"loss.{option}", f"expected {expected}, got {got!r}")


def require_number(option: str, value: object, *, above: float | None = None, least: float | None = None) -> None:
    """Check that a hyper-parameter is a finite number above or at least a bound.

    Raises:
        UserError: If it is not; names the option, what was expected and what was given.
    """
    bound = f" above {above}" if above is not None else f" of at least {least}" if least is not None else ""
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
    if fine and above is not None:
        fine = value > above  # type: ignore[operator]  # `fine` implies a number
    if fine and least is not None:
        fine = value >= least  # type: ignore[operator]
    require(fine, option, f"a finite number{bound}", value)
