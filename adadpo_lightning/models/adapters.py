"""A second, frozen adapter on the policy's base model, for references that start from a trained adapter."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from adadpo_lightning.models.meta import stand_ins
from adadpo_lightning.models.shards import assign_, local, whole

TRAINED, REFERENCE = "default", "reference"


def add_reference_adapter(model: Any) -> None:
    """Add a frozen copy of the trained adapter to the model.

    Args:
        model: A peft model whose adapter has its initial weights; modified in place. Its base model may be on
            the meta device.
    """
    config = copy.deepcopy(model.peft_config[TRAINED])
    config.init_lora_weights = False  # some initializations modify the base model; these weights are replaced anyway
    config.inference_mode = True
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with stand_ins(model), torch.random.fork_rng():
        model.add_adapter(REFERENCE, config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    with torch.no_grad():
        for own, reference in paired_adapters(model):
            reference.copy_(own)


def start_from_base(model: Any) -> None:
    """Give a new adapter the values that it takes from the base model, so that it changes nothing.

    These are copies of whole modules (``modules_to_save``) and the magnitudes of DoRA (arXiv 2402.09353). Peft takes
    them when it creates the adapter, where a base model that is read shard by shard has no values yet, and computes
    magnitudes in the dtype of the base model, which differs from that of the adapter's computation.

    Args:
        model: A peft model, sharded or not, with the weights of its base model; modified in place.
    """
    from transformers.pytorch_utils import Conv1D

    with torch.no_grad():
        for module in model.modules():
            if is_copied(module):
                for copied in module.modules_to_save.values():
                    for value, start in zip(copied.parameters(), module.original_module.parameters(), strict=True):
                        local(value).copy_(local(start))
            for magnitude in getattr(module, "lora_magnitude_vector", {}).values():
                base = module.get_base_layer()
                if type(base) in (nn.Linear, nn.Embedding, Conv1D):  # peft dequantizes others
                    weight = whole(base.weight).to(magnitude.weight.dtype)
                    weight = weight if type(base) is nn.Linear else weight.T
                    assign_(magnitude.weight, torch.linalg.norm(weight, dim=1))


def is_copied(module: nn.Module) -> bool:
    """Whether a module is one of ``modules_to_save``: the base model's beside its trained copy."""
    return hasattr(module, "modules_to_save") and hasattr(module, "original_module")


def in_use(module: Any) -> Any:
    """The module that computes: of ``modules_to_save`` the one that is switched on, others as they are."""
    if not is_copied(module):
        return module
    return module.original_module if module.disable_adapters else module.modules_to_save[module.active_adapters[0]]


def paired_adapters(model: nn.Module) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """Pairs of each trained adapter parameter and its counterpart in the reference adapter."""
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        counterpart = re.sub(rf"\.{TRAINED}(?=\.|$)", f".{REFERENCE}", name)
        if counterpart != name and counterpart in parameters:
            yield parameter, parameters[counterpart]


def is_reference(name: str) -> bool:
    """Whether a parameter belongs to the reference adapter.

    Example:
        >>> is_reference("layers.0.mlp.up_proj.lora_A.reference.weight"), is_reference("lora_A.default.weight")
        (True, False)
    """
    return REFERENCE in name.split(".")


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter.

    Example:
        >>> is_adapter("mlp.up_proj.lora_A.default.weight"), is_adapter("mlp.up_proj.base_layer.weight")
        (True, False)
    """
    return not {TRAINED, REFERENCE}.isdisjoint(name.split("."))
