"""The table that ``estimate`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adadpo_lightning.estimate.advice import advice

if TYPE_CHECKING:
    from adadpo_lightning.estimate.memory import Estimate, RunShape


def report(
    run: RunShape,
    result: Estimate,
    source: str,
    device_gib: float,
    global_batch: int,
    epoch: tuple[int, int] | None,
    notes: Sequence[str] = (),
) -> list[str]:
    """The lines of the table.

    Args:
        run: The run's shape.
        result: Its estimate.
        source: Source of the lengths.
        device_gib: Memory of a device.
        global_batch: Pairs per optimizer step.
        epoch: Pairs and tokens per epoch, if known.
        notes: Assumptions, one sentence each.
    """
    lines = [
        *notes,
        f"{result.parameters / 1e9:.3f} B parameters, {result.trainable / 1e9:.3f} B trained",
        f"reference {run.reference}",
        f"{run.ranks} rank(s), weights over {run.shards}; {run.accumulation} micro-batch(es) a step on each",
        f"largest micro-batch: {len(run.lengths)} pair(s), {result.tokens} tokens ({source})",
        "",
        "peak on a rank, GiB",
        *(f"  {name:<18}{size:8.2f}" for name, size in result.gib.items()),
        f"  {'total':<18}{result.total:8.2f}   of {device_gib:g}",
    ]
    if result.host_gib:
        lines.append(f"  in CPU memory     {result.host_gib:8.2f}")
    lines += ["", f"work of a step: {result.step_flops / 1e15:.3g} PFLOP over all ranks, if all pairs were that long"]
    if epoch is not None:
        pairs, tokens = epoch
        steps = -(-pairs // global_batch)
        lines.append(
            f"an epoch: {steps} steps, {tokens} tokens ({tokens / steps:.0f} a step), "
            f"at most {steps * result.step_flops / 1e15:.3g} PFLOP"
        )
    # The table excludes allocator fragmentation, the CUDA context and NCCL buffers.
    if result.total <= 0.9 * device_gib:
        return [*lines, "", "fits, with a tenth to spare"]
    return [*lines, "", "does not fit with a tenth to spare. What would change that:", *advice(run, device_gib)]
