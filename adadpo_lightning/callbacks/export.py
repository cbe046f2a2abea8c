"""Write the policy as a Hugging Face directory when training ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

from adadpo_lightning.checkpoints.export import export_policy
from adadpo_lightning.checkpoints.model_card import write_card

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class ExportHF(Callback):
    """Exports the policy at the end of `fit`, as the ``export`` subcommand does from a checkpoint.

    Args:
        path: Directory to write; must not exist or be empty. None means ``<output_dir>/export``.
        merge: Merge LoRA adapters into the base model and not write them as adapters.
    """

    def __init__(self, path: str | None = None, merge: bool = False) -> None:
        self.path = path
        self.merge = merge

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the directory, on rank zero; the others give it their shards."""
        path = self.path or f"{trainer.default_root_dir}/export"
        policy: Any = pl_module.get_submodule("policy")
        export_policy(policy, pl_module.tokenizer, path, merge=self.merge, write=trainer.is_global_zero)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()  # the card reads the CSV
            write_card(Path(path), Path(trainer.default_root_dir))
