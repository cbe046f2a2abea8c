"""A progress bar that shows what matters in a preference run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import TQDMProgressBar

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

SHORT_NAMES = {
    "train/loss": "loss",
    "train/rewards/accuracies": "accuracy",
    "train/rewards/margins": "margin",
    "train/grad_balance/ratio": "balance",
    "val/loss": "val_loss",
    "val/rewards/accuracies": "val_accuracy",
}


class PreferenceProgressBar(TQDMProgressBar):
    """Shows loss, accuracy, margin and gradient balance under short names.

    Args:
        refresh_rate: Batches between two refreshes.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The metrics of the bar, in a fixed order."""
        metrics = super().get_metrics(trainer, pl_module)
        return {short: f"{metrics[name]:.3g}" for name, short in SHORT_NAMES.items() if name in metrics}
