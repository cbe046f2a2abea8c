"""Build a policy or its reference. When sharded, each rank reads only its own rows of the safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adadpo_lightning import hub, log
from adadpo_lightning.compat import apply_to_tensors
from adadpo_lightning.errors import UserError, first_line
from adadpo_lightning.models.adapters import add_reference_adapter, is_adapter, start_from_base
from adadpo_lightning.models.attention.registry import SERVED
from adadpo_lightning.models.loading import PolicyConfig, load_model
from adadpo_lightning.models.policy import PolicyModel
from adadpo_lightning.models.selfcheck import check_forward
from adadpo_lightning.models.sharding import Sharding, shard
from adadpo_lightning.models.tensor_parallel import check_splittable

if TYPE_CHECKING:
    from torch import Tensor, nn


def build_policy(
    config: PolicyConfig,
    tokenizer: Any = None,
    sharding: Sharding | None = None,
    *,
    frozen: bool = False,
    reference_adapter: bool = False,
) -> PolicyModel:
    """Load a policy, on one device or sharded.

    Args:
        config: The model to load.
        tokenizer: Tokenizer of the policy, to check the size of its vocabulary.
        sharding: How to shard the model; None loads all of it.
        frozen: Whether the model is a reference, which has no backward pass.
        reference_adapter: Add a frozen copy of the adapter; see `adadpo_lightning.models.adapters`.

    Raises:
        UserError: If the model cannot be loaded.
    """
    model: Any
    if sharding is None:
        model = load_model(config, tokenizer)
        if reference_adapter:
            add_reference_adapter(model)
        return PolicyModel(model, config)
    folder = weights_folder(config)
    state = torch.get_rng_state()
    reason = _whole_reason(config, folder)
    if folder is not None and reason is None:
        model = load_model(config, tokenizer, empty=True)
        reason = unstreamable_reason(model, folder)
    if reason is not None:
        log.warn(f"model.policy: {reason}; each rank builds the full model before it is sharded")
        torch.set_rng_state(state)  # a new adapter is the one that a single process draws
        model = load_model(config, tokenizer)
    if config.lora is not None:
        _same_on_all_ranks(model)
    if reference_adapter:
        add_reference_adapter(model)
    policy = placed(model, config, sharding, frozen=frozen)
    if reason is None:
        _read(policy, str(folder))
        if config.lora is not None and config.lora.adapter is None:
            start_from_base(policy.model)
        if policy.causal_lm.config.model_type not in SERVED:
            with policy.gathered():
                check_forward(policy)
    return policy


def placed(model: Any, config: PolicyConfig, sharding: Sharding, *, frozen: bool = False) -> PolicyModel:
    """Shard a model, and allocate this rank's shards of the weights that are on the meta device.

    Args:
        model: The causal language model.
        config: Config that it was built from.
        sharding: How to shard it.
        frozen: Whether it is a reference, which has no backward pass.

    Raises:
        UserError: If it cannot be split, where tensor parallelism is wanted.
    """
    if sharding.tensor is not None:
        check_splittable(model, config, sharding.tensor.size())
    policy = PolicyModel(model, config)
    shard(policy, sharding, frozen=frozen)
    _place(policy, sharding)
    return policy


def weights_folder(config: PolicyConfig) -> Path | None:
    """Folder with the safetensors files of a policy, downloaded for a hub id; None where there are none.

    Raises:
        UserError: If the hub is not reachable and its cache does not contain the files.
    """
    if config.path is None or config.gguf_file is not None:
        return None
    if Path(config.path).is_dir():
        return Path(config.path)
    from huggingface_hub import snapshot_download

    try:
        with hub.loading(config.path):
            patterns = ["*.safetensors", "*.json"]
            return Path(snapshot_download(config.path, revision=config.revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise UserError(
            "model.policy.path",
            f"cannot download weights for {config.path!r}: {first_line(error)}",
            "use a directory with config.json and safetensors weights, or an accessible hub id",
        ) from error


def _whole_reason(config: PolicyConfig, folder: Path | None) -> str | None:
    """Why a model must be loaded whole, as far as its config says; None if it need not."""
    if config.lora is not None and config.lora.quantize is not None:
        return "its weights are quantized while they are loaded"
    if folder is not None:
        return None
    return "its weights are random" if config.gguf_file is None else f"its weights are in {config.gguf_file}"


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor in the safetensors files of a folder, read from their headers."""
    from safetensors import safe_open

    shapes = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            shapes.update({name: tuple(file.get_slice(name).get_shape()) for name in names})
    return shapes


def base_name(name: str) -> str:
    """The name of a parameter in the checkpoint of the base model.

    Example:
        >>> base_name("base_model.model.model.layers.0.mlp.up_proj.base_layer.weight")
        'model.layers.0.mlp.up_proj.weight'
    """
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")


def unstreamable_reason(model: Any, folder: Path) -> str | None:
    """Why the files of a folder cannot be loaded directly into a model on the meta device; None if they can."""
    stored = stored_shapes(folder)
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    if getattr(base.config, "quantization_config", None):
        return "its weights are quantized"
    if any(hasattr(module, "trainable_tokens_delta") for module in model.modules()):
        return "the rows of single tokens (trainable_token_indices) are taken from the full embedding"
    wanted = {base_name(name): tuple(p.shape) for name, p in model.named_parameters() if p.is_meta}
    odd = [name for name, shape in wanted.items() if stored.get(name) != shape]
    if odd:
        return f"some weights in its files differ from the model in name or shape ({odd[0]})"
    return None


def _same_on_all_ranks(model: nn.Module) -> None:
    """Broadcast the adapters of rank zero, because each rank initializes new ones from its own random state."""
    import torch.distributed as dist

    trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    adapters = {name: p for name, p in trained if ".modules_to_save." not in name}
    drawn: list[Mapping[str, Tensor]] = [{name: p.detach() for name, p in adapters.items()}]
    dist.broadcast_object_list(drawn, src=0)
    with torch.no_grad():
        for name, parameter in adapters.items():
            parameter.copy_(drawn[0][name])


def _place(policy: PolicyModel, sharding: Sharding) -> None:
    """Allocate this rank's shards of the weights that are on the meta device."""
    device = torch.device("cpu") if sharding.cpu_offload else sharding.device

    def place(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor

    apply_to_tensors(policy, place)
    for module in policy.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(sharding.device))


def _read(policy: PolicyModel, folder: str) -> None:
    """Load each rank's shards from its rows of the files."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    named = policy.model.named_parameters()
    weights = {base_name(name): parameter.detach() for name, parameter in named if not is_adapter(name)}
    load(weights, storage_reader=HuggingFaceStorageReader(folder))
