"""Metrics of a preference run: pure functions, torchmetrics over them, and all of a step's in one state."""

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
