"""Lightning's checkpoints, whole or not there, of which the last is that of the last step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from adadpo_lightning.checkpoint_io import WholeFileIO

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class RunCheckpoint(ModelCheckpoint):
    """Saves ``last.ckpt`` at the end of training too, and whenever it is asked to.

    Lightning's own saves after validations, and the steps after the last of these would be in no checkpoint.
    """

    _after_validation: tuple[Any, Any, int] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write files by `WholeFileIO`, unless the trainer was given a plugin of its own."""
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeFileIO()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time to, but not between an epoch's last step and its validation.

        Resumed from there, Lightning would leave the validation out.
        """
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._after_validation = (outputs, batch, batch_idx)
        else:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what waited for the validation."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._after_validation is not None:
            super().on_train_batch_end(trainer, pl_module, *self._after_validation)
            self._after_validation = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step, unless it is saved."""
        if self.save_last and not self._should_skip_saving_checkpoint(trainer):
            self.save_now(trainer)

    def save_now(self, trainer: Trainer) -> str:
        """Save ``last.ckpt`` at the present step; every rank must call it.

        Returns:
            Its path.
        """
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        return self.last_model_path
