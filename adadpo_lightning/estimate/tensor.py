"""A model that is split over a tensor-parallel group of ranks: what its rank 0 has and sends, over fake ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from adadpo_lightning.estimate.compat import collective, fake_ranks
from adadpo_lightning.models import tensor_parallel

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh

    from adadpo_lightning.estimate.traffic import Sent
    from adadpo_lightning.models.loading import PolicyConfig
    from adadpo_lightning.models.policy import PolicyModel
    from adadpo_lightning.types import PreferenceBatch


@contextmanager
def tensor_group(size: int) -> Iterator[DeviceMesh | None]:
    """The mesh of a tensor-parallel group of fake ranks; None for one rank, which splits nothing."""
    if size == 1:
        yield None
        return
    with fake_ranks(size):
        yield init_device_mesh("cpu", (size,))


def part(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor: all of it, unless it is split."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def split(model: Any, policy: PolicyConfig, mesh: DeviceMesh | None) -> None:
    """Split a causal language model over a group, in place; None leaves it as it is.

    Raises:
        UserError: If it cannot be split.
    """
    if mesh is not None:
        tensor_parallel.check_splittable(model, policy, mesh.size())
        tensor_parallel.split(model, mesh)


class Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    """Writes down each collective."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.sent: list[Sent] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # what it does with the parts comes here again
        result = func(*args, **(kwargs or {}))
        self.done()
        sent = collective(func, args, result)
        if sent is not None:
            self.sent.append(sent)
        return result

    def done(self) -> None:
        """Called after each operation."""


Exchanged = tuple[Counter[str], Counter[str]]


def exchanged(policy: PolicyModel, batch: PreferenceBatch) -> Exchanged:
    """Bytes of a group's collectives by kind: those of a forward pass, and those of a forward and a backward pass.

    Args:
        policy: The model, split and over tensors without memory.
        batch: The micro-batch.
    """
    with Collectives() as ledger:
        logps = policy(batch)
        forward = _by_kind(ledger.sent)
        logps.sum().backward()
    return forward, _by_kind(ledger.sent)


def of_all_blocks(cut: Sequence[Counter[str]], blocks: int) -> dict[str, int]:
    """What a model exchanges by kind, from what it does with one and with two blocks."""
    one, two = cut
    return {kind: size + (blocks - 1) * (two[kind] - size) for kind, size in one.items()}


def _by_kind(sent: list[Sent]) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for one in sent:
        sizes[one.kind] += one.size
    return sizes
