"""Tensor parallelism: transformers' plan of an architecture, carried out by `torch.distributed.tensor.parallel`.

Heads of the attention and columns of the feed-forward layers are split over a group of ranks that see the same batch;
embedding and head are split by vocabulary. Every other weight (norms) is replicated on the same mesh, so that gradient
norms and the optimizer meet one mesh. Sharding by FSDP2 follows, see `models.sharding`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from adadpo_lightning.compat import run_with_local_parameters
from adadpo_lightning.errors import UserError
from adadpo_lightning.models.attention.registry import SERVED
from adadpo_lightning.models.logprobs import VocabularyShard

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh

    from adadpo_lightning.models.loading import PolicyConfig

FIELD = "trainer.strategy.tensor_parallel_size"


class ReplicatedLocally(ParallelStyle):
    """Replicates a module's own parameters over the group, and computes with plain tensors.

    Args:
        partial: Whether each rank's activations give only a part of the gradient, as in a norm of the rank's own heads.
            Otherwise the activations, and so the gradient, are the same on all ranks of the group.
    """

    def __init__(self, *, partial: bool = False) -> None:
        self.placement = Partial() if partial else Replicate()

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, parameter in list(module.named_parameters(recurse=False)):
            whole = distribute_tensor(parameter.detach(), device_mesh, [Replicate()], src_data_rank=self.src_data_rank)
            module.register_parameter(name, nn.Parameter(whole, parameter.requires_grad))
        run_with_local_parameters(module, [self.placement])
        return module


# The names that transformers' plans use; those of mixtures of experts are not served.
STYLES: dict[str, ParallelStyle] = {
    "colwise": ColwiseParallel(),
    "colwise_gather_output": ColwiseParallel(output_layouts=Replicate()),
    "rowwise": RowwiseParallel(),
    "rowwise_split_input": RowwiseParallel(input_layouts=Replicate()),
    "embedding_rowwise": RowwiseParallel(input_layouts=Replicate()),
    "replicated_with_grad_allreduce": ReplicatedLocally(partial=True),
}


def architectures() -> list[str]:
    """Model types whose plan can be carried out, of those that the packed layout serves."""
    from transformers import CONFIG_MAPPING

    plans = {kind: CONFIG_MAPPING[kind].base_model_tp_plan for kind in sorted(SERVED)}
    return [kind for kind, plan in plans.items() if plan and STYLES.keys() >= set(plan.values())]


def split(model: Any, mesh: DeviceMesh) -> None:
    """Split a model over a tensor-parallel group, in place.

    Weights on the meta device stay there; other weights are taken from this rank's copy. Attention then has this rank's
    heads only, and the weight of the head this rank's rows; called as modules, embedding and head return all of it.

    Args:
        model: A causal language model that passed `check_splittable`.
        mesh: The ranks of the group, one dimension.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight
    parallelize_module(model, mesh, _plan(model), src_data_rank=None)
    if tied:
        head.weight = embedding.weight
    for module in model.modules():
        if any(not isinstance(p, DTensor) for p in module.parameters(recurse=False)):
            parallelize_module(module, mesh, ReplicatedLocally(), src_data_rank=None)


def own_rows(head: nn.Linear) -> tuple[Tensor, Tensor | None, VocabularyShard | None]:
    """Weight and bias of a head as plain tensors, and which rows they are; None for all rows, of a head not split."""
    weight, bias = head.weight, head.bias
    if not isinstance(weight, DTensor):
        return weight, bias, None
    mesh = weight.device_mesh
    start = mesh.get_local_rank() * -(-len(weight) // mesh.size())  # as `torch.chunk` divides rows
    shard = VocabularyShard(start, mesh.get_group())
    return weight.to_local(), bias.to_local() if isinstance(bias, DTensor) else None, shard


def _plan(model: Any) -> dict[str, ParallelStyle]:
    """Style of each module, by name with ``*`` for the number of the layer."""
    names = {id(module): name for name, module in model.named_modules()}
    return {name: STYLES[style] for name, style in model.tp_plan.items()} | {
        names[id(model.get_input_embeddings())]: STYLES["embedding_rowwise"],
        names[id(model.get_output_embeddings())]: STYLES["colwise_gather_output"],
    }


def check_splittable(model: Any, config: PolicyConfig, size: int) -> None:
    """Check that a policy can be split over `size` ranks.

    Args:
        model: The causal language model, possibly on the meta device.
        config: What it was loaded with.
        size: Number of ranks in a tensor-parallel group.

    Raises:
        UserError: If the architecture has no plan that can be carried out, if its sizes are not divisible, or if
            adapters or compilation are wanted.
    """
    without = "set tensor_parallel_size to 1 (configs/strategy/fsdp2.yaml)"
    for field, wanted in (("lora", config.lora is not None), ("compile", config.compile)):
        if wanted:
            raise UserError(f"model.policy.{field}", "is not supported with tensor parallelism", without)
    kind = model.config.model_type
    if kind not in SERVED or not model.tp_plan or not STYLES.keys() >= set(model.tp_plan.values()):
        raise UserError(FIELD, f"{kind!r} has no plan for it; these have: {', '.join(architectures())}", without)
    _check_sizes(model, size)
    _check_norms(model, kind)


def _check_sizes(model: Any, size: int) -> None:
    sizes = {name: getattr(model.config, name, None) for name in ("num_attention_heads", "num_key_value_heads")}
    for name, module in model.named_modules():
        style = _style(model, name)
        if style in ("colwise", "rowwise", "rowwise_split_input"):
            width = "out_features" if style == "colwise" else "in_features"
            sizes[f"{width} of {name}"] = getattr(module, width)
    for what, number in sizes.items():
        if number is not None and number % size:
            raise UserError(FIELD, f"{what} is {number}, which is not divisible by {size}", "choose a divisor")


def _check_norms(model: Any, kind: str) -> None:
    """Refuse weights beside split ones that the plan does not name: their gradient would be that of some heads only."""
    for path, block in model.named_modules():
        styles = {name: _style(model, f"{path}.{name}") for name, _ in block.named_children()}
        if "colwise" not in styles.values():
            continue
        for name, child in block.named_children():
            if styles[name] is None and any(True for _ in child.parameters()):
                raise UserError(
                    FIELD, f"the plan of {kind!r} leaves out {path}.{name}", "use another model, or set it to 1"
                )


def _style(model: Any, name: str) -> str | None:
    generic = ".".join("*" if part.isdigit() else part for part in name.split("."))
    style: str | None = model.tp_plan.get(generic)
    return style
