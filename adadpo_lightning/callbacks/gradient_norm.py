"""The total gradient norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import Callback

from adadpo_lightning.compat import logs_now
from adadpo_lightning.metrics import names
from adadpo_lightning.metrics.gradients import gradient_norm
from adadpo_lightning.strategies.capabilities import hides_gradients

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer


class GradientNorm(Callback):
    """Logs ``train/grad_norm/total``, the gradient norm over all parameters before clipping, at log steps.

    Nothing is logged under Lightning's FSDP1 strategy, where no rank has access to the full gradient.
    """

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Log the norm of the accumulated gradient."""
        if not logs_now(trainer) or hides_gradients(trainer.strategy):
            return
        norm = gradient_norm(pl_module.parameters())
        pl_module.log(names.train(names.GRAD_NORM_TOTAL), norm, on_step=True, on_epoch=False, batch_size=1)
