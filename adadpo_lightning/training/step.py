"""From token log-probabilities to what a loss reads, and from its output to what callbacks read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, TypeVar

import torch

from adadpo_lightning.types import LossOutput, PairLogps, PreferenceBatch

if TYPE_CHECKING:
    from torch import Tensor

Record = TypeVar("Record", PairLogps, LossOutput)
Reduction = Callable[["Tensor", PreferenceBatch], "Tensor"]


def sum_by_answer(values: Tensor, batch: PreferenceBatch) -> Tensor:
    """Sum the flat per-token `values` (N,) over the answers of each pair: (2B,), chosen answers first."""
    # `unsafe` skips a check of the lengths that would wait for the device; `collate` made them.
    sums = torch.segment_reduce(values, "sum", lengths=batch.answer_len, unsafe=True)
    return sums.index_select(0, batch.answers)


def sum_of_tails(values: Tensor, batch: PreferenceBatch) -> Tensor:
    """Sum the flat per-token `values` (N,) beyond the shorter answer's length, for the answers of each pair: (2B,).

    An answer that several pairs share may have another tail in each of them.
    """
    listed = values.index_select(0, batch.tokens_of_sides()) * batch.in_tail()
    lengths = torch.cat([batch.chosen_len, batch.rejected_len])
    return torch.segment_reduce(listed, "sum", lengths=lengths, unsafe=True)


def pair_logps(
    batch: PreferenceBatch,
    logps: Tensor,
    reference: Tensor | None = None,
    *,
    tails: bool = False,
    log_collisions: Tensor | None = None,
) -> PairLogps:
    """From numbers per scored token to what a loss reads.

    Args:
        batch: The micro-batch.
        logps: Log-probability of each scored token, in the batch's flat order, nats, shape (N,).
        reference: The same under the reference.
        tails: Whether the loss needs the sums beyond the shorter answer's length.
        log_collisions: ``log sum_v p_v^2`` at each token, shape (N,), if the loss needs its sums.
    """

    def sides(values: Tensor | None, summed: Reduction = sum_by_answer) -> tuple[Tensor | None, Tensor | None]:
        if values is None:
            return None, None
        chosen, rejected = summed(values, batch).chunk(2)
        return chosen, rejected

    chosen, rejected = sum_by_answer(logps, batch).chunk(2)
    ref_chosen, ref_rejected = sides(reference)
    chosen_tail, rejected_tail = sides(logps if tails else None, sum_of_tails)
    ref_chosen_tail, ref_rejected_tail = sides(reference if tails else None, sum_of_tails)
    chosen_log_collision, rejected_log_collision = sides(log_collisions)
    return PairLogps(
        chosen=chosen,
        rejected=rejected,
        chosen_len=batch.chosen_len,
        rejected_len=batch.rejected_len,
        ref_chosen=ref_chosen,
        ref_rejected=ref_rejected,
        weight=batch.weight,
        margin=batch.margin,
        chosen_tail=chosen_tail,
        rejected_tail=rejected_tail,
        ref_chosen_tail=ref_chosen_tail,
        ref_rejected_tail=ref_rejected_tail,
        chosen_log_collision=chosen_log_collision,
        rejected_log_collision=rejected_log_collision,
        list_rest=batch.list_rest,
    )


def detached(record: Record) -> Record:
    """The record with each of its tensors detached."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    return replace(record, **{k: v.detach() for k, v in values.items() if isinstance(v, torch.Tensor)})
