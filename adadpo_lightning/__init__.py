"""Offline preference training on Lightning, with an adaptive, gradient-balanced twin for every loss."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adadpo_lightning._version import __version__

if TYPE_CHECKING:
    from adadpo_lightning.data.datamodule import PreferenceDataModule
    from adadpo_lightning.data.sources import SourceConfig
    from adadpo_lightning.losses import available_losses, build_loss, register_loss
    from adadpo_lightning.models.loading import LoraOptions, PolicyConfig
    from adadpo_lightning.training.module import PreferenceLitModule
    from adadpo_lightning.training.optim import OptimizerConfig, SchedulerConfig

__all__ = [
    "LoraOptions",
    "OptimizerConfig",
    "PolicyConfig",
    "PreferenceDataModule",
    "PreferenceLitModule",
    "SchedulerConfig",
    "SourceConfig",
    "__version__",
    "available_losses",
    "build_loss",
    "register_loss",
]

# Imported at first use: torch and Lightning take seconds, and `import adadpo_lightning` should not.
_HOMES = {
    "LoraOptions": "models.loading",
    "OptimizerConfig": "training.optim",
    "PolicyConfig": "models.loading",
    "PreferenceDataModule": "data.datamodule",
    "PreferenceLitModule": "training.module",
    "SchedulerConfig": "training.optim",
    "SourceConfig": "data.sources",
    "available_losses": "losses",
    "build_loss": "losses",
    "register_loss": "losses",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
