"""Metrics of a preference run: pure functions of a step, and torchmetrics that sum them over steps and ranks."""

from adadpo_lightning.metrics.aggregate import WeightedMeans
from adadpo_lightning.metrics.preference import step_statistics

__all__ = ["WeightedMeans", "step_statistics"]
