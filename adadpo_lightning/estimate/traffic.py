"""Bytes that the ranks of a run send per optimizer step, and the time that takes on a cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from adadpo_lightning.estimate.architecture import Measured
    from adadpo_lightning.estimate.memory import RunShape

# Share of the tensor that a rank sends in a ring of n ranks, in units of (n - 1) / n.
# Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations".
RINGS = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2, "broadcast": 1, "all-to-all": 1}


class Sent(NamedTuple):
    """A collective, or several of one kind over the same ranks.

    Args:
        kind: A key of `RINGS`.
        ranks: The ranks that take part, rank 0 among them.
        size: Bytes of the whole tensor: that of all ranks for a gather or a scatter.
    """

    kind: str
    ranks: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Cluster:
    """Machines for a run. The defaults are the data sheet of nodes of eight H100 with one 400 Gb/s card per GPU.

    Args:
        nodes: Number of nodes.
        gpus: GPUs per node.
        gib: Memory of a GPU, GiB.
        inside: Bandwidth of a GPU to the others of its node, GB/s in one direction.
        between: Bandwidth of a GPU to other nodes, GB/s in one direction.
        tflops: Peak of a GPU in the data type of the computation, TFLOP/s.
        utilisation: Share of the peak that the computation reaches.
    """

    nodes: int = 1
    gpus: int = 8
    gib: float = 80.0
    inside: float = 450.0
    between: float = 50.0
    tflops: float = 989.0
    utilisation: float = 0.4

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value in vars(self).items():
            if value <= 0:
                raise UserError("cluster", f"expected {name} above 0, got {value:g}")
        if self.utilisation > 1:
            raise UserError("cluster", f"expected utilisation of at most 1, got {self.utilisation:g}")

    @property
    def ranks(self) -> int:
        """Number of GPUs."""
        return self.nodes * self.gpus

    def seconds(self, sent: Sent) -> float:
        """Time of a collective if the bandwidths are reached and nothing else is sent.

        In a group that spans nodes every ring crosses each node once in each direction, and there are as many rings as
        the group has GPUs on a node, each with its own card.
        """
        node = sent.ranks[0] // self.gpus
        here = sum(rank // self.gpus == node for rank in sent.ranks)
        crosses = here < len(sent.ranks)
        bandwidth = min(self.inside, here * self.between) if crosses else self.inside
        return wire_bytes(sent) / (bandwidth * 1e9)

    def crosses(self, sent: Sent) -> bool:
        """Whether a collective leaves the node."""
        return len({rank // self.gpus for rank in sent.ranks}) > 1


def wire_bytes(sent: Sent) -> float:
    """Bytes that a rank sends in a ring.

    Example:
        >>> wire_bytes(Sent("all-reduce", (0, 1, 2, 3), 1000))
        1500.0
    """
    ranks = len(sent.ranks)
    return RINGS[sent.kind] * sent.size * (ranks - 1) / ranks


def summed(sent: Iterable[Sent]) -> list[Sent]:
    """The collectives of one kind over the same ranks as one."""
    sizes: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for one in sent:
        sizes[one.kind, one.ranks] += one.size
    return [Sent(kind, ranks, size) for (kind, ranks), size in sizes.items()]


def traffic(m: Measured, run: RunShape) -> list[Sent]:
    """The collectives of rank 0 in an optimizer step, summed by kind and group.

    FSDP2 gathers each block in the forward and again in the backward pass, and everything else (embedding, norm, head)
    once. It reduces gradients after each micro-batch, and with several replicas then sums the shards over them. A
    tensor-parallel group exchanges activations in every pass. DDP sums gradients once per step. The norm of the
    gradient and padding of uneven shards are left out.

    Args:
        m: Sizes of the model.
        run: The run's shape.
    """
    if not run.sharded:
        return [Sent("all-reduce", tuple(range(run.ranks)), m.trained)] if run.ranks > 1 else []
    copy = run.shards * run.tensor
    shard, replicas = tuple(range(0, copy, run.tensor)), tuple(range(0, run.ranks, copy))
    gathered, reduced = run.widths(m.stored)
    gradients = run.accumulation * round(m.trained * reduced)
    sent = []
    if run.shards > 1:
        sent = [
            Sent("all-gather", shard, run.accumulation * round(_gathered(m, run, gathered))),
            Sent("reduce-scatter", shard, gradients),
        ]
    if len(replicas) > 1:
        sent.append(Sent("all-reduce", replicas, gradients // run.shards))
    return [*sent, *exchanges(m, run)]


def _gathered(m: Measured, run: RunShape, width: float) -> float:
    """Bytes that are gathered for a micro-batch, where a stored byte is gathered as `width` bytes."""
    blocks = (m.weights - m.outside - m.replicated) * (1.0 if run.quantized else width)
    outside = m.outside * width
    weights = 2 * blocks + outside
    if run.second_model:
        weights += blocks + outside
    elif run.reference in ("adapter", "adapter_off"):
        weights += blocks  # what is outside of the blocks is still whole from the policy's pass
    return weights


def exchanges(m: Measured, run: RunShape) -> list[Sent]:
    """The collectives of a tensor-parallel group: those of activations, which computing waits for."""
    passes = Counter(m.both)
    if run.second_model:
        passes.update(m.forward)
    return [Sent(kind, tuple(range(run.tensor)), run.accumulation * size) for kind, size in passes.items()]
