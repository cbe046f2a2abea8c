"""Connects module and datamodule through the trainer, so that neither imports the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from adadpo_lightning.callbacks.stages import val_stages
from adadpo_lightning.compat import restoring, set_steps_logged, steps_logged, steps_logged_of
from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.data.validation import check_monitor
from adadpo_lightning.errors import UserError, one_line
from adadpo_lightning.reference.provider import provide_cached_reference

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from adadpo_lightning.training.module import PreferenceLitModule

# What Lightning and torch raise where a checkpoint has something else in the place of a part.
ODD_PART = (LookupError, TypeError, ValueError, AttributeError, RuntimeError)


class ConnectData(Callback):
    """Provides the datamodule with cached reference log-probabilities and with the position of a checkpoint.

    Module and datamodule are independent of each other: the datamodule reads `PreferenceLitModule.data_needs` once, and
    everything else passes through this callback.
    """

    def __init__(self) -> None:
        self._own_steps: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to train on batches without a step plan.

        Raises:
            UserError: If ``fit`` has no `PreferenceDataModule`, another callback changes the accumulation, or one
                monitors a validation set that there is not.
        """
        if stage != "fit":
            return
        if _data(trainer) is None:
            raise UserError(
                "trainer.fit",
                "needs a PreferenceDataModule: its plan provides each micro-batch with the counts of its step",
                "call trainer.fit(module, datamodule=PreferenceDataModule(train=...))",
            )
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by its connector
        for callback in callbacks:
            check_monitor(getattr(callback, "monitor", None), val_stages(trainer), f"{type(callback).__name__}.monitor")
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks):
            raise UserError(
                "trainer.callbacks",
                "GradientAccumulationScheduler contradicts the step plan, which decides what is accumulated",
                "remove it and set the datamodule's global_batch_size and micro_batch_size",
            )

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Translate the position in the data to this run's ranks and micro-batches."""
        data = _data(trainer)
        if data is not None:
            data.translate_checkpoint(checkpoint)
        if trainer.state.fn in ("validate", "test"):
            self._own_steps = steps_logged(trainer)
            set_steps_logged(trainer, steps_logged_of(checkpoint))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the steps of this trainer, after the metrics of a checkpoint were logged at its own."""
        if self._own_steps is not None:
            set_steps_logged(trainer, self._own_steps)
            self._own_steps = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say that a checkpoint cannot be restored, where Lightning or torch met a part that they do not know.

        Raises:
            UserError: If so.
        """
        odd = isinstance(exception, ODD_PART) and not isinstance(exception, (UserError, torch.OutOfMemoryError))
        if odd and restoring(trainer):
            raise UserError(
                "ckpt_path",
                f"{trainer.ckpt_path} cannot be restored: {one_line(exception)}",
                "give another checkpoint of the same run; --debug shows where it failed",
            ) from exception

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load or compute the reference caches of the training and validation pairs."""
        _provide(trainer, pl_module, "train", *val_stages(trainer))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load or compute the reference cache of the validation pairs."""
        _provide(trainer, pl_module, *val_stages(trainer))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load or compute the reference cache of the test pairs."""
        _provide(trainer, pl_module, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load or compute the reference cache of the pairs to predict."""
        _provide(trainer, pl_module, "predict")


def _data(trainer: Trainer) -> PreferenceDataModule | None:
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, PreferenceDataModule) else None


def _provide(trainer: Trainer, pl_module: LightningModule, *names: str) -> None:
    module = cast("PreferenceLitModule", pl_module)
    if module.reference_mode != "cached":
        return
    data = _data(trainer)
    if data is None:
        raise UserError("model.reference", "cached needs a PreferenceDataModule, got none", "set it to frozen")
    data.add_reference(
        provide_cached_reference(
            data.unscored(names),
            policy=module.built_policy,
            config=module.policy_config,
            tokenizer=module.tokenizer,
            path=module.reference_path,
            folder=module.reference_cache,
            trainer=trainer,
        )
    )
