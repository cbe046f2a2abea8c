"""The hyper-parameters of a run, for loggers and for TensorBoard's HPARAMS page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from adadpo_lightning.callbacks.summary import loss_name, loss_options, optimizer_name
from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.metrics import names

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch.utils.tensorboard import SummaryWriter

    from adadpo_lightning.losses import PreferenceLoss
    from adadpo_lightning.training.module import PreferenceLitModule

# TensorBoard's table of hyper-parameters starts with five columns; these come first.
_FIRST = ("beta", "tau", "lam", "global_batch_size", "loss", "lr", "seed")


def hyperparameters(trainer: Trainer, module: PreferenceLitModule) -> dict[str, str | int | float | bool]:
    """The hyper-parameters that distinguish runs, as a flat mapping without unset values."""
    policy, optimizer, scheduler = module.policy_config, module.optimizer_config, module.scheduler_config
    options = loss_options(module.loss)
    values: dict[str, Any] = {
        "model": policy.where,
        "loss": loss_name(module.loss),
        **{name: value for name, value in options.items() if isinstance(value, bool | int | float | str)},
        "loss_options": ", ".join(f"{name}={value}" for name, value in options.items()),
        "reference": module.reference_mode,
        "optimizer": optimizer_name(module),
        "lr": optimizer.lr,
        "weight_decay": optimizer.weight_decay,
        "scheduler": scheduler.name,
        "warmup_ratio": scheduler.warmup_ratio if scheduler.warmup_steps is None else None,
        "warmup_steps": scheduler.warmup_steps,
        "lora_rank": None if policy.lora is None else policy.lora.r,
        "dtype": policy.dtype,
        "precision": str(trainer.precision),
        "gradient_clip_val": trainer.gradient_clip_val,
        "max_epochs": trainer.max_epochs,
        "seed": int(seed) if (seed := os.environ.get("PL_GLOBAL_SEED")) else None,
    }
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, PreferenceDataModule):
        values |= {"global_batch_size": data.global_batch_size, "max_length": data.options.max_length}
        values |= {"optimizer_steps": data.optimizer_steps, "data_seed": data.seed}
    return {name: value for name, value in values.items() if value is not None}


def write_hyperparameters(
    writer: SummaryWriter, values: dict[str, Any], loss: PreferenceLoss, stages: Sequence[str]
) -> None:
    """Write the HPARAMS page of a run.

    Args:
        writer: TensorBoard's writer.
        values: Result of `hyperparameters`.
        loss: The loss, which determines the metrics on the page.
        stages: Stages of the metrics: ``train``, or the validation sets.
    """
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard import summary

    metrics = [names.LOSS, names.LOGPS_CHOSEN_PER_TOKEN]
    if loss.needs_rejected:
        metrics += [names.REWARDS_ACCURACIES, names.REWARDS_MARGINS, names.BALANCE_RATIO, names.BALANCE_RATIO_POLICY]
    if loss.needs_reference:
        metrics += [names.KL_CHOSEN, names.DISPLACEMENT_CHOSEN]
    shown = {f"{stage}/{name}": 0.0 for stage in stages for name in metrics}
    # A plain loss also declares the column of its adaptive twin, so that both fit in one table.
    columns = {**values, "ceiling": 0.0} if loss.needs_rejected and not isinstance(loss, Adaptive) else values
    # TensorBoard reads each metric's last value from the run's curve, so the names are enough.
    hparams: Any = summary.hparams
    experiment, _, _ = hparams(columns, shown)
    _, start, end = hparams(values, shown)
    plugin = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in _FIRST
    plugin.content = content.SerializeToString()
    for part in (experiment, start, end):
        cast("Any", writer).file_writer.add_summary(part)
