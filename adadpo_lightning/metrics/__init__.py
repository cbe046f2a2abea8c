"""Preference metrics: pure functions, torchmetrics classes, and one state for all metrics of a step."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adadpo_lightning.metrics.aggregate import WeightedMeans
    from adadpo_lightning.metrics.classes import (
        GradientBalance,
        KLEstimate,
        LikelihoodDisplacement,
        MarginLengthCorrelation,
        RewardAccuracy,
        RewardMargin,
    )
    from adadpo_lightning.metrics.preference import step_statistics

__all__ = [
    "GradientBalance",
    "KLEstimate",
    "LikelihoodDisplacement",
    "MarginLengthCorrelation",
    "RewardAccuracy",
    "RewardMargin",
    "WeightedMeans",
    "step_statistics",
]

# Imported lazily: reports need only `metrics.names`, and importing torchmetrics takes seconds.
_HOMES = {"WeightedMeans": "aggregate", "step_statistics": "preference"}


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'classes')}"), name)


def __dir__() -> list[str]:
    """The public names, for completion."""
    return list(__all__)
