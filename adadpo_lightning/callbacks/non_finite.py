"""Keep non-finite gradients out of the weights, and report their step, pairs and layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from adadpo_lightning import log
from adadpo_lightning.checkpoints.parts import CURRENT_WEIGHTS
from adadpo_lightning.checkpoints.resume import latest_valid
from adadpo_lightning.compat import accumulating, fused_step_can_be_skipped, set_learning_rate, skip_step_if
from adadpo_lightning.errors import UserError
from adadpo_lightning.metrics import names
from adadpo_lightning.metrics.gradients import full, parameter_gradient_norms, total_norm
from adadpo_lightning.ranks import gather_items, least
from adadpo_lightning.strategies.capabilities import hides_gradients

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor
    from torch.optim import Optimizer

    from adadpo_lightning.types import PreferenceBatch

Policy = Literal["raise", "skip", "rollback"]
SHOWN = 20


class NonFiniteError(UserError):
    """A loss or gradient is not finite; the weights are those before that step."""


@dataclass
class StepRecord:
    """Data of an optimizer step, kept until its gradient is known to be finite.

    Args:
        batches: The step's micro-batches on this rank.
        losses: Loss per pair of each micro-batch, each (B,).
        norms: Gradient norm of each parameter.
        names: Names of these parameters.
        finite: Whether all norms are finite on all ranks; a scalar on the device or being copied to the host.
        copied: Event that marks the end of that copy; None on the CPU.
    """

    batches: list[PreferenceBatch] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    finite: Tensor | None = None
    copied: Any = None


class NonFiniteGuard(Callback):
    """Checks the gradient of every optimizer step before it is applied.

    Under every policy, a step with a non-finite gradient changes neither weights nor optimizer moments. On the CPU it
    is detected immediately. On CUDA the fused optimizer skips it and the host reads the result after the next step,
    without waiting for the device; an optimizer that is not fused costs one synchronization per step. Only the loss is
    checked with float16 and a loss scaler, which handles overflowing gradients itself, and under Lightning's FSDP1
    strategy, where no rank has access to the full gradient.

    Args:
        policy: ``raise`` stops the run; ``skip`` continues with the next step and counts ``train/skipped_steps``;
            ``rollback`` also restores weights and optimizer from the latest valid checkpoint.
        max_in_a_row: With ``skip`` and ``rollback``, maximum number of consecutive bad steps before the run stops.

    Raises:
        NonFiniteError: With the step, the rows of its pairs and the layer.
    """

    def __init__(self, policy: Policy = "raise", max_in_a_row: int = 5) -> None:
        if policy not in get_args(Policy):
            raise UserError("NonFiniteGuard.policy", f"expected one of {', '.join(get_args(Policy))}, got {policy!r}")
        if max_in_a_row < 1:
            raise UserError("NonFiniteGuard.max_in_a_row", f"expected at least 1, got {max_in_a_row}")
        self.policy: Policy = policy
        self.max_in_a_row = max_in_a_row
        self.skipped = 0
        self._in_a_row = 0
        self._record = StepRecord()
        self._waiting: list[tuple[int, StepRecord]] = []

    def state_dict(self) -> dict[str, int]:
        """Number of skipped steps."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore the count."""
        self.skipped = state_dict["skipped"]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PreferenceBatch, batch_idx: int
    ) -> None:
        """Keep the micro-batch until its step has been checked."""
        self._record.batches.append(batch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Make the optimizer skip a step whose gradient is not finite."""
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if scaled or hides_gradients(trainer.strategy):
            return
        named = [(name, p) for name, p in pl_module.named_parameters() if p.grad is not None]
        self._record.names = [name for name, _ in named]
        self._record.norms = parameter_gradient_norms(p for _, p in named)
        finite = total_norm(self._record.norms).isfinite()
        if fused_step_can_be_skipped(optimizer):
            skip_step_if(optimizer, ~finite)
            self._record.finite, self._record.copied = _to_host(finite)
            return
        self._record.finite = finite
        if not bool(finite):
            optimizer.zero_grad(set_to_none=True)  # a parameter without a gradient is not updated

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PreferenceBatch, batch_idx: int
    ) -> None:
        """Check the steps whose results have arrived."""
        if outputs:
            self._record.losses.append(outputs["step"].loss.per_pair)
        if accumulating(trainer):
            return
        if self._record.finite is None:  # the gradient was not checked
            self._record.finite, self._record.copied = _to_host(_finite_losses(self._record.losses))
        self._waiting.append((trainer.global_step, self._record))
        self._record = StepRecord()
        last = 0 if self._waiting[-1][1].copied is None else 1
        while len(self._waiting) > last:
            self._look(trainer, pl_module, *self._waiting.pop(0))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the remaining steps."""
        while self._waiting:
            self._look(trainer, pl_module, *self._waiting.pop(0))

    def _look(self, trainer: Trainer, module: LightningModule, step: int, record: StepRecord) -> None:
        if record.copied is not None:
            record.copied.synchronize()
        if bool(record.finite):
            self._in_a_row = 0
            return
        self.skipped += 1
        self._in_a_row += 1
        problem = describe(module, record)
        if self.policy == "raise" or self._in_a_row > self.max_in_a_row:
            raise NonFiniteError(
                f"step {step}",
                problem,
                "look at these rows, lower model.optimizer.lr, or let the run continue with the callback "
                "adadpo_lightning.callbacks.NonFiniteGuard, policy: skip or rollback",
            )
        went_back = self._roll_back(trainer) if self.policy == "rollback" else ""
        log.warn(f"step {step} skipped: {problem}{went_back}")
        module.log(names.train(names.SKIPPED_STEPS), float(self.skipped), on_step=True, on_epoch=False, batch_size=1)

    def _roll_back(self, trainer: Trainer) -> str:
        folders = [c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.dirpath]
        path = latest_valid(Path(folders[0]))[0] if folders else None
        if path is None:
            return "; no checkpoint to roll back to yet"
        checkpoint = trainer.strategy.load_checkpoint(path, weights_only=True)
        if CURRENT_WEIGHTS in checkpoint:  # beside their average
            checkpoint["state_dict"] = checkpoint[CURRENT_WEIGHTS]
        trainer.strategy.load_model_state_dict(checkpoint, strict=trainer.lightning_module.strict_loading)
        trainer.strategy.load_optimizer_state_dict(checkpoint)
        # The checkpoint holds the learning rate of its own step.
        for config in trainer.lr_scheduler_configs:
            for group, rate in zip(
                config.scheduler.optimizer.param_groups, config.scheduler.get_last_lr(), strict=True
            ):
                set_learning_rate(group, rate)
        return f"; weights and optimizer restored from {path}"


def _finite_losses(losses: list[Tensor]) -> Tensor:
    """Whether the losses of all ranks are finite; a scalar on the device, without synchronization."""
    return least(torch.stack([loss.isfinite().all() for loss in losses]).all().float())


def _to_host(flag: Tensor) -> tuple[Tensor, Any]:
    """Start to copy a flag to the host; the returned event marks the end of the copy."""
    if flag.device.type != "cuda":
        return flag, None
    host = torch.empty((), dtype=flag.dtype, pin_memory=True)
    host.copy_(flag, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own
    event.record()
    return host, event


def describe(module: LightningModule, record: StepRecord) -> str:
    """Describe the pairs and the layer of a bad step; every rank must call this."""
    rows = gather_items([row for batch in record.batches for row in batch.row_ids.tolist()])
    pairs = zip(record.batches, record.losses, strict=True)
    bad = gather_items(
        [row for batch, losses in pairs for row in batch.row_ids[~losses.isfinite().to(batch.row_ids.device)].tolist()]
    )
    if bad:
        layer = gather_items([name for name in [first_bad_module(module, record.batches)] if name])
        where = f", first seen in the output of {layer[0]}" if layer else ""
        return f"the loss is not finite for the pairs of rows {_shown(bad)}{where}"
    where = _bad_gradient(record)
    return f"the gradient is not finite{where}, while the loss is; the step's pairs are rows {_shown(rows)}"


def _bad_gradient(record: StepRecord) -> str:
    """The bad parameter closest to the loss, from which the backward pass spread the values to all earlier layers."""
    whole = [full(norm) for norm in record.norms]
    bad = [name for name, norm in zip(record.names, whole, strict=True) if not norm.isfinite()]
    return f" in {len(bad)} of {len(whole)} parameters, nearest to the loss in {bad[-1]}" if bad else ""


def first_bad_module(module: LightningModule, batches: list[PreferenceBatch]) -> str | None:
    """Rerun the micro-batches and return the name of the first submodule of the policy whose output is not finite."""
    policy: Any = module.get_submodule("policy")
    with torch.no_grad(), _watched(policy) as seen:
        for batch in batches:
            policy(batch)
            if seen:
                return seen[0]
    return None


@contextmanager
def _watched(policy: torch.nn.Module) -> Iterator[list[str]]:
    seen: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def look(_module: Any, _inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, torch.Tensor) and first.is_floating_point() and not first.isfinite().all():
                seen.append(name)

        return look

    handles = [part.register_forward_hook(watch(name)) for name, part in policy.named_modules() if name]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _shown(rows: list[int]) -> str:
    listed = ", ".join(map(str, sorted(rows)[:SHOWN]))
    return listed if len(rows) <= SHOWN else f"{listed} and {len(rows) - SHOWN} more"
