"""TensorBoard layout: a page of curves, distributions over pairs, and hyper-parameters for comparing runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from adadpo_lightning.callbacks.dashboard import dashboard
from adadpo_lightning.callbacks.hyperparameters import hyperparameters, write_hyperparameters
from adadpo_lightning.callbacks.stages import val_stage, val_stages
from adadpo_lightning.compat import accumulating, steps_logged
from adadpo_lightning.errors import UserError
from adadpo_lightning.metrics import names
from adadpo_lightning.ranks import gather

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

    from adadpo_lightning.training.module import PreferenceLitModule
    from adadpo_lightning.types import StepOutput


class TensorBoardDashboard(Callback):
    """Sets up the TensorBoard pages, and logs the run's hyper-parameters to every logger.

    * CUSTOM SCALARS: one page with balance, rewards, likelihood, KL and optimisation, training and validation.
    * HISTOGRAMS: coefficient and reward margin per pair, for one optimizer step every `every_n_steps` and for each
      validation.
    * HPARAMS: the hyper-parameters with the last validation metrics (training metrics if there is no validation). Each
      loss option has its own column, and ``loss_options`` lists all of them, because TensorBoard takes the columns of a
      comparison from only one of the runs.

    Other loggers receive the hyper-parameters through ``log_hyperparams``.

    Args:
        every_n_steps: Number of optimizer steps between histograms of training pairs; the first is at step 0.

    Raises:
        UserError: If `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise UserError("TensorBoardDashboard.every_n_steps", f"expected at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._seen: dict[str, dict[str, list[Tensor]]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the layout and the hyper-parameters."""
        module = cast("PreferenceLitModule", pl_module)
        values = hyperparameters(trainer, module)
        stages = val_stages(trainer) if trainer.enable_validation else []
        for writer in _writers(trainer):
            writer.add_custom_scalars(dashboard(module.loss, experts=bool(module.built_policy.routed_blocks)))
            write_hyperparameters(writer, values, module.loss, stages or ["train"])
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(values)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect the pairs of an optimizer step that gets a histogram, and write it at the end of the step."""
        # Lightning's counter for the step axis, which increases after the last micro-batch of the step.
        if steps_logged(trainer) % self.every_n_steps:
            return
        self._keep("train", outputs, batch)
        if not accumulating(trainer):
            self._draw(trainer, "train")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect the pairs of a validation during training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._keep(val_stage(trainer, dataloader_idx), outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the histograms of the validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            for stage in val_stages(trainer):
                self._draw(trainer, stage)

    def _keep(self, stage: str, outputs: Any, batch: Any) -> None:
        if outputs and not batch.filler and (step := outputs["step"]).loss.log_balance is not None:
            for name, values in _per_pair(step).items():
                self._seen.setdefault(stage, {}).setdefault(name, []).append(values)

    def _draw(self, trainer: Trainer, stage: str) -> None:
        seen = self._seen.pop(stage, {})
        mine = {name: torch.cat(parts).float().cpu() for name, parts in seen.items()}
        pairs = _joined(gather(mine))
        for writer in _writers(trainer):
            for name, values in pairs.items():
                step = steps_logged(trainer)
                writer.add_histogram(f"{stage}/{name}_per_pair", values, step)


def _per_pair(step: StepOutput) -> dict[str, Tensor]:
    loss = step.loss
    return {
        names.BALANCE_COEFFICIENT: loss.coefficient,
        names.REWARDS_MARGINS: loss.chosen_rewards - loss.rejected_rewards,
    }


def log_config(trainer: Trainer, text: str) -> None:
    """Show a config, as YAML, on TensorBoard's TEXT page."""
    for writer in _writers(trainer):
        writer.add_text("config", f"```yaml\n{text.strip()}\n```")


def _writers(trainer: Trainer) -> Iterator[SummaryWriter]:
    """TensorBoard writers on rank zero; none on other ranks."""
    if trainer.is_global_zero:
        yield from (logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger))


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the pairs of all ranks; a rank may have none."""
    kinds = next((list(part) for part in parts if part), [])
    return {name: torch.cat([part[name] for part in parts if part]) for name in kinds}
