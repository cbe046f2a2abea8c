"""Write the policy as a Hugging Face directory when training ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from lightning.pytorch import Callback

from adadpo_lightning.checkpoints.directory import check_free
from adadpo_lightning.checkpoints.export import export_module, exported_by
from adadpo_lightning.checkpoints.model_card import write_card

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from adadpo_lightning.training.module import PreferenceLitModule


class ExportHF(Callback):
    """Exports the policy at the end of `fit`, like the ``export`` subcommand does from a checkpoint.

    A resumed run replaces its own export. A directory with any other content is rejected before training.

    Args:
        path: Directory to write; must be empty or not exist. None means ``<output_dir>/export``.
        merge: Merge LoRA adapters into the base model instead of writing them as adapters.

    Raises:
        UserError: Before the first step, if the directory contains files that this run did not write.
    """

    def __init__(self, path: str | None = None, merge: bool = False) -> None:
        self.path = path
        self.merge = merge

    def _target(self, trainer: Trainer) -> Path:
        return Path(self.path or f"{trainer.default_root_dir}/export")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reject a directory that no run wrote, before the model is loaded; the run to resume is not known yet."""
        if stage == "fit" and self.path is not None and exported_by(self._target(trainer)) is None:
            check_free(self._target(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reject the export of another run."""
        target = self._target(trainer)
        if not self._is_own(target, trainer, cast("PreferenceLitModule", pl_module)):
            check_free(target)

    def _is_own(self, target: Path, trainer: Trainer, module: PreferenceLitModule) -> bool:
        """Whether this run wrote the export: it records this run, or lies in the resumed run's directory."""
        inside = self.path is None and trainer.ckpt_path is not None
        return target.is_dir() and (inside or exported_by(target) == module.run_record.run)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the directory, on rank zero; the other ranks send their shards."""
        module, target = cast("PreferenceLitModule", pl_module), self._target(trainer)
        export_module(module, target, merge=self.merge, replace=self._is_own(target, trainer, module))
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()  # the card reads the CSV
            write_card(target, Path(trainer.default_root_dir))
