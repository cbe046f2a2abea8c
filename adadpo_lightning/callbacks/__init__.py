"""Lightning callbacks: what a run logs, shows and writes."""

from adadpo_lightning.callbacks.checkpoint import RunCheckpoint
from adadpo_lightning.callbacks.displacement import LikelihoodDisplacement
from adadpo_lightning.callbacks.export import ExportHF
from adadpo_lightning.callbacks.generation import GenerationCallback
from adadpo_lightning.callbacks.metrics import PreferenceMetrics
from adadpo_lightning.callbacks.parameter_balance import ParameterGradientBalance
from adadpo_lightning.callbacks.predictions import WritePredictions
from adadpo_lightning.callbacks.progress import PreferenceProgressBar

__all__ = [
    "ExportHF",
    "GenerationCallback",
    "LikelihoodDisplacement",
    "ParameterGradientBalance",
    "PreferenceMetrics",
    "PreferenceProgressBar",
    "RunCheckpoint",
    "WritePredictions",
]
