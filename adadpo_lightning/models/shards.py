"""Sharded tensors beside plain ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor; a tensor that is not sharded as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor; all ranks must call this for the same tensors in the same order."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assign_(tensor: Tensor, value: Tensor) -> None:
    """Copy a whole value into a tensor that may be sharded; all ranks must call this."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(tensor, DTensor):
        value = local(distribute_tensor(value, tensor.device_mesh, tensor.placements))
    local(tensor).copy_(value)
