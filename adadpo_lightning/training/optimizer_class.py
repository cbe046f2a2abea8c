"""Any optimizer by its class: how a config names it, how a checkpoint records it, and which ones cannot be used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from inspect import Parameter, signature
from typing import Any

import torch
from torch import nn

from adadpo_lightning.compat import class_and_arguments
from adadpo_lightning.errors import UserError, first_line

# Lightning's own name and meaning: from parameters or groups of them to an optimizer.
OptimizerCallable = Callable[[Iterable[Any]], torch.optim.Optimizer]


@dataclass
class ClassOptimizerConfig:
    """An optimizer by its class.

    Args:
        class_path: Import path of a subclass of `torch.optim.Optimizer`.
        init_args: Its arguments without the parameters, as plain data; those left out have the defaults of the class.

    Raises:
        UserError: If the class is not found, needs a closure or sparse gradients, or refuses its arguments.
    """

    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the optimizer once over a small matrix, before any model is loaded."""
        made = optimizer_class(self.class_path)
        _refuse(made)
        self.class_path = import_path(made)
        self.init_args = {**_defaults(made), **self.init_args}
        if odd := [name for name, value in self.init_args.items() if not _is_plain(value)]:
            raise UserError(
                f"model.optimizer.init_args.{odd[0]}",
                f"a checkpoint cannot record {type(self.init_args[odd[0]]).__name__}",
                "give numbers, text, lists or null",
            )
        try:
            self([nn.Parameter(torch.zeros(2, 2))])
        except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            raise UserError("model.optimizer", f"{self.class_path}: {first_line(error)}") from error

    @classmethod
    def of(cls, made: type, arguments: Mapping[str, Any]) -> ClassOptimizerConfig:
        """The record of a class and its arguments."""
        return cls(import_path(made), dict(arguments))

    def __call__(self, params: Iterable[Any]) -> torch.optim.Optimizer:
        """The optimizer over parameters or groups of them."""
        made: torch.optim.Optimizer = optimizer_class(self.class_path)(params, **self.init_args)
        return made

    def is_a(self, *kinds: type) -> bool:
        """Whether the optimizer is of one of these classes."""
        return issubclass(optimizer_class(self.class_path), kinds)

    @property
    def lr(self) -> float | None:
        """Peak learning rate; None for a class without one."""
        return self.init_args.get("lr")

    @property
    def weight_decay(self) -> float | None:
        """Weight decay; None for a class without one."""
        return self.init_args.get("weight_decay")


def described(optimizer: OptimizerCallable) -> tuple[type, dict[str, Any]]:
    """Class and arguments of a callable that makes optimizers.

    Raises:
        UserError: If it does not show them, as a lambda does not.
    """
    found = class_and_arguments(optimizer) if isinstance(optimizer, partial) else None
    if found is None:
        raise UserError(
            "model.optimizer",
            f"a checkpoint cannot record {optimizer!r}",
            "pass OptimizerConfig(...), or functools.partial(SomeOptimizer, lr=...) with keywords alone",
        )
    return found


def optimizer_class(path: str) -> Any:
    """Import an optimizer.

    Raises:
        UserError: If it is not found, or no optimizer.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        extra = "pip install 'adadpo-lightning[torchao]'" if module.startswith("torchao") else "give its import path"
        raise UserError("model.optimizer.class_path", f"cannot import {path}: {first_line(error)}", extra) from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise UserError("model.optimizer.class_path", f"{path} is no torch.optim.Optimizer")
    return found


def import_path(made: type) -> str:
    """The shortest path of packages under which a class can be imported.

    Example:
        >>> import_path(torch.optim.SGD), import_path(torch.optim.Muon)
        ('torch.optim.SGD', 'torch.optim.Muon')
    """
    parts = made.__module__.split(".")
    for end in range(1, len(parts) + 1):
        package = ".".join(parts[:end])
        if vars(sys.modules.get(package, object)).get(made.__qualname__) is made:
            return f"{package}.{made.__qualname__}"
    return f"{made.__module__}.{made.__qualname__}"


def _refuse(made: Any) -> None:
    """Optimizers that a Trainer's step cannot serve."""
    closure = signature(made.step).parameters.get("closure")
    reason = None
    if closure is not None and closure.default is Parameter.empty:
        reason = (
            "needs a closure that computes loss and gradient again within a step, and a step here is one gradient of "
            "the global batch, accumulated over micro-batches"
        )
    if issubclass(made, torch.optim.SparseAdam):
        reason = "needs sparse gradients, and those of a policy are dense"
    if reason is not None:
        raise UserError("model.optimizer.class_path", f"{import_path(made)} {reason}", "use a first-order optimizer")


def _defaults(made: Any) -> dict[str, Any]:
    """The defaults of all arguments of a class."""
    return {name: p.default for name, p in signature(made).parameters.items() if p.default is not Parameter.empty}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float, bool))
