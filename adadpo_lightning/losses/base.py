"""What a preference loss is: a score of each answer, a contrast of the two scores, and a slot for the coefficient.

A pairwise loss is ``contrast(score(v_w), rejected_score(v_l))`` with the variable v taken from the pair's
log-probabilities. Most are a function of one margin, ``link(score(v_w) - rejected_score(v_l) + offset)``. The adaptive
twin fills the slot: ``c * score(v_w)``. It is a slot and not a wrapper around a finished loss because c depends on the
loss's own variable and slopes (see `balance`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from adadpo_lightning.errors import UserError
from adadpo_lightning.losses.schedule import checked_over_the_run, numbers_at, schedules
from adadpo_lightning.losses.sides import Sides, log_gradients, log_ratio_of, log_ratios, logps, per_token
from adadpo_lightning.types import LossOutput

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

    from adadpo_lightning.types import PairLogps


class PreferenceLoss(ABC):
    """Anything that turns `PairLogps` into `LossOutput`.

    A plain ABC rather than a dataclass, so that the command line can choose among its subclasses. `formula` is shown to
    users; ``{c}`` marks the place of the adaptive twin's coefficient. `group` sorts the tables of losses.

    Each numeric option of a loss that is a dataclass may be a `Schedule`; `at` has the numbers of a step. A subclass
    checks its options in ``__post_init__``, which only ever sees numbers.
    """

    key: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    source: ClassVar[str] = ""
    group: ClassVar[str] = "other"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the subclass's own check of its options accept schedules."""
        super().__init_subclass__(**kwargs)
        if (check := vars(cls).get("__post_init__")) is not None:
            cls.__post_init__ = checked_over_the_run(check)  # type: ignore[method-assign]

    @checked_over_the_run  # noqa: B027  # a loss without options has nothing to check
    def __post_init__(self) -> None:
        """Check the options; by default there is nothing to check."""

    @property
    def scheduled(self) -> bool:
        """Whether an option changes over the run."""
        return bool(schedules(self))

    def at(self, step: int, total_steps: int) -> Self:
        """The loss of one optimizer step: with the numbers that its schedules have there; itself without schedules.

        Args:
            step: Optimizer steps taken before.
            total_steps: Optimizer steps of the run.
        """
        return numbers_at(self, step, total_steps)

    def scheduled_values(self, step: int, total_steps: int) -> dict[str, float]:
        """The number of each scheduled option at a step, by the option's name."""
        return {name: schedule.at(step, total_steps) for name, schedule in schedules(self).items()}

    @property
    def needs_reference(self) -> bool:
        """Whether the loss needs reference log-probabilities."""
        return False

    @property
    def needs_rejected(self) -> bool:
        """Whether the loss reads the rejected answer; if not, its forward pass is skipped."""
        return True

    @property
    def takes_margin(self) -> bool:
        """Whether pairs may have a target margin of their own."""
        return True

    @property
    def needs_tails(self) -> bool:
        """Whether the loss reads the sums beyond the first ``min(n_w, n_l)`` tokens, `PairLogps.chosen_tail` etc."""
        return False

    @property
    def needs_collisions(self) -> bool:
        """Whether the loss reads ``log sum_v p_v^2``, `PairLogps.chosen_log_collision`; it costs time."""
        return False

    @property
    def needs_lists(self) -> bool:
        """Whether the loss compares all answers of a ranked list: each micro-batch then has whole lists."""
        return False

    @abstractmethod
    def __call__(self, x: PairLogps) -> LossOutput:
        """Compute the loss of each pair.

        Args:
            x: Log-probabilities and lengths; half precision is converted to float32 first.
        """


class PairwiseLoss(PreferenceLoss):
    """A loss of the form ``contrast(score(v_w), rejected_score(v_l))``; each score depends on its own answer only.

    A new loss defines `variable` and `contrast`, and overrides `score`, `rejected_score`, `rewards` and `nll` where the
    defaults do not fit. All are pure functions of tensors of shape (B,). A function of one margin is rather a
    `ContrastiveLoss`, whose gradients have a closed form and whose twin can scale the margin itself.
    """

    group = "side-wise"

    @property
    def takes_margin(self) -> bool:
        """There is no margin that a target could be subtracted from."""
        return False

    @abstractmethod
    def variable(self, x: PairLogps) -> Sides:
        """The scores' argument v: a log-ratio or a log-probability, summed or averaged over tokens."""

    @abstractmethod
    def contrast(self, scores: Sides, x: PairLogps) -> Tensor:
        """The loss as a function of the two scores; depends on the policy through them only."""

    def score(self, v: Tensor) -> Tensor:
        """The score a(v) of the chosen answer; the identity by default."""
        return v

    def rejected_score(self, v: Tensor) -> Tensor:
        """The score of the rejected answer; that of the chosen one by default."""
        return self.score(v)

    def log_slopes(self, x: PairLogps, v: Sides) -> Sides:
        """``log |dL/dv_s|``, up to a term that both sides share; -inf where it is 0. By autograd unless overridden."""
        return log_gradients(lambda w, r: self.contrast(Sides(self.score(w), self.rejected_score(r)), x), v)

    def rewards(self, x: PairLogps) -> Sides:
        """Implicit rewards, for logging; by default the score, the same one for both answers."""
        return Sides(*(self.score(v) for v in self.variable(x)))

    def nll(self, x: PairLogps) -> Tensor | None:
        """Weighted negative log-likelihood of the chosen answers, summed over tokens; None if there is no such term."""
        return None

    def pair_weight(self, x: PairLogps) -> Tensor | None:
        """Weight that the loss itself gives each pair, without gradient, shape (B,); None if it gives none."""
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

    def compared(self, u: Sides, x: PairLogps) -> Sides:
        """The two sides whose gradients are compared, from ``log u`` of both answers; by default the answers."""
        return u

    def __call__(self, x: PairLogps) -> LossOutput:
        """Assemble the loss; see the class."""
        x = x.in_float32()
        if x.margin is not None and not self.takes_margin:
            raise UserError("margin", f"the data has target margins, but {self.key!r} has no margin", "drop the column")
        v = self.variable(x)
        log_c, clipped = self.log_coefficient(x)
        coefficient = log_c.exp()
        scores = Sides(self.apply_coefficient(self.score(v.chosen), coefficient), self.rejected_score(v.rejected))
        per_pair, nll, own_weight = self.contrast(scores, x), self.nll(x), self.pair_weight(x)
        if own_weight is not None:
            per_pair = per_pair * own_weight
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
            pair_weight=own_weight,
        )

    def _log_balance(self, x: PairLogps, v: Sides, log_c: Tensor) -> tuple[Tensor, Tensor]:
        """``log(g_w / g_l)`` in the loss's own space and in policy space per token; NaN where a gradient is 0."""
        slope_ratio = log_c + log_ratio_of(self.log_slopes(x, v))
        u, p = self.compared(self.log_u(x), x), self.compared(per_token(logps(x), x), x)
        own = slope_ratio - u.chosen + u.rejected
        policy = slope_ratio - p.chosen + p.rejected
        if not self.sums_tokens:  # d v_s / d l_s = 1 / n_s
            policy = policy + torch.log(x.rejected_len.to(policy.dtype) / x.chosen_len)
        return own, policy


class ContrastiveLoss(PairwiseLoss):
    """A loss of one margin, ``link(c * score(v_w) - rejected_score(v_l) + offset)``, where plain means c = 1.

    A new loss defines `variable` and `link`, and overrides `score`, `offset`, `log_slope`, `rewards` and `nll` where
    the defaults do not fit; a loss that scores the rejected answer by another function also overrides `rejected_score`
    and `rejected_log_slope`. All are pure functions of tensors of shape (B,).
    """

    group = "margin"

    @property
    def takes_margin(self) -> bool:
        """A pair's target is subtracted from its margin."""
        return True

    @abstractmethod
    def link(self, margin: Tensor) -> Tensor:
        """The loss as a function of the margin."""

    def log_slope(self, v: Tensor) -> Tensor:
        """``log a'(v)`` without constants that both scores share, such as beta: they cancel. 0 for a linear score."""
        return torch.zeros_like(v)

    def rejected_log_slope(self, v: Tensor) -> Tensor:
        """`log_slope` of `rejected_score`, without the same constants; -inf where the slope is 0."""
        return self.log_slope(v)

    def offset(self, x: PairLogps) -> Tensor | float:
        """A term added to the difference of the scores; must not depend on the policy."""
        return 0.0

    def contrast(self, scores: Sides, x: PairLogps) -> Tensor:
        """``link(a_w - a_l + offset - target margin)``."""
        margin = scores.chosen - scores.rejected + self.offset(x)
        return self.link(margin if x.margin is None else margin - x.margin)

    def log_slopes(self, x: PairLogps, v: Sides) -> Sides:
        """In closed form: the link's derivative cancels, so the ratio stays exact where the gradients underflow."""
        return Sides(self.log_slope(v.chosen), self.rejected_log_slope(v.rejected))
