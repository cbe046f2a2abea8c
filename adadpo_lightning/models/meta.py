"""Models whose weights are still to be read: they have shapes and take no memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Within this context each new parameter goes to the meta device before anything is written to it.

    Not ``torch.device("meta")``: that would lose the buffers, which no checkpoint holds.

    Example:
        >>> with parameters_on_meta():
        ...     norm = nn.BatchNorm1d(2)
        >>> norm.weight.device, norm.running_var
        (device(type='meta'), tensor([1., 1.]))
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    with patch.object(nn.Module, "register_parameter", on_meta):
        yield


@contextmanager
def stand_ins(model: nn.Module) -> Iterator[None]:
    """Within this context parameters on the meta device are CPU tensors of one element, expanded to their shape.

    Peft puts an adapter on the device of the layer that it adapts; one on the meta device would lose its values.
    """
    replaced = _replace(model, lambda p: p.is_meta, lambda p: torch.zeros((), dtype=p.dtype).expand(p.shape))
    try:
        yield
    finally:
        _replace(model, lambda p: p in replaced, lambda p: p.to("meta"))


def _replace(
    model: nn.Module, chosen: Callable[[nn.Parameter], bool], change: Callable[[Tensor], Tensor]
) -> set[nn.Parameter]:
    """Exchange parameters and give the new ones; tied ones stay tied."""
    changed: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if chosen(parameter):
                if parameter not in changed:
                    changed[parameter] = nn.Parameter(change(parameter.detach()), parameter.requires_grad)
                module._parameters[name] = changed[parameter]
    return set(changed.values())
