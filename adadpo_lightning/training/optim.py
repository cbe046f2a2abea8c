"""The optimizer over the trainable parameters, its groups, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from adadpo_lightning.compat import set_learning_rate
from adadpo_lightning.errors import UserError
from adadpo_lightning.training.muon import MuonWithAdamW
from adadpo_lightning.training.optimizer_class import ClassOptimizerConfig, described

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from adadpo_lightning.training.optimizer_class import OptimizerCallable


class DefaultAdamW(torch.optim.AdamW):
    """AdamW with the options of `OptimizerConfig`: what ``model.optimizer`` sets where it names no class."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 5e-7,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        fused: bool | None = None,
    ) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, fused=fused)


@dataclass
class OptimizerConfig:
    """AdamW. A class of its own, ``torch.optim.SGD`` or another, is named by ``class_path`` and ``init_args`` instead.

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
        _require(0 < self.lr < math.inf, "optimizer.lr", "a number above 0", self.lr)
        decay = self.weight_decay
        _require(0 <= decay < math.inf, "optimizer.weight_decay", "a number of at least 0", decay)
        _require(all(0 <= b < 1 for b in self.betas), "optimizer.betas", "two numbers in [0, 1)", self.betas)
        _require(0 < self.eps < math.inf, "optimizer.eps", "a number above 0", self.eps)

    def __call__(self, params: Iterable[Any]) -> DefaultAdamW:
        """The optimizer over parameters or groups of them."""
        groups = [item if isinstance(item, dict) else {"params": [item]} for item in params]
        fused = self.fused
        if fused is None:
            fused = {p.device.type for group in groups for p in group["params"]} in ({"cuda"}, {"cpu"}) or None
        return DefaultAdamW(groups, self.lr, self.weight_decay, self.betas, self.eps, fused)


@dataclass
class SchedulerConfig:
    """Learning-rate schedule over the optimizer steps of the whole run.

    Args:
        name: Shape after the warm-up.
        warmup_ratio: Share of all steps in which the rate rises linearly from 0, rounded up to whole steps.
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


def as_config(optimizer: OptimizerCallable | None) -> OptimizerConfig | ClassOptimizerConfig:
    """The record of an optimizer that a config or a caller gave.

    Args:
        optimizer: A config, what the parser makes of ``class_path`` and ``init_args``, or a `functools.partial` of a
            class; None is AdamW with its defaults.

    Raises:
        UserError: If it cannot be recorded, or cannot train a policy; see `ClassOptimizerConfig`.
    """
    if optimizer is None:
        return OptimizerConfig()
    if isinstance(optimizer, (OptimizerConfig, ClassOptimizerConfig)):
        return optimizer
    made, arguments = described(optimizer)
    return OptimizerConfig(**arguments) if made is DefaultAdamW else ClassOptimizerConfig.of(made, arguments)


def build_optimizer(module: nn.Module, config: OptimizerConfig | ClassOptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer over the trainable parameters of `module`.

    Norms and biases are a group without weight decay, if the optimizer has any. `MuonWithAdamW` gets the hidden
    matrices as a group of their own.

    Raises:
        UserError: If ``torch.optim.Muon`` would get parameters that it cannot update.
    """
    decay, no_decay = parameters_by_decay(module)
    groups: list[dict[str, Any]] = [{"params": decay}, {"params": no_decay, "weight_decay": 0.0}]
    if isinstance(config, ClassOptimizerConfig):
        if "weight_decay" not in config.init_args:
            groups = [{"params": [*decay, *no_decay]}]
        if config.is_a(torch.optim.Muon, MuonWithAdamW):
            hidden = hidden_matrices(module, decay)
            rest = [p for p in decay if p not in hidden]
            if config.is_a(torch.optim.Muon):
                _refuse_others(module, [*rest, *no_decay])
            else:
                matrices = [p for p in decay if p in hidden]
                groups = [{"params": matrices, "use_muon": True}, *({**g, "use_muon": False} for g in groups)]
                groups[1]["params"] = rest
    optimizer = config([group for group in groups if group["params"]])
    optimizer.register_load_state_dict_pre_hook(_keep_kernel)
    return optimizer


def hidden_matrices(module: nn.Module, parameters: Iterable[nn.Parameter]) -> set[nn.Parameter]:
    """Those of `parameters` that are matrices between the embedding and the head, which are neither."""
    model: Any = getattr(module, "causal_lm", module)
    ends = [child for child in module.modules() if isinstance(child, nn.Embedding)]
    if hasattr(model, "get_output_embeddings"):
        ends.append(model.get_output_embeddings())
    outside = {p for end in ends for p in end.parameters()}
    return {p for p in parameters if p.ndim == 2 and p not in outside}


def _refuse_others(module: nn.Module, others: list[nn.Parameter]) -> None:
    names = [name for name, p in module.named_parameters() if any(p is other for other in others)]
    if names:
        raise UserError(
            "model.optimizer.class_path",
            f"torch.optim.Muon updates hidden matrices alone, and {len(names)} other parameters are trained, such as "
            f"{names[0]}",
            "use adadpo_lightning.MuonWithAdamW, which gives those to AdamW",
        )


def _keep_kernel(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Keep this run's choice of a kernel, where a checkpoint would bring that of the run that wrote it.

    `NonFiniteGuard` goes by `defaults`: it tells a fused kernel to leave out a step, and the others refuse to be told.
    """
    kernel = {name: optimizer.defaults[name] for name in ("fused", "foreach") if name in optimizer.defaults}
    return {**state, "param_groups": [{**group, **kernel} for group in state["param_groups"]]}


def build_scheduler(optimizer: torch.optim.Optimizer, config: SchedulerConfig, total_steps: int) -> LRScheduler:
    """The schedule over `total_steps` optimizer steps, stepped after each of them."""
    from transformers import get_scheduler

    warmup = config.warmup_steps
    if warmup is None:
        warmup = math.ceil(config.warmup_ratio * total_steps)  # rounded as in transformers' trainer, so in TRL's
    name = "constant_with_warmup" if config.name == "constant" else config.name
    scheduler: LRScheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps)
    return scheduler


def follow_config(
    module: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, config: OptimizerConfig | ClassOptimizerConfig
) -> None:
    """Give an optimizer that was restored from a checkpoint the numbers of the config; its moments stay.

    Without a change of the config nothing changes, to the last bit. An optimizer or a schedule of another kind than
    `build_optimizer` and `build_scheduler` make is left alone.
    """
    from torch.optim.lr_scheduler import LambdaLR

    fresh = build_optimizer(module, config)
    if type(optimizer) is not type(fresh) or not isinstance(scheduler, LambdaLR):
        return
    base = [group["lr"] for group in fresh.param_groups]
    for group, new, shape in zip(optimizer.param_groups, fresh.param_groups, scheduler.lr_lambdas, strict=True):
        group.update({name: value for name, value in new.items() if name not in ("params", "lr")})
        set_learning_rate(group, new["lr"] * shape(scheduler.last_epoch))
        group["initial_lr"] = new["lr"]
    rates = [group["lr"] for group in optimizer.param_groups]
    scheduler.load_state_dict({**scheduler.state_dict(), "base_lrs": base, "_last_lr": rates})
