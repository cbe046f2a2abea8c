"""A weighted sum of losses."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from adadpo_lightning.errors import UserError
from adadpo_lightning.losses.base import PairwiseLoss, PreferenceLoss
from adadpo_lightning.losses.options import require, require_number
from adadpo_lightning.losses.schedule import Number, Schedule
from adadpo_lightning.losses.sides import log_gradients, log_ratio_of, logps, per_token

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

    from adadpo_lightning.types import LossOutput, PairLogps


class Mixture(PreferenceLoss):
    """Weighted sum of losses, for example 0.9 adadpo + 0.1 sft.

    The reported rewards, coefficient and clipping are those of the first contrastive part. The gradient balance is that
    of the whole contrastive sum.

    Args:
        losses: The parts; at least one.
        weights: One positive number per part; they need not sum to 1. Each may be a schedule, which may start or end
            at 0.

    Raises:
        UserError: If the lists differ in length, a weight is not positive, or a part with a scheduled weight is a
            mixture with scheduled weights.
    """

    formula: ClassVar[str] = "sum_i weight_i * loss_i"
    source: ClassVar[str] = "-"

    def __init__(self, losses: list[PreferenceLoss], weights: list[Number]) -> None:
        if not losses or len(losses) != len(weights):
            raise UserError(
                "loss.weights",
                f"expected one weight for each loss, got {len(losses)} losses and {len(weights)} weights",
            )
        self.losses: list[PreferenceLoss] = []
        self.weights: list[Any] = []  # numbers and schedules
        for part, given in zip(losses, weights, strict=True):
            require(isinstance(part, PreferenceLoss), "losses", "losses, as `build_loss` returns them", part)
            weight = _checked_weight(given)
            inner = zip(part.losses, part.weights, strict=True) if isinstance(part, Mixture) else [(part, 1.0)]
            for loss, share in inner:  # a nested mixture is flattened
                self.losses.append(loss)
                self.weights.append(_product(weight, share))

        if self.needs_lists and sum(part.needs_rejected for part in self.losses) > 1:
            raise UserError(
                "loss.losses",
                "a loss over ranked lists and another one that compares answers have no joint gradient balance",
                "mix it with sft only",
            )

    def __repr__(self) -> str:
        """Show the parts with their weights."""
        weights = (f"{w:g}" if isinstance(w, float) else repr(w) for w in self.weights)
        return "Mixture(" + " + ".join(f"{w} * {p!r}" for w, p in zip(weights, self.losses, strict=True)) + ")"

    @property
    def scheduled(self) -> bool:
        """Whether a weight or an option of a part changes over the run."""
        return any(isinstance(w, Schedule) for w in self.weights) or any(part.scheduled for part in self.losses)

    def at(self, step: int, total_steps: int) -> Self:
        """The mixture of one optimizer step; see `PreferenceLoss.at`."""
        made = copy(self)
        made.losses = [part.at(step, total_steps) for part in self.losses]
        made.weights = [w.at(step, total_steps) if isinstance(w, Schedule) else w for w in self.weights]
        return made

    def scheduled_values(self, step: int, total_steps: int) -> dict[str, float]:
        """The scheduled numbers at a step, as ``weight_0`` and ``part_0/beta``."""
        weights = {f"weight_{i}": w for i, w in enumerate(self.weights) if isinstance(w, Schedule)}
        parts = [part.scheduled_values(step, total_steps) for part in self.losses]
        return {name: w.at(step, total_steps) for name, w in weights.items()} | {
            f"part_{i}/{name}": value for i, values in enumerate(parts) for name, value in values.items()
        }

    @property
    def needs_reference(self) -> bool:
        """Whether any part does."""
        return any(part.needs_reference for part in self.losses)

    @property
    def needs_rejected(self) -> bool:
        """Whether any part does."""
        return any(part.needs_rejected for part in self.losses)

    @property
    def takes_margin(self) -> bool:
        """Whether every part does."""
        return all(part.takes_margin for part in self.losses)

    @property
    def needs_tails(self) -> bool:
        """Whether any part does."""
        return any(part.needs_tails for part in self.losses)

    @property
    def needs_collisions(self) -> bool:
        """Whether any part does."""
        return any(part.needs_collisions for part in self.losses)

    @property
    def needs_lists(self) -> bool:
        """Whether any part does."""
        return any(part.needs_lists for part in self.losses)

    def __call__(self, x: PairLogps) -> LossOutput:
        """Compute the weighted sum of the parts."""
        x = x.in_float32()
        parts = [part(x) for part in self.losses]
        contrastive = [i for i, part in enumerate(self.losses) if part.needs_rejected]
        first = parts[contrastive[0] if contrastive else 0]
        nlls = [w * p.nll for w, p in zip(self.weights, parts, strict=True) if p.nll is not None]
        total = replace(
            first,
            per_pair=torch.stack([w * p.per_pair for w, p in zip(self.weights, parts, strict=True)]).sum(0),
            nll=torch.stack(nlls).sum(0) if nlls else None,
        )
        return self._with_joint_balance(x, total) if len(contrastive) > 1 else total

    def _with_joint_balance(self, x: PairLogps, total: LossOutput) -> LossOutput:
        """Balance of several contrastive parts, from the derivatives of their sum in the log-probabilities.

        Measured in the space of the first `PairwiseLoss`, or in policy space per token if there is none.
        """

        def contrast(chosen: Tensor, rejected: Tensor) -> Tensor:
            pair = replace(x, chosen=chosen, rejected=rejected, weight=None)
            parts = zip(self.weights, self.losses, strict=True)
            return torch.stack([w * part(pair).per_pair for w, part in parts if part.needs_rejected]).sum(0)

        ratio = log_ratio_of(log_gradients(contrast, logps(x)))
        p = per_token(logps(x), x)
        first = next((part for part in self.losses if isinstance(part, PairwiseLoss)), None)
        u = p if first is None else first.log_u(x)
        own = ratio - u.chosen + u.rejected
        if first is not None and not first.sums_tokens:  # d l_s / d v_s = n_s
            own = own + torch.log(x.chosen_len.to(own.dtype) / x.rejected_len)
        return replace(
            total,
            log_balance=own.detach(),
            log_balance_policy=(ratio - p.chosen + p.rejected).detach(),
        )


def _checked_weight(given: object) -> Any:
    """A weight or its schedule; a schedule may reach 0 but not stay there."""
    weight = Schedule.parse(given)
    for number in (weight.start, weight.end) if isinstance(weight, Schedule) else ():
        require_number("weights", number, least=0)
    require_number("weights", max(weight.start, weight.end) if isinstance(weight, Schedule) else weight, above=0)
    return weight if isinstance(weight, Schedule) else float(weight)


def _product(weight: Any, share: Any) -> Any:
    if isinstance(weight, Schedule) and isinstance(share, Schedule):
        raise UserError(
            "loss.weights", "a part with a scheduled weight has scheduled weights itself", "write the mixture flat"
        )
    return weight * share
