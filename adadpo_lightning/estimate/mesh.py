"""Which mesh a run should take on a cluster: what each one needs and sends, and why one is recommended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from adadpo_lightning.errors import UserError
from adadpo_lightning.estimate.memory import estimate, measured
from adadpo_lightning.estimate.traffic import exchanges, traffic, wire_bytes

if TYPE_CHECKING:
    from adadpo_lightning.estimate.architecture import Measured
    from adadpo_lightning.estimate.memory import RunShape
    from adadpo_lightning.estimate.traffic import Cluster

# What configs/strategy/fsdp2.yaml sets, for a run that is not sharded yet.
SHIPPED: Mapping[str, Any] = {
    "ddp": False,
    "autocast": False,
    "gathered_dtype": torch.bfloat16,
    "reduced_dtype": torch.float32,
}
# Share of a device's memory that a run may fill by its estimate.
FULL = 0.9


ASSUMED = (
    "weights and gradients are sent while blocks are computed; computing waits for the activations of tensor "
    "parallelism (TP)"
)


@dataclass(frozen=True)
class Mesh:
    """What a run needs and sends with its weights sharded over some of the ranks.

    Args:
        replicas: Number of copies of the weights.
        shards: Number of ranks over which FSDP2 shards a copy, or each of its `tensor` parts.
        tensor: Number of ranks of a tensor-parallel group.
        gib: Peak memory of a rank, GiB.
        inside: Bytes that a rank sends per optimizer step in groups within its node.
        between: The same in groups that span nodes.
        sending: Seconds per step of the collectives of weights and gradients, one after the other.
        waiting: Seconds per step of the collectives of activations in a tensor-parallel group.
        computing: Seconds per step of the computation.
    """

    replicas: int
    shards: int
    tensor: int
    gib: float
    inside: float
    between: float
    sending: float
    waiting: float
    computing: float

    def __str__(self) -> str:
        """Name of the mesh."""
        if self.tensor > 1:
            return f"TP {self.tensor} x FSDP2 {self.shards}"
        if self.shards == 1:
            return f"DDP {self.replicas}"
        return f"FSDP2 {self.shards}" if self.replicas == 1 else f"HSDP {self.replicas} x {self.shards}"

    @property
    def step(self) -> float:
        """Seconds of a step, if sending overlaps with computing as far as it can."""
        return self.waiting + max(self.sending, self.computing)

    @property
    def options(self) -> str:
        """The options of ``fit`` that choose it."""
        chosen = "--trainer.strategy.init_args"
        if self.tensor > 1:
            return f"--config configs/strategy/tp_fsdp2.yaml {chosen}.tensor_parallel_size {self.tensor}"
        if self.shards == 1:
            return "--config configs/strategy/ddp.yaml"
        return f"--config configs/strategy/fsdp2.yaml {chosen}.replicas {self.replicas}"

    def fits(self, cluster: Cluster) -> bool:
        """Whether a tenth of the memory stays free."""
        return self.gib <= FULL * cluster.gib


def meshes(run: RunShape, cluster: Cluster) -> tuple[list[Mesh], list[str]]:
    """Every way to shard the run's weights over the cluster, and what is impossible, with the reason.

    Groups of FSDP2 are whole nodes or parts of one, tensor-parallel groups parts of a node. Each mesh has the
    run's micro-batches, and so many of them per step that a step has the same pairs.

    Args:
        run: The run; its ranks, shards and accumulation are replaced.
        cluster: The cluster.
    """
    batches = run.micro_batches or run.accumulation * run.groups
    found, impossible = [], []
    for tensor in _divisors(cluster.gpus):
        groups = cluster.ranks // tensor
        if groups > batches:
            impossible.append(f"mesh with {_of(tensor)}: {groups} groups share {batches} micro-batches a step")
            continue
        try:
            shapes = _shapes(run, cluster, tensor)
            sizes = {sharded: measured(shape) for sharded, shape in {s.sharded: s for s in shapes}.items()}
        except UserError as error:
            if tensor == 1:
                raise
            impossible.append(f"mesh with {_of(tensor)}: {error.field}: {error.problem}")
            continue
        found += [_mesh(sizes[s.sharded], replace(s, accumulation=-(-batches // groups)), cluster) for s in shapes]
    return found, impossible


def _shapes(run: RunShape, cluster: Cluster, tensor: int) -> list[RunShape]:
    """The run on each mesh with tensor-parallel groups of a size."""
    ranks = cluster.ranks
    sharded = replace(run if run.sharded else replace(run, **SHIPPED), ranks=ranks, tensor=tensor)
    if tensor > 1:
        if run.cpu_offload:
            raise UserError("trainer.strategy.cpu_offload", "is not supported with tensor parallelism")
        return [replace(sharded, shards=ranks // tensor)]
    half = run.autocast or sharded.gathered_dtype == torch.bfloat16
    whole = replace(run, ranks=ranks, tensor=1, ddp=ranks > 1, autocast=half)
    sizes = [n for n in _divisors(ranks) if n % cluster.gpus == 0 or cluster.gpus % n == 0]
    return [replace(sharded if shards > 1 else whole, shards=shards) for shards in sizes]


def _mesh(sizes: Measured, run: RunShape, cluster: Cluster) -> Mesh:
    needs, sent, waited = estimate(run, sizes), traffic(sizes, run), exchanges(sizes, run)
    crossing = sum(wire_bytes(one) for one in sent if cluster.crosses(one))
    waiting = sum(map(cluster.seconds, waited))
    return Mesh(
        run.groups // run.shards,
        run.shards,
        run.tensor,
        needs.total,
        sum(map(wire_bytes, sent)) - crossing,
        crossing,
        sum(cluster.seconds(one) for one in sent if one not in waited),
        waiting,
        needs.step_flops / run.ranks / (cluster.tflops * 1e12 * cluster.utilisation),
    )


def best(found: Sequence[Mesh], cluster: Cluster) -> Mesh | None:
    """The mesh that fits and whose steps take least time; of equal ones that which sends, then needs, least."""
    return min((m for m in found if m.fits(cluster)), key=_cost, default=None)


def _cost(mesh: Mesh) -> tuple[float, ...]:
    return mesh.step, mesh.sending + mesh.waiting, mesh.gib


def _of(tensor: int) -> str:
    return f"TP {tensor}" if tensor > 1 else "ranks of their own"


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def mesh_report(run: RunShape, cluster: Cluster) -> list[str]:
    """A table of the meshes, and which one to take.

    Args:
        run: The run's shape.
        cluster: The cluster.
    """
    found, impossible = meshes(run, cluster)
    chosen = best(found, cluster)
    lines = [
        "",
        f"meshes of {cluster.nodes} node(s) x {cluster.gpus} GPUs of {cluster.gib:g} GiB, {cluster.inside:g} GB/s "
        f"inside a node and {cluster.between:g} GB/s between nodes per GPU",
        "  mesh               GiB a rank   GB a step inside   between   sending, s   waiting   computing      step",
        *(
            f"  {m!s:<18}{m.gib:9.1f} {' ' if m.fits(cluster) else '!'}{m.inside / 1e9:17.1f}{m.between / 1e9:10.1f}"
            f"{m.sending:13.2f}{m.waiting:10.2f}{m.computing:12.2f}{m.step:10.2f}"
            for m in found
        ),
        f"  (! does not fit with a tenth to spare; {ASSUMED})",
        *(f"  no {line}" for line in impossible),
    ]
    return [*lines, "", *_why(found, chosen, cluster)]


def _why(found: Sequence[Mesh], chosen: Mesh | None, cluster: Cluster) -> list[str]:
    if not found:
        return ["no mesh: a step has fewer micro-batches than the cluster has GPUs; raise data.global_batch_size"]
    if chosen is None:
        least = min(found, key=lambda m: m.gib)
        return [f"no mesh fits: {least} needs least, {least.gib:.1f} GiB of {cluster.gib:g}"]
    lines = [f"recommended: {chosen} ({chosen.options})"]
    second = min((m for m in found if m.fits(cluster) and m is not chosen), key=_cost, default=None)
    if second is not None:
        lines.append(
            f"  of those that fit its step takes least time, {_times(chosen)}; next {second}, {_times(second)}"
        )
    faster = [m for m in found if not m.fits(cluster) and _cost(m) < _cost(chosen)]
    lines += [f"  {m} would take {_times(m)}, but needs {m.gib:.1f} GiB" for m in faster]
    whole = min((m for m in found if m.tensor == 1), key=lambda m: m.gib, default=None)
    if chosen.tensor > 1 and whole is not None and not whole.fits(cluster):
        lines.append(f"  nothing fits without TP: {whole} needs least, {whole.gib:.1f} GiB")
    apart = chosen.waiting + chosen.sending + chosen.computing
    lines.append(f"  if sending does not overlap at all, its step takes {apart:.2f} s instead of {chosen.step:.2f} s")
    if chosen.sending > chosen.computing:
        lines.append("  sending is longer: larger micro-batches, of which a step then has fewer, send less")
    return lines


def _times(mesh: Mesh) -> str:
    waiting = f", waiting {mesh.waiting:.2f} s" if mesh.tensor > 1 else ""
    return f"{mesh.step:.2f} s (computing {mesh.computing:.2f} s, sending {mesh.sending:.2f} s{waiting})"
