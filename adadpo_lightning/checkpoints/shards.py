"""Write a sharded checkpoint or a sharded policy as safetensors, one file's worth of weights at a time."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adadpo_lightning.errors import UserError
from adadpo_lightning.models.adapters import TRAINED

if TYPE_CHECKING:
    from torch import Tensor

# Size of a file at most, and so the memory that an export needs; a larger weight gets a file of its own.
FILE_BYTES = 2 * 1024**3
STATE = "state_dict."


def is_sharded(checkpoint: Path) -> bool:
    """Whether a path is a directory of shards as ``fit`` writes it."""
    return (checkpoint / "meta.pt").is_file() and (checkpoint / ".metadata").is_file()


def stored_weights(checkpoint: Path) -> dict[str, Any]:
    """Metadata (size, type) of each weight in a sharded checkpoint, by the names of the module's ``state_dict``."""
    from adadpo_lightning.checkpoints.shard_reader import ShardReader

    entries = ShardReader(checkpoint).read_metadata().state_dict_metadata
    return {name.removeprefix(STATE): entry for name, entry in entries.items() if name.startswith(STATE)}


def read_weights(checkpoint: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Assemble weights of a sharded checkpoint, in one process.

    Args:
        checkpoint: Its directory.
        names: Which; None for all.
    """
    from adadpo_lightning.checkpoints.shard_reader import load_shards

    stored = stored_weights(checkpoint)
    wanted = stored if names is None else names
    weights = {name: torch.empty(stored[name].size, dtype=stored[name].properties.dtype) for name in wanted}
    keyed = {STATE + name: weight for name, weight in weights.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as intended
        load_shards(keyed, checkpoint, no_dist=True)
    return weights


def converts_weights(model: Any) -> bool:
    """Whether a model stores its weights in another form than it holds them in memory, such as fused experts."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    return any(isinstance(step, WeightConverter) for step in get_model_conversion_mapping(model))


def export_shards(checkpoint: Path, model: Any, prefix: str, folder: Path) -> None:
    """Write the weights of a sharded checkpoint as a Hugging Face directory, without the tokenizer.

    Args:
        checkpoint: Directory of shards.
        model: The model on the meta device.
        prefix: Prefix of the policy's weights in the checkpoint.
        folder: Where to write.

    Raises:
        UserError: If the checkpoint lacks a weight of the model.
    """
    stored = stored_weights(checkpoint)
    names = own_names(model)
    lost = [name for name in names if prefix + name not in stored]
    if lost:
        raise UserError("checkpoint", f"does not fit the model it names: missing {lost[:3]}")

    def read(group: list[str]) -> dict[str, Tensor]:
        weights = read_weights(checkpoint, (prefix + name for name in group))
        return {name.removeprefix(prefix): weight for name, weight in weights.items()}

    def size(name: str) -> int:
        entry = stored[prefix + name]
        return int(entry.size.numel() * entry.properties.dtype.itemsize)

    write_files({name: size(name) for name in names}, read, folder)
    write_configs(model, stored[prefix + names[0]].properties.dtype, folder)


def write_live(model: Any, folder: Path | None) -> None:
    """Write a sharded model (only its adapters if it has any), gathering one file's worth of weights at a time.

    Args:
        model: The model; every rank must call this.
        folder: Where to write; None on ranks that do not write.
    """
    tensors = model.state_dict(keep_vars=True)

    def read(group: list[str]) -> dict[str, Tensor]:
        return {name: _whole(tensors[name]) for name in group}

    if hasattr(model, "peft_config"):
        adapters = read([name for name, tensor in tensors.items() if tensor.requires_grad])
        if folder is not None:
            model.save_pretrained(folder, state_dict=adapters, selected_adapters=[TRAINED])
        return
    sizes = {name: tensors[name].numel() * tensors[name].element_size() for name in own_names(model)}
    write_files(sizes, read, folder or Path(), write=folder is not None)
    if folder is not None:
        write_configs(model, next(model.parameters()).dtype, folder)


def _whole(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def own_names(model: Any) -> list[str]:
    """Names of the weights and buffers that a model stores; for tied weights the first name."""
    seen: set[int] = set()
    names = []
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            names.append(name)
    return names


def write_configs(model: Any, dtype: torch.dtype, folder: Path) -> None:
    """Write the model's config and generation config as `save_pretrained` does."""
    model.config.architectures = [type(model).__name__]
    model.config.dtype = dtype
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def write_files(
    sizes: Mapping[str, int],
    read: Callable[[list[str]], Mapping[str, Tensor]],
    folder: Path,
    *,
    write: bool = True,
) -> None:
    """Write safetensors files, and an index if there are several.

    Args:
        sizes: Bytes of each weight.
        read: Returns the named weights; called once per file.
        folder: Where to write.
        write: False for ranks that only take part in reading.
    """
    from safetensors.torch import save_file

    groups = group_by_size(sizes, FILE_BYTES)
    index = {}
    for number, group in enumerate(groups, start=1):
        file = "model.safetensors" if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        index.update(dict.fromkeys(group, file))
        weights = read(group)
        if write:
            save_file({name: w.contiguous() for name, w in weights.items()}, folder / file, metadata={"format": "pt"})
    if write and len(groups) > 1:
        content = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2), encoding="utf-8")


def group_by_size(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Split names, in their order, into groups of at most so many bytes; a larger weight gets its own group.

    Example:
        >>> group_by_size({"a": 3, "b": 2, "c": 9, "d": 1}, 5)
        [['a', 'b'], ['c'], ['d']]
    """
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not groups or size > room:
            groups.append([])
            room = most
        groups[-1].append(name)
        room -= size
    return groups
