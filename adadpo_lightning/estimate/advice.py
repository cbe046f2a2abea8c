"""Suggested changes for a run that does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from adadpo_lightning.errors import UserError
from adadpo_lightning.estimate.memory import RunShape, estimate, measured


@dataclass(frozen=True)
class Change:
    """One thing to change in a run.

    Args:
        text: The change in the config.
        apply: Returns the changed run, or None if it does not apply.
    """

    text: str
    apply: Callable[[RunShape], RunShape | None]


def _with_policy(run: RunShape, **changes: Any) -> RunShape:
    return replace(run, policy=replace(run.policy, **changes))


def _lora(run: RunShape) -> RunShape | None:
    from adadpo_lightning.models.loading import LoraOptions

    if run.policy.lora is not None or run.tensor > 1:
        return None
    changed = _with_policy(run, lora=LoraOptions(), dtype="bfloat16", gradient_checkpointing=True)
    return replace(changed, autocast=False, reference="adapter_off" if run.reference != "none" else "none")


def _split(run: RunShape) -> RunShape | None:
    if not run.sharded or run.shards % 2 or run.ranks > run.shards * run.tensor or run.cpu_offload:
        return None
    changed = replace(run, tensor=2 * run.tensor, shards=run.shards // 2)
    try:
        measured(changed)
    except UserError:
        return None  # no plan for the architecture, or heads that the size does not divide
    return changed


CHANGES = (
    Change(
        "model.reference: cached",
        lambda run: replace(run, reference="cached") if run.reference == "frozen" else None,
    ),
    Change(
        "model.policy.gradient_checkpointing: true",
        lambda run: None if run.policy.gradient_checkpointing else _with_policy(run, gradient_checkpointing=True),
    ),
    Change(
        "model.policy.offload_activations: true",
        lambda run: None if run.policy.offload_activations else _with_policy(run, offload_activations=True),
    ),
    Change(
        "data.micro_batch_size: 1",
        lambda run: (
            replace(run, lengths=run.lengths[:1], accumulation=run.accumulation * len(run.lengths))
            if len(run.lengths) > 1
            else None
        ),
    ),
    Change(
        "--config configs/strategy/fsdp2.yaml",
        lambda run: (
            replace(run, shards=run.ranks, ddp=False, autocast=False, gathered_dtype=torch.bfloat16)
            if run.ranks > 1 and not run.sharded
            else None
        ),
    ),
    Change(
        "twice as many devices",
        lambda run: replace(run, ranks=2 * run.ranks, shards=2 * run.shards) if run.sharded else None,
    ),
    Change(
        "--config configs/strategy/fsdp2_offload.yaml",
        lambda run: (
            replace(run, cpu_offload=True) if run.shards > 1 and not run.cpu_offload and run.tensor == 1 else None
        ),
    ),
    Change("--config configs/strategy/tp_fsdp2.yaml, with twice the tensor_parallel_size", _split),
    Change("--config configs/model/lora.yaml over bfloat16 weights", _lora),
)


def advice(run: RunShape, device_gib: float) -> list[str]:
    """Each applicable change, with the memory of the run after this change alone."""
    lines = []
    for change in CHANGES:
        changed = change.apply(run)
        if changed is not None:
            total = estimate(changed).total
            lines.append(f"  {total:8.2f} GiB{'' if total > 0.9 * device_gib else ' (fits)'}  {change.text}")
    return lines
