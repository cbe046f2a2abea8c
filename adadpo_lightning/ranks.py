"""What all ranks have together. Without other ranks each function returns its argument's own value.

Ranks of one tensor-parallel group compute the same from the same data. Together they count as one: each other function
combines ranks with different data, and gives the same result on every rank. `gather_all` and `of_every_rank` are
about the ranks as processes, and combine all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.distributed import ProcessGroup

T = TypeVar("T")

# This rank and those with different data, in their order; None for all ranks.
_with_own_data: ProcessGroup | None = None


def data_group() -> ProcessGroup | None:
    """The ranks that these functions combine; None for all ranks."""
    return _with_own_data


def set_data_group(group: ProcessGroup | None) -> None:
    """Set the ranks that these functions combine, for a strategy in which some ranks have the same data."""
    global _with_own_data  # as the process group of torch, which this narrows
    _with_own_data = group


def is_distributed() -> bool:
    """Whether this process has joined a group of ranks."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def gather(mine: T) -> list[T]:
    """The object of each rank, in the order of ranks; every rank must call it.

    Example:
        >>> gather({"row": 3})
        [{'row': 3}]
    """
    import torch.distributed as dist

    if not is_distributed():
        return [mine]
    parts: list[T] = [mine] * dist.get_world_size(_with_own_data)
    dist.all_gather_object(parts, mine, group=_with_own_data)
    return parts


def gather_all(mine: T) -> list[T]:
    """The object of each rank, of those with the same data too; every rank must call it.

    Example:
        >>> gather_all("gpu-7")
        ['gpu-7']
    """
    import torch.distributed as dist

    if not is_distributed():
        return [mine]
    parts: list[T] = [mine] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return parts


def of_every_rank(values: Tensor) -> Tensor:
    """A tensor (N,) of each rank, of those with the same data too: (ranks, N); every rank must call it."""
    import torch
    import torch.distributed as dist

    if not is_distributed():
        return values[None]
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values)
    return torch.stack(parts)


def gather_items(mine: Sequence[T]) -> list[T]:
    """The items of all ranks in one list; every rank must call it.

    Example:
        >>> gather_items([1, 2])
        [1, 2]
    """
    return [item for part in gather(mine) for item in part]


def total(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, in a tensor of its own; every rank must call it."""
    return _reduced(values, "SUM")


def least(values: Tensor) -> Tensor:
    """The elementwise minimum of a tensor over all ranks, in a tensor of its own; every rank must call it."""
    return _reduced(values, "MIN")


def _reduced(values: Tensor, op: str) -> Tensor:
    import torch
    import torch.distributed as dist

    if not is_distributed():
        return values
    reduced = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(reduced, op=getattr(dist.ReduceOp, op), group=_with_own_data)
    return reduced
