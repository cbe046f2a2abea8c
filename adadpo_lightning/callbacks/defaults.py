"""The default callbacks of every run, started from the command line or from Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ModelSummary, RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.rich_model_summary import RichModelSummary

from adadpo_lightning.callbacks.checkpoint import RunCheckpoint
from adadpo_lightning.callbacks.connect import ConnectData
from adadpo_lightning.callbacks.displacement import LikelihoodDisplacement
from adadpo_lightning.callbacks.expert_load import ExpertLoad
from adadpo_lightning.callbacks.graceful_stop import GracefulStop
from adadpo_lightning.callbacks.gradient_norm import GradientNorm
from adadpo_lightning.callbacks.metrics import PreferenceMetrics
from adadpo_lightning.callbacks.non_finite import NonFiniteGuard
from adadpo_lightning.callbacks.predictions import WritePredictions
from adadpo_lightning.callbacks.progress import progress_bar
from adadpo_lightning.callbacks.stragglers import Stragglers
from adadpo_lightning.callbacks.summary import RunSummary
from adadpo_lightning.callbacks.tensorboard import TensorBoardDashboard
from adadpo_lightning.callbacks.throughput import Throughput
from adadpo_lightning.callbacks.validation_table import ValidationTable

ALWAYS: tuple[type[Callback], ...] = (
    ConnectData,
    NonFiniteGuard,
    PreferenceMetrics,
    ExpertLoad,
    LikelihoodDisplacement,
    GradientNorm,
    Throughput,
    Stragglers,
    TensorBoardDashboard,
    ValidationTable,
)

CHECKPOINT_OPTIONS: dict[str, Any] = {
    # The step counts optimizer steps; "last" is what `ckpt_path="last"` resumes.
    "filename": "step{step}",
    "auto_insert_metric_name": False,
    "save_last": True,
    "save_top_k": 1,
}


class CallbackLists(NamedTuple):
    """What `complete` returns.

    Args:
        kept: The trainer's callbacks that remain.
        added: The defaults to append.
    """

    kept: list[Callback]
    added: list[Callback]


def default_callbacks(given: Sequence[Callback] = (), *, predict: bool = False) -> list[Callback]:
    """The default callbacks that are missing from a list, in the order in which they run.

    A callback of the same class or of a subclass replaces its default. Checkpoint callback, progress bar and summary
    are added by `complete`, because only the trainer's own list shows whether they are enabled.

    Args:
        given: Callbacks of the trainer.
        predict: Whether to write the predictions of ``predict`` to a file.

    Example:
        >>> [type(callback).__name__ for callback in default_callbacks([PreferenceMetrics()])][:3]
        ['ConnectData', 'NonFiniteGuard', 'ExpertLoad']
    """
    wanted = [*ALWAYS, *([WritePredictions] if predict else []), GracefulStop]
    return [make() for make in wanted if not _holds(given, make)]


def complete(given: Sequence[Callback], *, predict: bool = False) -> CallbackLists:
    """Complete a trainer's callbacks with the defaults of this package.

    Callbacks that Lightning's Trainer adds automatically are replaced: the progress bar by `progress_bar`, the model
    summary by `RunSummary`, the checkpoint callback by `RunCheckpoint`. Nothing is added for a disabled one
    (``enable_progress_bar=False`` etc.). A bar or summary is considered automatic if all its options have Lightning's
    default values.

    A plain `ModelCheckpoint` passed by the user keeps its options and becomes a `RunCheckpoint` in place: Lightning may
    save in the middle of an optimizer step, and a resumed run would lose the first micro-batches of that step.

    Args:
        given: The trainer's callbacks.
        predict: As in `default_callbacks`.
    """
    kept = [c for c in given if not _is_lightnings_bar(c)]
    shown: list[Callback] = [] if len(kept) == len(given) else [progress_bar()]
    if not _holds(kept, RunSummary) and _holds(kept, ModelSummary):
        kept = [c for c in kept if not _is_lightnings_summary(c)]
        shown.append(RunSummary())
    saved: list[Callback] = []
    if _holds(kept, Checkpoint):
        for callback in kept:
            if type(callback) is ModelCheckpoint:
                _save_whole_steps(callback)
        if not _holds(kept, RunCheckpoint):
            # Its hooks ensure that other checkpoint callbacks save complete steps, too.
            saved.append(RunCheckpoint(**CHECKPOINT_OPTIONS))
    # Order: metrics, progress and summary, predictions, graceful stop. Lightning moves checkpoint callbacks last.
    defaults = default_callbacks(kept, predict=predict)
    metrics = [c for c in defaults if isinstance(c, ALWAYS)]
    return CallbackLists(kept, [*metrics, *shown, *defaults[len(metrics) :], *saved])


def _holds(callbacks: Sequence[Callback], kind: type[Callback]) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


def _is_lightnings_bar(callback: Callback) -> bool:
    """Whether this is the bar that Lightning's Trainer adds if the user passes none."""
    kind = type(callback)
    return kind in (RichProgressBar, TQDMProgressBar) and vars(callback) == vars(kind())


def _is_lightnings_summary(callback: Callback) -> bool:
    """Whether this is the summary that Lightning's Trainer adds if the user passes none."""
    kind = type(callback)
    return kind in (RichModelSummary, ModelSummary) and vars(callback) == vars(kind())


def _save_whole_steps(callback: ModelCheckpoint) -> None:
    """Turn a `ModelCheckpoint` into a `RunCheckpoint` in place, so that references to it stay valid."""
    is_lightnings_own = vars(callback) == vars(ModelCheckpoint())
    callback.__class__ = RunCheckpoint
    if is_lightnings_own:
        vars(callback).update(vars(RunCheckpoint(**CHECKPOINT_OPTIONS)))
