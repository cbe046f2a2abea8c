"""A second, frozen adapter on the policy's base model, for references that start from a trained adapter."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from adadpo_lightning.models.meta import stand_ins

if TYPE_CHECKING:
    from torch import nn

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
