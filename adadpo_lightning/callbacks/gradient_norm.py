"""The norm of the whole gradient, which every training loop shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import FSDPStrategy

from adadpo_lightning.compat import logs_now

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer


class GradientNorm(Callback):
    """Logs ``train/grad_norm/total``, the norm of the gradient in all parameters before clipping, at log steps.

    Under Lightning's FSDP1 strategy no rank sees the whole gradient, and nothing is logged.
    """

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the norm of what was accumulated."""
        if not logs_now(trainer) or isinstance(trainer.strategy, FSDPStrategy):
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if isinstance(norm, torch.distributed.tensor.DTensor):
            norm = norm.full_tensor()
        pl_module.log("train/grad_norm/total", norm, on_step=True, on_epoch=False, batch_size=1)
