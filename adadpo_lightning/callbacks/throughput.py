"""Throughput and memory of a run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback

from adadpo_lightning.compat import ends_logged_step
from adadpo_lightning.metrics import names
from adadpo_lightning.ranks import total

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from adadpo_lightning.types import PreferenceBatch


class Throughput(Callback):
    """Logs ``train/tokens_per_second`` and ``train/pairs_per_second`` over all ranks, and ``train/memory_gib`` on CUDA.

    Rates are measured since the last log line, at ``trainer.log_every_n_steps``, excluding the time of validations and
    of the samples and checkpoints written there. Tokens are those of the prompt, counted once per pair, and of both
    answers. Memory is the peak that PyTorch has allocated on any rank since the process started.
    """

    def __init__(self) -> None:
        self._tokens = 0
        self._pairs = 0
        self._since = 0.0
        self._paused: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._tokens, self._pairs, self._paused = 0, 0, None
        self._since = _now(pl_module.device)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pause the clock."""
        self._paused = _now(pl_module.device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Restart the clock after a validation."""
        if self._paused is not None:
            self._since += _now(pl_module.device) - self._paused
            self._paused = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PreferenceBatch, batch_idx: int
    ) -> None:
        """Count on the host, and log at the steps at which Lightning writes."""
        if not batch.filler:
            self._tokens += sum(map(sum, batch.segments))
            self._pairs += len(batch)
        if ends_logged_step(trainer):
            self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, module: LightningModule) -> None:
        counts = torch.tensor([self._tokens, self._pairs], dtype=torch.float64, device=module.device)
        tokens, pairs = total(counts).tolist()
        now = _now(module.device)
        seconds, self._since = now - self._since, now
        self._tokens, self._pairs = 0, 0
        rates = {
            names.train(names.TOKENS_PER_SECOND): tokens / seconds,
            names.train(names.PAIRS_PER_SECOND): pairs / seconds,
        }
        if module.device.type == "cuda":
            peak: Any = torch.tensor(torch.cuda.max_memory_allocated(module.device) / 2**30, device=module.device)
            rates[names.train(names.MEMORY_GIB)] = float(trainer.strategy.reduce(peak, reduce_op="max"))
        module.log_dict(rates, prog_bar=True, on_step=True, on_epoch=False, batch_size=1)


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
