"""Lightning callbacks: what a run logs, shows and writes."""

from adadpo_lightning.callbacks.checkpoint import RunCheckpoint
from adadpo_lightning.callbacks.displacement import LikelihoodDisplacement
from adadpo_lightning.callbacks.expert_load import ExpertLoad
from adadpo_lightning.callbacks.export import ExportHF
from adadpo_lightning.callbacks.generation import GenerationCallback
from adadpo_lightning.callbacks.graceful_stop import GracefulStop
from adadpo_lightning.callbacks.gradient_norm import GradientNorm
from adadpo_lightning.callbacks.metrics import PreferenceMetrics
from adadpo_lightning.callbacks.non_finite import NonFiniteError, NonFiniteGuard
from adadpo_lightning.callbacks.parameter_balance import ParameterGradientBalance
from adadpo_lightning.callbacks.predictions import WritePredictions
from adadpo_lightning.callbacks.progress import PreferenceProgressBar, ProgressLines
from adadpo_lightning.callbacks.stragglers import Stragglers
from adadpo_lightning.callbacks.summary import RunSummary
from adadpo_lightning.callbacks.tensorboard import TensorBoardDashboard
from adadpo_lightning.callbacks.throughput import Throughput
from adadpo_lightning.callbacks.validation_table import ValidationTable

__all__ = [
    "ExpertLoad",
    "ExportHF",
    "GenerationCallback",
    "GracefulStop",
    "GradientNorm",
    "LikelihoodDisplacement",
    "NonFiniteError",
    "NonFiniteGuard",
    "ParameterGradientBalance",
    "PreferenceMetrics",
    "PreferenceProgressBar",
    "ProgressLines",
    "RunCheckpoint",
    "RunSummary",
    "Stragglers",
    "TensorBoardDashboard",
    "Throughput",
    "ValidationTable",
    "WritePredictions",
]
