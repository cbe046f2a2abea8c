"""Optimizer and learning-rate schedule from a few numbers in the config."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler


@dataclass
class OptimizerConfig:
    """AdamW.

    Args:
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay; never applied to norms and biases.
        betas: Decay rates of the two moments.
        eps: Term for numerical stability.
        fused: One kernel for all parameters; null takes it on CUDA and on the CPU, where it is several times as fast.
    """

    lr: float = 5e-7
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    fused: bool | None = None

    def __post_init__(self) -> None:
        """Check the numbers before any model is loaded."""
        _require(self.lr > 0, "optimizer.lr", "a number above 0", self.lr)
        _require(self.weight_decay >= 0, "optimizer.weight_decay", "a number of at least 0", self.weight_decay)
        _require(all(0 <= b < 1 for b in self.betas), "optimizer.betas", "two numbers in [0, 1)", self.betas)
        _require(self.eps > 0, "optimizer.eps", "a number above 0", self.eps)


@dataclass
class SchedulerConfig:
    """Learning-rate schedule over the optimizer steps of the whole run.

    Args:
        name: Shape after the warm-up.
        warmup_ratio: Share of all steps in which the rate rises linearly from 0.
        warmup_steps: The same in steps; wins over the ratio where both are given.
    """

    name: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.1
    warmup_steps: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers before any model is loaded."""
        names = ("cosine", "linear", "constant")
        _require(self.name in names, "scheduler.name", f"one of {names}", self.name)
        _require(0 <= self.warmup_ratio <= 1, "scheduler.warmup_ratio", "a share in [0, 1]", self.warmup_ratio)
        steps = self.warmup_steps
        _require(steps is None or steps >= 0, "scheduler.warmup_steps", "null or at least 0", steps)

    @property
    def depends_on_length(self) -> bool:
        """Whether the rate at a step depends on the number of steps of the run."""
        return self.name != "constant" or (self.warmup_steps is None and self.warmup_ratio > 0)


def _require(condition: bool, field: str, expected: str, got: object) -> None:
    if not condition:
        raise UserError(f"model.{field}", f"expected {expected}, got {got!r}")


def parameters_by_decay(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the trainable parameters into those that decay and those that do not (norms and biases).

    By the owning module and not by the number of dimensions, which sharding may flatten. Tied parameters count once.
    """

    def owned() -> Iterator[tuple[bool, nn.Parameter]]:
        for child in module.modules():
            is_norm = "norm" in type(child).__name__.lower()
            for name, parameter in child.named_parameters(recurse=False):
                if parameter.requires_grad:
                    yield is_norm or name.endswith("bias"), parameter

    kinds: dict[nn.Parameter, bool] = {}
    for exempt, parameter in owned():
        kinds.setdefault(parameter, exempt)
    decay = [p for p, exempt in kinds.items() if not exempt]
    return decay, [p for p, exempt in kinds.items() if exempt]


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `module`."""
    decay, no_decay = parameters_by_decay(module)
    groups: list[dict[str, Any]] = [
        {"params": decay, "weight_decay": config.weight_decay},
        {"params": no_decay, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = config.fused
    if fused is None:
        fused = {p.device.type for p in (*decay, *no_decay)} in ({"cuda"}, {"cpu"}) or None
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
    optimizer.register_load_state_dict_pre_hook(_keep_kernel)
    return optimizer


def _keep_kernel(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Keep this run's choice of a kernel, where a checkpoint would bring that of the run that wrote it.

    `NonFiniteGuard` goes by `defaults`: it tells a fused kernel to leave out a step, and the others refuse to be told.
    """
    kernel = {name: optimizer.defaults[name] for name in ("fused", "foreach")}
    return {**state, "param_groups": [{**group, **kernel} for group in state["param_groups"]]}


def build_scheduler(optimizer: torch.optim.Optimizer, config: SchedulerConfig, total_steps: int) -> LRScheduler:
    """The schedule over `total_steps` optimizer steps, stepped after each of them."""
    from transformers import get_scheduler

    warmup = config.warmup_steps
    if warmup is None:
        warmup = round(config.warmup_ratio * total_steps)
    name = "constant_with_warmup" if config.name == "constant" else config.name
    scheduler: LRScheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps)
    return scheduler


def follow_config(module: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, config: OptimizerConfig) -> None:
    """Give an optimizer that was restored from a checkpoint the numbers of the config; its moments stay.

    Without a change of the config nothing changes, to the last bit. An optimizer or a schedule of another kind than
    `build_optimizer` and `build_scheduler` make is left alone.
    """
    from torch.optim.lr_scheduler import LambdaLR

    if not (isinstance(optimizer, torch.optim.AdamW) and isinstance(scheduler, LambdaLR)):
        return
    decay = set(parameters_by_decay(module)[0])
    for group, shape in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        group["lr"] = config.lr * shape(scheduler.last_epoch)
        group["initial_lr"] = config.lr
        group["weight_decay"] = config.weight_decay if decay.issuperset(group["params"]) else 0.0
        group["betas"], group["eps"] = config.betas, config.eps
    base = [config.lr] * len(optimizer.param_groups)
    rates = [group["lr"] for group in optimizer.param_groups]
    scheduler.load_state_dict({**scheduler.state_dict(), "base_lrs": base, "_last_lr": rates})
