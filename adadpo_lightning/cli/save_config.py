"""Writes the config of a run into its output directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Callback

from adadpo_lightning.callbacks.tensorboard import log_config
from adadpo_lightning.checkpoints.finished import unmark
from adadpo_lightning.checkpoints.history import CONFIG, save_config

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from lightning.pytorch import LightningModule, Trainer


class SaveRunConfig(Callback):
    """Writes the whole parsed config to ``<output_dir>/config.yaml``: what was run, ready to be run again.

    A config that a resumed run replaces is kept in ``config.history``.

    Args:
        parser: The parser that read it.
        config: The parsed config.
    """

    def __init__(self, parser: ArgumentParser, config: Namespace) -> None:
        self.parser = parser
        self.config = config

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it for an evaluation, which leaves the config of a run as it is; a fit first passes its checks."""
        if stage != "fit" and trainer.is_global_zero:
            self._save(trainer, replace=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it for a fit, which from here on changes the run: it is no longer finished."""
        if trainer.is_global_zero:
            unmark(trainer.default_root_dir)
            self._save(trainer, replace=True)

    def _save(self, trainer: Trainer, *, replace: bool) -> None:
        path = Path(trainer.default_root_dir) / CONFIG
        if replace or not path.exists():
            save_config(trainer.default_root_dir, self.parser.dump(self.config))
        log_config(trainer, path.read_text(encoding="utf-8"))  # in TensorBoard too
