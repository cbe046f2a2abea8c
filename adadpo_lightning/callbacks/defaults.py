"""The callbacks that every run has, whether it starts from the command line or from Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ModelSummary, RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.rich_model_summary import RichModelSummary

from adadpo_lightning.callbacks.checkpoint import RunCheckpoint
from adadpo_lightning.callbacks.connect import ConnectData
from adadpo_lightning.callbacks.displacement import LikelihoodDisplacement
from adadpo_lightning.callbacks.graceful_stop import GracefulStop
from adadpo_lightning.callbacks.gradient_norm import GradientNorm
from adadpo_lightning.callbacks.metrics import PreferenceMetrics
from adadpo_lightning.callbacks.non_finite import NonFiniteGuard
from adadpo_lightning.callbacks.predictions import WritePredictions
from adadpo_lightning.callbacks.progress import progress_bar
from adadpo_lightning.callbacks.summary import RunSummary
from adadpo_lightning.callbacks.tensorboard import TensorBoardDashboard
from adadpo_lightning.callbacks.throughput import Throughput

ALWAYS: tuple[type[Callback], ...] = (
    ConnectData,
    NonFiniteGuard,
    PreferenceMetrics,
    LikelihoodDisplacement,
    GradientNorm,
    Throughput,
    TensorBoardDashboard,
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
        kept: Those of the trainer that stay.
        added: The defaults to append to them.
    """

    kept: list[Callback]
    added: list[Callback]


def default_callbacks(given: Sequence[Callback] = (), *, predict: bool = False) -> list[Callback]:
    """The default callbacks that a list of callbacks lacks, in the order in which they run.

    A callback of the same class or of a subclass replaces its default. A checkpoint callback, progress bar and summary
    are `complete`'s to add, because only the trainer's own list says whether they are enabled.

    Args:
        given: Callbacks that the trainer has.
        predict: Whether to write the predictions of ``predict`` to a file.

    Example:
        >>> [type(callback).__name__ for callback in default_callbacks([PreferenceMetrics()])][:3]
        ['ConnectData', 'NonFiniteGuard', 'LikelihoodDisplacement']
    """
    wanted = [*ALWAYS, *([WritePredictions] if predict else []), GracefulStop]
    return [make() for make in wanted if not _holds(given, make)]


def complete(given: Sequence[Callback], *, predict: bool = False) -> CallbackLists:
    """Complete a trainer's callbacks by the defaults of this package.

    What Lightning's Trainer adds by itself is replaced: its progress bar by `progress_bar`, its model summary by
    `RunSummary`, its checkpoint callback by `RunCheckpoint`. Where the trainer has none of these
    (``enable_progress_bar=False`` and so on), none is added. Lightning's bars and summaries count as its own if they
    have no option that differs from its defaults.

    A plain `ModelCheckpoint` that the user passed keeps its options and becomes a `RunCheckpoint`, in place: its own
    saves may fall into the middle of an optimizer step, whose first micro-batches a resumed run would lose.

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
            # Its hooks make the saves of every other checkpoint callback whole, too.
            saved.append(RunCheckpoint(**CHECKPOINT_OPTIONS))
    # Metrics, what is shown, predictions, the graceful stop; Lightning puts checkpoints last.
    defaults = default_callbacks(kept, predict=predict)
    metrics = [c for c in defaults if isinstance(c, ALWAYS)]
    return CallbackLists(kept, [*metrics, *shown, *defaults[len(metrics) :], *saved])


def _holds(callbacks: Sequence[Callback], kind: type[Callback]) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


def _is_lightnings_bar(callback: Callback) -> bool:
    """Whether it is the bar that Lightning's Trainer adds where the user passes none."""
    kind = type(callback)
    return kind in (RichProgressBar, TQDMProgressBar) and vars(callback) == vars(kind())


def _is_lightnings_summary(callback: Callback) -> bool:
    """Whether it is the summary that Lightning's Trainer adds where the user passes none."""
    kind = type(callback)
    return kind in (RichModelSummary, ModelSummary) and vars(callback) == vars(kind())


def _save_whole_steps(callback: ModelCheckpoint) -> None:
    """Make a `RunCheckpoint` of Lightning's, so that whoever holds it can still read ``best_model_path``."""
    is_lightnings_own = vars(callback) == vars(ModelCheckpoint())
    callback.__class__ = RunCheckpoint
    if is_lightnings_own:
        vars(callback).update(vars(RunCheckpoint(**CHECKPOINT_OPTIONS)))
