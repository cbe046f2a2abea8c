"""One function that shards a policy of any architecture by its repeated block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from adadpo_lightning.models.policy import PolicyModel


@dataclass(frozen=True)
class Sharding:
    """How to shard a model.

    Args:
        mesh: One dimension: ranks that share one copy. Two: replicas x ranks that share one copy (HSDP).
        device: Where this rank computes.
        param_dtype: Type of the gathered weights and of the computation; None is that of the stored weights.
        reduce_dtype: Type in which gradients are summed over ranks; None is that of `param_dtype`.
        cpu_offload: Keep shards, gradients and optimizer state in CPU memory.
    """

    mesh: DeviceMesh
    device: torch.device
    param_dtype: torch.dtype | None = None
    reduce_dtype: torch.dtype | None = None
    cpu_offload: bool = False


def decoder_blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated block of an architecture: the items of that module list which holds most parameters.

    Raises:
        UserError: If there is no such list.

    Example:
        >>> model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "layers": nn.ModuleList(nn.Linear(4, 4) for _ in "ab")})
        >>> decoder_blocks(model)
        [Linear(in_features=4, out_features=4, bias=True), Linear(in_features=4, out_features=4, bias=True)]
    """
    lists: list[nn.Module] = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise UserError(
            "trainer.strategy", f"{type(model).__name__} has no list of blocks to shard by", "take another architecture"
        )
    # Lists inside a block, such as experts, hold less than the list of blocks; of equals, `max` takes the outer one.
    return list(max(lists, key=_parameters).children())


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shard(policy: PolicyModel, sharding: Sharding, *, frozen: bool = False) -> None:
    """Shard each block, then everything else as one: embedding, final norm and head.

    The head's weight is read in `PolicyModel.forward`, so that it has to belong to the root, and with tied embeddings
    it is the embedding's. Weights on the meta device stay there; others are cut from this rank's copy.

    Args:
        policy: The model; it is changed in place.
        sharding: Over which ranks, and in which types.
        frozen: For a model without a backward pass: then the root, too, is resharded after its forward.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    options: dict[str, Any] = {
        "mesh": sharding.mesh,
        "mp_policy": MixedPrecisionPolicy(param_dtype=sharding.param_dtype, reduce_dtype=sharding.reduce_dtype),
        "offload_policy": CPUOffloadPolicy(pin_memory=sharding.device.type == "cuda")
        if sharding.cpu_offload
        else OffloadPolicy(),
    }
    for block in decoder_blocks(policy.causal_lm):
        fully_shard(block, **options, reshard_after_forward=True)
    # None keeps the root gathered until its backward pass, which comes right after its forward.
    fully_shard(policy, **options, reshard_after_forward=True if frozen else None)
