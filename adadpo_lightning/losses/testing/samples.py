"""Synthetic log-probabilities of pairs, ordinary and extreme, and simple operations on them."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product
from typing import TYPE_CHECKING

import torch

from adadpo_lightning.losses.sides import Sides
from adadpo_lightning.types import PairLogps

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# Log-probabilities of a whole answer that a run can meet: certain, rounded to nearly certain, and hopeless.
EXTREME_LOGPS = (0.0, -1e-8, -1.0, -1e5)


def sample_pairs(count: int, *, seed: int = 0, max_len: int = 40, dtype: torch.dtype = torch.float64) -> PairLogps:
    """Random pairs with everything a loss may ask for, at moderate margins of both signs.

    Args:
        count: Number of pairs.
        seed: Seed.
        max_len: Longest answer, tokens.
        dtype: Type of the log-probabilities.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)

    n_w, n_l = (torch.randint(1, max_len + 1, (count,), generator=generator) for _ in range(2))
    logps = Sides(-n_w * uniform(0.05, 2.0), -n_l * uniform(0.05, 2.0))
    refs = Sides(logps.chosen + n_w * uniform(-0.3, 0.3), logps.rejected + n_l * uniform(-0.3, 0.3))
    even = with_token_sums(PairLogps(logps.chosen, logps.rejected, n_w, n_l, refs.chosen, refs.rejected))
    x = replace(even, chosen_log_collision=-n_w * uniform(0.05, 2.0), rejected_log_collision=-n_l * uniform(0.05, 2.0))
    return cast(x, dtype)


def extreme_pairs(dtype: torch.dtype = torch.float32) -> PairLogps:
    """Each combination of `EXTREME_LOGPS` under policy and reference with answers of 1 and 5000 tokens."""
    side = (EXTREME_LOGPS, EXTREME_LOGPS, (1, 5000))
    columns = list(zip(*product(*side, *side), strict=True))
    chosen, ref_chosen, rejected, ref_rejected = (torch.tensor(columns[i], dtype=dtype) for i in (0, 1, 3, 4))
    n_w, n_l = torch.tensor(columns[2]), torch.tensor(columns[5])
    return with_token_sums(PairLogps(chosen, rejected, n_w, n_l, ref_chosen, ref_rejected))


def with_token_sums(x: PairLogps) -> PairLogps:
    """The pairs with the sums that some losses need besides, as if all tokens of an answer were alike."""
    share_w = (x.chosen_len - x.rejected_len).clamp(min=0) / x.chosen_len
    share_l = (x.rejected_len - x.chosen_len).clamp(min=0) / x.rejected_len
    chosen, rejected = x.chosen.detach(), x.rejected.detach()

    def tail(logps: Tensor | None, share: Tensor) -> Tensor | None:
        return None if logps is None else logps * share.to(logps.dtype)

    return replace(
        x,
        chosen_tail=tail(chosen, share_w),
        rejected_tail=tail(rejected, share_l),
        ref_chosen_tail=tail(x.ref_chosen, share_w),
        ref_rejected_tail=tail(x.ref_rejected, share_l),
        # A distribution is at least as concentrated as its token's probability says, and at most even.
        chosen_log_collision=torch.maximum(2.0 * chosen, (-11.0 * x.chosen_len).to(chosen.dtype)),
        rejected_log_collision=torch.maximum(2.0 * rejected, (-11.0 * x.rejected_len).to(chosen.dtype)),
    )


def rows(x: PairLogps, index: slice) -> PairLogps:
    """The pairs at `index`."""
    return _map(x, lambda value: value[index])


def cast(x: PairLogps, dtype: torch.dtype) -> PairLogps:
    """The pairs with floating-point columns as `dtype`."""
    return _map(x, lambda value: value.to(dtype) if value.is_floating_point() else value)


def _map(x: PairLogps, change: Callable[[Tensor], Tensor]) -> PairLogps:
    values = {f.name: getattr(x, f.name) for f in fields(x)}
    return replace(x, **{name: change(value) for name, value in values.items() if value is not None})
