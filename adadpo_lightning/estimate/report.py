"""The table that ``estimate`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adadpo_lightning.estimate.advice import advice
from adadpo_lightning.estimate.traffic import wire_bytes

if TYPE_CHECKING:
    from adadpo_lightning.estimate.memory import Estimate, RunShape
    from adadpo_lightning.estimate.simulate import Simulated
    from adadpo_lightning.estimate.traffic import Cluster


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
    split = f", each split over {run.tensor}" if run.tensor > 1 else ""
    lines = [
        *notes,
        f"{result.parameters / 1e9:.3f} B parameters, {result.trainable / 1e9:.3f} B trained",
        f"reference {run.reference}",
        f"{run.ranks} rank(s), weights over {run.shards}{split}; {run.accumulation} micro-batch(es) a step on each",
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


# Kinds of the simulation, and what they are called in the estimate.
COMPARED = {
    "weights": ("weights",),
    "optimizer": ("optimizer",),
    "gradients": ("gradients",),
    "activations": ("activations", "autocast copies", "head"),
    "gathered weights": ("gathered weights", "whole gradients"),
    "reference": ("reference",),
}
GIB = 2**30


def compared(found: Simulated, result: Estimate) -> dict[str, tuple[float, float]]:
    """GiB of the simulation and of the estimate by kind, and in total.

    The simulation tells what FSDP2 gathers for a block from the gradients that it has not reduced yet, and what the
    forward pass keeps from what the backward pass needs for a moment; the estimate does not.
    """
    parts = {
        **found.peak,
        "activations": found.peak["activations"] + found.peak["temporaries"],
        "gathered weights": found.peak["gathered weights"] + found.peak["whole gradients"],
    }
    table = {
        name: (parts[name] / GIB, sum(result.gib.get(part, 0.0) for part in names)) for name, names in COMPARED.items()
    }
    return {**table, "total": (found.total / GIB, result.total)}


def simulation_report(found: Simulated, result: Estimate, ranks: int, cluster: Cluster | None = None) -> list[str]:
    """The simulated step as a table, beside the estimate.

    Args:
        found: The simulation.
        result: The estimate of the same run.
        ranks: Number of ranks.
        cluster: Cluster for the time of the collectives.
    """
    table = compared(found, result)
    lines = [
        "",
        f"simulated in {found.seconds:.0f} s: an optimizer step of rank 0 of {ranks}",
        "  peak, GiB          simulated  estimated",
        *(f"  {name:<18}{ours:10.2f}{theirs:11.2f}" for name, (ours, theirs) in table.items() if ours or theirs),
        *(["  (what the reference gathers is among the simulated activations)"] if table["reference"][0] else []),
        f"  between two steps {sum(found.after.values()) / GIB:10.2f}",
        f"  whole blocks: at most {found.whole_blocks} at a time; gathered weights: at most "
        f"{found.gathered / GIB:.2f} GiB",
        "  a step sends           over ranks     GB" + ("   seconds" if cluster else ""),
    ]
    for one in found.sent:
        step = one.ranks[1] - one.ranks[0] if len(one.ranks) > 1 else 1
        over = f"{len(one.ranks)} ({step} apart)" if step > 1 else f"{len(one.ranks)}"
        time = f"{cluster.seconds(one):10.2f}" if cluster else ""
        lines.append(f"  {one.kind:<16}{over:>18}{wire_bytes(one) / 1e9:7.2f}{time}")
    return lines
