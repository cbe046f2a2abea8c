"""From token log-probabilities to what a loss reads, and from its output to what callbacks read."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, TypeVar

import torch

from adadpo_lightning.types import LossOutput, PairLogps, PreferenceBatch

if TYPE_CHECKING:
    from torch import Tensor

Record = TypeVar("Record", PairLogps, LossOutput)


def sum_by_answer(values: Tensor, batch: PreferenceBatch) -> Tensor:
    """Sum the flat per-token `values` (N,) over each answer: (2B,), chosen answers first."""
    lengths = torch.cat([batch.chosen_len, batch.rejected_len])
    # `unsafe` skips a check of the lengths that would wait for the device; `collate` made them.
    return torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True)


def pair_logps(batch: PreferenceBatch, logps: Tensor, reference: Tensor | None = None) -> PairLogps:
    """From per-token log-probabilities (N,) to what a loss reads."""
    chosen, rejected = sum_by_answer(logps, batch).chunk(2)
    ref_chosen, ref_rejected = (None, None) if reference is None else sum_by_answer(reference, batch).chunk(2)
    return PairLogps(
        chosen=chosen,
        rejected=rejected,
        chosen_len=batch.chosen_len,
        rejected_len=batch.rejected_len,
        ref_chosen=ref_chosen,
        ref_rejected=ref_rejected,
        weight=batch.weight,
        margin=batch.margin,
    )


def detached(record: Record) -> Record:
    """The record with each of its tensors detached."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    return replace(record, **{k: v.detach() for k, v in values.items() if isinstance(v, torch.Tensor)})
