"""The validation set that a batch comes from, as the beginning of its metrics' names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adadpo_lightning.data.datamodule import PreferenceDataModule

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def val_stages(trainer: Trainer) -> list[str]:
    """The validation sets in the order of their loaders: ``val``, or ``val/<name>`` of each; empty without any."""
    data = getattr(trainer, "datamodule", None)
    return data.val_names if isinstance(data, PreferenceDataModule) else ["val"]


def val_stage(trainer: Trainer, dataloader_idx: int = 0) -> str:
    """The validation set of a loader."""
    return val_stages(trainer)[dataloader_idx]
