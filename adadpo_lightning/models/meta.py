"""Models on the meta device: their weights have shapes but take no memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Context in which new parameters are moved to the meta device before they are initialized.

    ``torch.device("meta")`` would also drop the values of buffers, which checkpoints do not contain.

    Example:
        >>> with parameters_on_meta():
        ...     norm = nn.BatchNorm1d(2)
        >>> norm.weight.device, norm.running_var
        (device(type='meta'), tensor([1., 1.]))
    """

    def on_meta(_module: nn.Module, _name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        return None if parameter.is_meta else nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    # torch annotates the hook as returning None, but documents that it may return a new parameter.
    hook = register_module_parameter_registration_hook(on_meta)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def stand_ins(model: nn.Module) -> Iterator[None]:
    """Context in which parameters on the meta device are replaced by one-element CPU tensors, expanded to their shape.

    Peft creates an adapter on the device of its layer; on the meta device it would lose its values.
    """
    replaced = replace_parameters(model, lambda p: p.is_meta, lambda p: torch.zeros((), dtype=p.dtype).expand(p.shape))
    try:
        yield
    finally:
        replace_parameters(model, lambda p: p in replaced, lambda p: p.to("meta"))


def replace_parameters(
    model: nn.Module, chosen: Callable[[nn.Parameter], bool], change: Callable[[Tensor], Tensor]
) -> set[nn.Parameter]:
    """Replace parameters and return the new ones; tied parameters stay tied."""
    changed: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if chosen(parameter):
                if parameter not in changed:
                    changed[parameter] = nn.Parameter(change(parameter.detach()), parameter.requires_grad)
                setattr(module, name, changed[parameter])
                changed[parameter] = getattr(module, name)  # within `parameters_on_meta` that is another one
    return set(changed.values())
