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

# As large as a file gets, and so the memory that an export takes; a single larger weight gets a file of its own.
FILE_BYTES = 2 * 1024**3
STATE = "state_dict."


def is_sharded(checkpoint: Path) -> bool:
    """Whether a path is a directory of shards as ``fit`` writes it."""
    return (checkpoint / "meta.pt").is_file() and (checkpoint / ".metadata").is_file()


def stored_weights(checkpoint: Path) -> dict[str, Any]:
    """Metadata (size, type) of each weight in a sharded checkpoint, by the names of the module's ``state_dict``."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    entries = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    return {name.removeprefix(STATE): entry for name, entry in entries.items() if name.startswith(STATE)}


def read_weights(checkpoint: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Put weights of a sharded checkpoint together, in one process.

    Args:
        checkpoint: Its directory.
        names: Which; null for all.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    stored = stored_weights(checkpoint)
    wanted = stored if names is None else names
    weights = {name: torch.empty(stored[name].size, dtype=stored[name].properties.dtype) for name in wanted}
    keyed = {STATE + name: weight for name, weight in weights.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what is wanted
        load(keyed, storage_reader=FileSystemReader(checkpoint), no_dist=True)
    return weights


def converts_weights(model: Any) -> bool:
    """Whether a model's Hugging Face directory holds its weights in another form than the model: fused experts."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    return any(isinstance(step, WeightConverter) for step in get_model_conversion_mapping(model))


def export_shards(checkpoint: Path, model: Any, prefix: str, folder: Path) -> None:
    """Write the weights of a sharded checkpoint as a Hugging Face directory, without the tokenizer.

    Args:
        checkpoint: Directory of shards.
        model: The model on the meta device.
        prefix: What the names of the policy's weights begin with in the checkpoint.
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
    """Write a sharded model, adapters alone if it has any, gathering one file's worth of weights at a time.

    Args:
        model: The model; all ranks call this together.
        folder: Where to write; None on ranks that do not.
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
    """Names of the weights and buffers that a model stores; of tied ones the first."""
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
    """Write safetensors files and, where there are several, their index.

    Args:
        sizes: Bytes of each weight.
        read: Gives the named weights; called once for each file.
        folder: Where to write.
        write: False for ranks that only help to read.
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
    """Cut names, in their order, into groups of at most so many bytes.

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
