"""Lightning checkpoints that are written atomically, hold complete optimizer steps and include the last step."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerStatus

from adadpo_lightning.checkpoints.integrity import WholeFileIO
from adadpo_lightning.compat import accumulating
from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class RunCheckpoint(ModelCheckpoint):
    """Saves ``last.ckpt`` at the end of training too, and on request.

    Lightning's own class saves after validations, so no checkpoint would contain the steps after the last validation.

    A checkpoint always holds the state after a complete optimizer step whose metrics are logged. A checkpoint saved in
    the middle of a step, at a validation, a signal or an exception (`OnExceptionCheckpoint`), records the start of that
    step: weights and optimizer have not changed since. Checkpoints do not contain gradients, so a resumed run
    recomputes them.
    """

    _due: tuple[Any, Any, int] | None = None
    _at_last_step: dict[str, Any] | None = None
    _last_step: int | None = None
    _position_of_last_step = False
    _ended_within_epoch = False
    _step_of_last: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write files with `WholeFileIO`, unless the trainer has a custom checkpoint plugin.

        Raises:
            UserError: If `filename` points outside the directory, or is no template.
        """
        filename = Path(self.filename or "")
        if filename.is_absolute() or ".." in filename.parts:
            raise UserError(
                "checkpoint.filename",
                f"expected a name inside the checkpoint directory, got {self.filename!r}",
                "set checkpoint.dirpath to save in another directory",
            )
        try:
            list(Formatter().parse(self.filename or ""))
        except ValueError as error:
            raise UserError(
                "checkpoint.filename", f"{self.filename!r} is no template: {error}", "write fields as {step}"
            ) from error
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeFileIO()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best checkpoints, even if the run's directory was moved or copied."""
        before, now = state_dict.get("dirpath"), self.dirpath
        if before and now and before != str(now):
            state_dict = relocated(state_dict, Path(before), Path(now))
        super().load_state_dict(state_dict)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the checkpoint's position in the data as the run's own until the first step."""
        # Not a copy: the position may still be translated to this run's ranks and micro-batches.
        self._at_last_step = checkpoint["loops"]["fit_loop"]
        self._last_step = checkpoint["global_step"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the position in the data; every optimizer step updates it."""
        super().on_train_start(trainer, pl_module)
        self._ended_within_epoch = False
        if self._at_last_step is None:
            self._remember(trainer)

    def _remember(self, trainer: Trainer) -> None:
        self._at_last_step = deepcopy(trainer.fit_loop.state_dict())
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Schedule a save, deferred until this step has been logged."""
        if not accumulating(trainer):
            self._remember(trainer)
            self._due = (outputs, batch, batch_idx)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Run the deferred save."""
        self._save_due(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the deferred save, except between the last step of an epoch and its validation.

        Lightning would skip the validation when it resumes from there.
        """
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save_due(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the save that was deferred until after the validation, and that of the last step.

        The last step is saved here and not only in `on_train_end`, where `WeightAveraging` has already replaced the
        weights by their average. Where training ends within an epoch, by its steps, its time or early stopping,
        Lightning counts that epoch as complete; the position remains that of the last step.
        """
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._remember(trainer)
        else:
            self._ended_within_epoch = True
        super().on_train_epoch_end(trainer, pl_module)
        self._save_due(trainer, pl_module)
        if _ends(trainer):
            self._save_last_step(trainer)

    def _save_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        due, self._due = self._due, None
        if due is not None:
            self._position_of_last_step = True
            super().on_train_batch_end(trainer, pl_module, *due)
            self._position_of_last_step = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step, unless ``last.ckpt`` holds it."""
        self._save_last_step(trainer)

    def _save_last_step(self, trainer: Trainer) -> None:
        tries = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set in the trainer's connector
        if trainer.global_step > 0 and not tries and self._step_of_last != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_train_end`, which Lightning does not call if a resumed run has no step left.

        A run may be killed after it has saved its last step under another name and before it has saved ``last.ckpt``.
        """
        self._save_last_step(trainer)

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        """Remember the step of ``last.ckpt``; other files of the same step do not count."""
        super()._save_last_checkpoint(trainer, monitor_candidates)
        self._step_of_last = trainer.global_step

    def save_now(self, trainer: Trainer) -> str:
        """Save ``last.ckpt`` as of the last complete step during training; every rank must call this.

        Returns:
            Path of the checkpoint.
        """
        self._position_of_last_step = True
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        self._position_of_last_step = False
        return self.last_model_path

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set the position in the data to the end of the last complete step."""
        failed = trainer.state.status == TrainerStatus.INTERRUPTED and trainer.global_step == self._last_step
        inside = self._position_of_last_step or self._ended_within_epoch or accumulating(trainer) or failed
        if self._at_last_step is not None and inside:
            checkpoint["loops"]["fit_loop"] = self._at_last_step

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Flush everything logged so far to disk, then save."""
        for logger in trainer.loggers:
            logger.save()
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
        super()._save_checkpoint(trainer, filepath)


def _ends(trainer: Trainer) -> bool:
    """Whether training ends after this epoch, at its end."""
    steps = 0 <= trainer.max_steps <= trainer.global_step
    epochs = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch + 1
    return bool(trainer.should_stop or steps or epochs)


def relocated(state: dict[str, Any], before: Path, now: Path) -> dict[str, Any]:
    """The state of a `ModelCheckpoint` with its paths moved to another directory; unchanged if the files are not there.

    Args:
        state: State dict of the callback.
        before: Directory that the state refers to.
        now: Directory of this run.
    """

    def moved(path: str) -> str:
        return str(now / Path(path).relative_to(before)) if path and Path(path).is_relative_to(before) else path

    best = {moved(path): score for path, score in state["best_k_models"].items()}
    named = {name: moved(state[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
    if not all(Path(path).exists() for path in (*best, *filter(None, named.values()))):
        return state
    return {**state, **named, "best_k_models": best, "dirpath": str(now)}
