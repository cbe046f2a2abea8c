"""What the simulation of ranks needs of torch and torch does not promise.

Each touch has a canary in ``tests/estimate/test_compat.py``.
Written for torch 2.13.0. Importing this file imports neither torch's tools nor its process groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from adadpo_lightning.estimate.traffic import Sent

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

# Names of memory in torch's tracker, and those of `estimate`.
KINDS = {
    "Sharded Param": "weights",
    "Buffer": "weights",
    "OptState": "optimizer",
    "Sharded Grad": "gradients",
    "Activation": "activations",
    "Temp": "temporaries",
    "Unsharded Param": "gathered weights",
    "All Gather": "gathered weights",
    "Unsharded Grad": "whole gradients",
    "Reduce Scatter": "whole gradients",
    "Inputs": "reference",
}


@contextmanager
def fake_ranks(ranks: int) -> Iterator[None]:
    """A process group of `ranks` ranks whose collectives move nothing; this process is its rank 0."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def memory_tracker(model: Any, optimizer: Optimizer, others: tuple[Tensor, ...]) -> Any:
    """Torch's memory tracker over a model that FSDP2 has sharded, its optimizer, and the weights of other models."""
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker

    tracker = FSDPMemTracker(model, optimizer)
    tracker.track_inputs(others)
    return tracker


@contextmanager
def global_shapes_uncounted() -> Iterator[None]:
    """A context in which DTensor computes global shapes in a mode of its own.

    It computes them over fake tensors of the global shape. Where a `FakeTensorMode` is active, it takes that one, and
    torch's memory tracker, which tells both apart by their mode, counts the global tensors as memory of this rank: all
    weights, gradients and optimizer state of the model in the step of a fused optimizer.
    """
    from torch.distributed.tensor import _sharding_prop

    with patch.object(_sharding_prop, "detect_fake_mode", lambda *_: None):
        yield


@contextmanager
def meshes_with_ranks() -> Iterator[None]:
    """A context in which a device mesh that is made under a `FakeTensorMode` still knows its ranks.

    FSDP2 makes one of its own and the tensor-parallel mesh, which looks for this rank's number in a tensor of them.
    """
    from torch._subclasses.fake_tensor import unset_fake_temporarily
    from torch.distributed.device_mesh import DeviceMesh

    make = DeviceMesh.__init__

    def make_with_values(self: DeviceMesh, *args: Any, **kwargs: Any) -> None:
        with unset_fake_temporarily():
            make(self, *args, **kwargs)

    with patch.object(DeviceMesh, "__init__", make_with_values):
        yield


def by_kind(snapshot: dict[Any, dict[Any, int]]) -> dict[str, int]:
    """Bytes by kind, from a snapshot of torch's memory tracker, over its devices."""
    found = dict.fromkeys(KINDS.values(), 0)
    for device in snapshot.values():
        for kind, size in device.items():
            if (name := _kind(kind)) is not None:
                found[name] += size
    return found


def held(tracker: Any, kind: str) -> int:
    """Bytes of one kind that the tracker counts now; a copy of its whole snapshot takes longer than an operation."""
    snapshots = tracker._curr_mem_snap.values()
    return sum(size for snapshot in snapshots for name, size in snapshot.items() if _kind(name) == kind)


def _kind(name: Any) -> str | None:
    """None for the total, which is a plain text."""
    return None if name == "Total" else KINDS[name.value]


def collective(operation: Any, args: tuple[Any, ...], result: Any) -> Sent | None:
    """What a dispatched operation sends; None if it is not a collective, or one without data.

    Raises:
        NotImplementedError: For a collective whose size torch does not know.
    """
    import torch.distributed as dist
    from torch.distributed._tools import fake_collectives as known

    name = operation.name().partition("::")[2].partition(".")[0].strip("_")
    kind = next((kind for sign, kind in _COLLECTIVES.items() if sign in name), name)
    if operation not in known.collective_ops or operation in known.sync_ops:
        if "c10d" in operation.namespace and kind in _COLLECTIVES.values():
            raise NotImplementedError(f"torch's own table of collectives lacks {operation.name()}")
        return None
    group = known.CollectiveOp.get_process_group(operation, args)
    size = known.CollectiveOp.get_comm_tensor_size(operation, result, args, {})
    return Sent(kind, tuple(dist.get_process_group_ranks(group)), size)


_COLLECTIVES = {
    "allgather": "all-gather",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "allreduce": "all-reduce",
    "all_reduce": "all-reduce",
    "alltoall": "all-to-all",
    "all_to_all": "all-to-all",
}
