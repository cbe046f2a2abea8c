"""Which mesh a run should take on a cluster: what each one needs and sends, and why one is recommended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from adadpo_lightning.estimate.memory import estimate, measured
from adadpo_lightning.estimate.traffic import traffic, wire_bytes

if TYPE_CHECKING:
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


@dataclass(frozen=True)
class Mesh:
    """What a run needs and sends with its weights sharded over some of the ranks.

    Args:
        replicas: Number of copies of the weights.
        shards: Number of ranks that share a copy.
        gib: Peak memory of a rank, GiB.
        inside: Bytes that a rank sends per optimizer step in groups within its node.
        between: The same in groups that span nodes.
        sending: Seconds per step of all collectives, one after the other.
        computing: Seconds per step of the computation.
    """

    replicas: int
    shards: int
    gib: float
    inside: float
    between: float
    sending: float
    computing: float

    def __str__(self) -> str:
        """Name of the mesh."""
        if self.shards == 1:
            return f"DDP {self.replicas}"
        return f"FSDP2 {self.shards}" if self.replicas == 1 else f"HSDP {self.replicas} x {self.shards}"

    @property
    def options(self) -> str:
        """The options of ``fit`` that choose it."""
        if self.shards == 1:
            return "--config configs/strategy/ddp.yaml"
        return f"--config configs/strategy/fsdp2.yaml --trainer.strategy.init_args.replicas {self.replicas}"

    def fits(self, cluster: Cluster) -> bool:
        """Whether a tenth of the memory stays free."""
        return self.gib <= FULL * cluster.gib


def meshes(run: RunShape, cluster: Cluster) -> list[Mesh]:
    """Every way to shard the run's weights over the cluster, with whole nodes or parts of one as groups.

    A further dimension of the mesh (tensor parallelism) is a further factor of `Cluster.ranks` here, with its own
    collectives in `traffic`.

    Args:
        run: The run; its ranks and shards are replaced.
        cluster: The cluster.
    """
    ranks = cluster.ranks
    sharded = run if run.shards > 1 else replace(run, **SHIPPED)
    whole = replace(run, shards=1, ddp=ranks > 1, autocast=run.autocast or sharded.gathered_dtype == torch.bfloat16)
    sizes = {True: measured(replace(sharded, shards=2)), False: measured(whole)}
    found = []
    for shards in _divisors(ranks):
        if shards % cluster.gpus and cluster.gpus % shards:
            continue
        changed = replace(sharded if shards > 1 else whole, ranks=ranks, shards=shards)
        needs, sent = estimate(changed, sizes[shards > 1]), traffic(sizes[shards > 1], changed)
        crossing = [one for one in sent if cluster.crosses(one)]
        found.append(
            Mesh(
                ranks // shards,
                shards,
                needs.total,
                sum(map(wire_bytes, sent)) - sum(map(wire_bytes, crossing)),
                sum(map(wire_bytes, crossing)),
                sum(map(cluster.seconds, sent)),
                needs.step_flops / ranks / (cluster.tflops * 1e12 * cluster.utilisation),
            )
        )
    return found


def best(found: Sequence[Mesh], cluster: Cluster) -> Mesh | None:
    """The mesh that fits and whose collectives take least time; of equal ones that which needs least memory."""
    return min((m for m in found if m.fits(cluster)), key=lambda m: (m.sending, m.gib), default=None)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def mesh_report(run: RunShape, cluster: Cluster) -> list[str]:
    """A table of the meshes, and which one to take.

    Args:
        run: The run's shape.
        cluster: The cluster.
    """
    found = meshes(run, cluster)
    chosen = best(found, cluster)
    lines = [
        "",
        f"meshes of {cluster.nodes} node(s) x {cluster.gpus} GPUs of {cluster.gib:g} GiB, {cluster.inside:g} GB/s "
        f"inside a node and {cluster.between:g} GB/s between nodes per GPU",
        "  mesh               GiB a rank   GB a step inside   between   sending, s   computing, s",
        *(
            f"  {m!s:<18}{m.gib:9.1f} {' ' if m.fits(cluster) else '!'}{m.inside / 1e9:17.1f}{m.between / 1e9:10.1f}"
            f"{m.sending:13.2f}{m.computing:15.2f}"
            for m in found
        ),
        "  (! does not fit with a tenth to spare; sending overlaps with computing as far as it can)",
    ]
    return [*lines, "", *_why(found, chosen, cluster)]


def _why(found: Sequence[Mesh], chosen: Mesh | None, cluster: Cluster) -> list[str]:
    if chosen is None:
        least = min(found, key=lambda m: m.gib)
        return [f"no mesh fits: {least} needs least, {least.gib:.1f} GiB of {cluster.gib:g}"]
    lines = [f"recommended: {chosen} ({chosen.options})"]
    faster = [m for m in found if m.sending < chosen.sending]
    slower = [m for m in found if m.fits(cluster) and m is not chosen]
    if slower:
        second = min(slower, key=lambda m: m.sending)
        lines.append(
            f"  its collectives take least time of those that fit: {chosen.sending:.2f} s a step, {second} "
            f"{second.sending:.2f} s"
        )
    lines += [f"  {m} would send for {m.sending:.2f} s, but needs {m.gib:.1f} GiB" for m in faster]
    bound, other = ("sending", "computing") if chosen.sending > chosen.computing else ("computing", "sending")
    longest, shortest = max(chosen.sending, chosen.computing), min(chosen.sending, chosen.computing)
    lines.append(
        f"  a step takes between {longest:.2f} s, if {other} overlaps entirely with {bound}, and "
        f"{longest + shortest:.2f} s, if it does not at all"
    )
    if bound == "sending":
        lines.append("  sending is longer: larger micro-batches, of which a step then has fewer, send less")
    return lines
