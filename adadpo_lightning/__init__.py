"""Offline preference training on Lightning, with an adaptive, gradient-balanced twin for every loss.

What a run is made of is importable from here: module, datamodule, losses and options. Further documented places:
`adadpo_lightning.callbacks`, `adadpo_lightning.losses`, `adadpo_lightning.metrics` and `adadpo_lightning.strategies`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adadpo_lightning._version import __version__

if TYPE_CHECKING:
    from adadpo_lightning.data.datamodule import PreferenceDataModule
    from adadpo_lightning.data.sources import SourceConfig
    from adadpo_lightning.errors import UserError
    from adadpo_lightning.generation.options import SamplingOptions
    from adadpo_lightning.losses import (
        CPO,
        DPO,
        IPO,
        ORPO,
        RDPO,
        SFT,
        AdaCPO,
        AdaDPO,
        AdaIPO,
        AdaORPO,
        AdaRDPO,
        AdaSimPO,
        Mixture,
        PreferenceLoss,
        Schedule,
        SimPO,
        available_losses,
        build_loss,
        register_loss,
    )
    from adadpo_lightning.models.loading import LoraOptions, PolicyConfig
    from adadpo_lightning.reference.sync import SyncOptions
    from adadpo_lightning.training.module import PreferenceLitModule
    from adadpo_lightning.training.muon import MuonWithAdamW
    from adadpo_lightning.training.optim import OptimizerConfig, SchedulerConfig

__all__ = [
    "CPO",
    "DPO",
    "IPO",
    "ORPO",
    "RDPO",
    "SFT",
    "AdaCPO",
    "AdaDPO",
    "AdaIPO",
    "AdaORPO",
    "AdaRDPO",
    "AdaSimPO",
    "LoraOptions",
    "Mixture",
    "MuonWithAdamW",
    "OptimizerConfig",
    "PolicyConfig",
    "PreferenceDataModule",
    "PreferenceLitModule",
    "PreferenceLoss",
    "SamplingOptions",
    "Schedule",
    "SchedulerConfig",
    "SimPO",
    "SourceConfig",
    "SyncOptions",
    "UserError",
    "__version__",
    "available_losses",
    "build_loss",
    "register_loss",
]

# Imported at first use: torch and Lightning take seconds, and `import adadpo_lightning` should not.
_HOMES = {
    "losses": "CPO DPO IPO ORPO RDPO SFT SimPO AdaCPO AdaDPO AdaIPO AdaORPO AdaRDPO AdaSimPO Mixture PreferenceLoss "
    "Schedule available_losses build_loss register_loss",
    "data.datamodule": "PreferenceDataModule",
    "data.sources": "SourceConfig",
    "errors": "UserError",
    "generation.options": "SamplingOptions",
    "models.loading": "LoraOptions PolicyConfig",
    "reference.sync": "SyncOptions",
    "training.module": "PreferenceLitModule",
    "training.muon": "MuonWithAdamW",
    "training.optim": "OptimizerConfig SchedulerConfig",
}
_ROOMS = ("callbacks", "losses", "metrics", "strategies")
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a public name from its home, or a room of public names."""
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    """The public names, for completion."""
    return [*__all__, *_ROOMS]
