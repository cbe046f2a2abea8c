"""Shards a policy of any architecture by its repeated block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adadpo_lightning.errors import UserError
from adadpo_lightning.models.tensor_parallel import split

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from adadpo_lightning.models.policy import PolicyModel


@dataclass(frozen=True)
class Sharding:
    """How to shard a model.

    Args:
        mesh: One dimension: the ranks to shard over. Two dimensions: replicas x ranks to shard over (HSDP).
        device: Device of this rank.
        param_dtype: Data type of the gathered weights and of the computation; None means that of the stored weights.
        reduce_dtype: Data type in which gradients are summed over ranks; None means `param_dtype`.
        cpu_offload: Keep shards, gradients and optimizer state in CPU memory.
        tensor: The ranks that split each weight of this rank's copy before it is sharded; None for no such split.
    """

    mesh: DeviceMesh
    device: torch.device
    param_dtype: torch.dtype | None = None
    reduce_dtype: torch.dtype | None = None
    cpu_offload: bool = False
    tensor: DeviceMesh | None = None


def decoder_blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of an architecture: the items of the module list with the most parameters.

    Raises:
        UserError: If the model has no module list.

    Example:
        >>> model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "layers": nn.ModuleList(nn.Linear(4, 4) for _ in "ab")})
        >>> decoder_blocks(model)
        [Linear(in_features=4, out_features=4, bias=True), Linear(in_features=4, out_features=4, bias=True)]
    """
    lists: list[nn.Module] = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise UserError(
            "trainer.strategy", f"{type(model).__name__} has no list of blocks to shard by", "use another architecture"
        )
    # Lists inside a block, for example of experts, are smaller; on ties `max` returns the outer list.
    return list(max(lists, key=_parameters).children())


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _check_dtypes(policy: PolicyModel, blocks: list[nn.Module]) -> None:
    """Stop where FSDP2 would: the gradients of a unit are reduced as one tensor.

    Raises:
        UserError: If the trained weights of a unit differ in dtype.
    """
    inside = {p for block in blocks for p in block.parameters()}
    for unit in ([p for p in policy.parameters() if p not in inside], *(block.parameters() for block in blocks)):
        dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in unit if p.requires_grad})
        if len(dtypes) > 1:
            raise UserError(
                "trainer.strategy",
                f"FSDP2 needs trained weights of one dtype in each block and outside of them, got {dtypes}: peft keeps "
                "adapters in float32 and copies (modules_to_save) in the dtype of the model",
                "set model.policy.dtype to float32, or leave those modules out of model.policy.lora.peft",
            )


def shard(policy: PolicyModel, sharding: Sharding, *, frozen: bool = False) -> None:
    """Shard each block, then everything else as one unit: embedding, final norm and head; first split, if wanted.

    `PolicyModel.forward` reads the head's weight, so it must belong to the root, as must an embedding tied to it.
    Weights on the meta device stay there; other weights are sharded from this rank's copy.

    Args:
        policy: The model; modified in place.
        sharding: Mesh, data types and offloading.
        frozen: Whether the model has no backward pass; the root is then also resharded after its forward pass.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    options: dict[str, Any] = {
        "mesh": sharding.mesh,
        "mp_policy": MixedPrecisionPolicy(param_dtype=sharding.param_dtype, reduce_dtype=sharding.reduce_dtype),
        "offload_policy": CPUOffloadPolicy(pin_memory=sharding.device.type == "cuda")
        if sharding.cpu_offload
        else OffloadPolicy(),
    }
    if sharding.tensor is not None:
        split(policy.causal_lm, sharding.tensor)
    blocks = decoder_blocks(policy.causal_lm)
    _check_dtypes(policy, blocks)
    for block in blocks:
        fully_shard(block, **options, reshard_after_forward=True)
    # None keeps the root gathered until its backward pass, which directly follows its forward pass.
    fully_shard(policy, **options, reshard_after_forward=True if frozen else None)
