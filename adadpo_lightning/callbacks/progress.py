"""Progress of a run, as a bar in a terminal or as lines in a log file."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import CustomTimeColumn

from adadpo_lightning import log
from adadpo_lightning.callbacks.stages import val_stages
from adadpo_lightning.compat import accumulating, ends_logged_step, logs_now
from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.metrics import names

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from rich.console import RenderableType
    from rich.progress import Task
    from rich.text import Text

SHORT_NAMES = {
    names.train(names.LOSS): "loss",
    names.train(names.REWARDS_ACCURACIES): "accuracy",
    names.train(names.REWARDS_MARGINS): "margin",
    names.train(names.BALANCE_RATIO): "balance",
    names.train(names.TOKENS_PER_SECOND): "tokens/s",
    names.train(names.PAIRS_PER_SECOND): "pairs/s",
    names.train(names.MEMORY_GIB): "GiB",
    names.val(names.LOSS): "val_loss",
    names.val(names.REWARDS_ACCURACIES): "val_accuracy",
    names.val(names.REWARDS_MARGINS): "val_margin",
}
_VALIDATION = {name: short for name, short in SHORT_NAMES.items() if short.startswith("val_")}


def short_metrics(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The metrics of a progress bar under short names, in a fixed order.

    Example:
        >>> short_metrics({"train/tokens_per_second": 12345.6, "train/loss": 0.69314})
        {'loss': '0.693', 'tokens/s': '12,346'}
    """
    return {short: _number(float(metrics[name])) for name, short in SHORT_NAMES.items() if name in metrics}


def _named_metrics(metrics: Mapping[str, Any], stage: str) -> dict[str, str]:
    """The same of a named validation set: ``helpful_loss`` for ``val/helpful/loss``."""
    name = stage.removeprefix("val/")
    wanted = {name_of.replace("val/", f"{stage}/", 1): short for name_of, short in _VALIDATION.items()}
    return {
        short.replace("val_", f"{name}_"): _number(float(metrics[tag]))
        for tag, short in wanted.items()
        if tag in metrics
    }


def _metric_lines(metrics: Mapping[str, Any], val_sets: Sequence[str] = ("val",)) -> dict[str, str]:
    """One line of metrics for each stage that has been logged."""
    stages = {stage: {k: v for k, v in metrics.items() if k.startswith(stage)} for stage in ("train/", "val/")}
    shown = {stage: short_metrics(own) for stage, own in stages.items()}
    for name in val_sets:
        if name != "val":
            shown["val/"] |= _named_metrics(metrics, name)
    lines = {stage: "  ".join(map(" ".join, own.items())) for stage, own in shown.items()}
    return {stage: line for stage, line in lines.items() if line}


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e12 else f"{value:.3g}"


class RunTime:
    """Estimates the remaining time from the steps since the run was started or resumed, including validations."""

    def __init__(self, trainer: Trainer) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        known = isinstance(data, PreferenceDataModule)
        self.steps: float = data.optimizer_steps if known else trainer.estimated_stepping_batches
        self.first = trainer.global_step
        self.start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def remaining(self, step: int) -> float | None:
        """Remaining seconds after `step` optimizer steps; None if it cannot be estimated yet."""
        done = step - self.first
        return self.elapsed / done * (self.steps - step) if done > 0 and math.isfinite(self.steps) else None


def clock(seconds: float | None) -> str:
    """Format seconds as hours, minutes and seconds.

    Example:
        >>> clock(3723.4), clock(None)
        ('1:02:03', '-:--:--')
    """
    return "-:--:--" if seconds is None else str(timedelta(seconds=int(seconds)))


class PreferenceProgressBar(RichProgressBar):
    """Progress bar for terminals: one bar over all optimizer steps of the run, with the remaining time.

    Shows loss, accuracy, reward margin, gradient balance, tokens and pairs per second and, on CUDA, peak memory below
    the bar, where a narrow terminal has room for them. The values are read only at logged steps: reading them at each
    batch, as Lightning's bars do, would wait for the device each time.

    Args:
        refresh_rate: Number of refreshes per second.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self.run_time: RunTime | None = None
        self.remaining: float | None = None
        self.shown = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.run_time, self.remaining, self.shown = RunTime(trainer), None, ""
        super().on_train_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create the bar at the first epoch of the run."""
        if self.is_enabled and self.progress is not None and self.train_progress_bar_id is None:
            self._initialize_train_progress_bar_id()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Advance the bar at the end of an optimizer step; read metrics if they have just been logged."""
        if self.run_time is None or accumulating(trainer):
            return
        self.remaining = self.run_time.remaining(trainer.global_step)
        self._update(self.train_progress_bar_id, trainer.global_step)
        if logs_now(trainer):
            self._update_metrics(trainer, pl_module)

    def _update_metrics(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.is_enabled:
            lines = _metric_lines(self.get_metrics(trainer, pl_module), val_stages(trainer))
            self.shown = "\n".join(lines.values())
            self.refresh()

    def _init_progress(self, trainer: Trainer) -> None:
        super()._init_progress(trainer)
        if self.progress is not None:
            self.progress.get_renderables = self._renderables  # type: ignore[method-assign]  # created by Lightning

    def _renderables(self) -> Iterator[RenderableType]:
        from rich.text import Text

        if self.progress is not None:
            yield self.progress.make_tasks_table(self.progress.tasks)
            yield Text(self.shown, style=self.theme.metrics)

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Description, bar, steps, and elapsed and remaining time."""
        description, bar, steps, *_ = super().configure_columns(trainer)
        return [description, bar, steps, _TimeColumn(self)]

    def _initialize_train_progress_bar_id(self) -> None:
        if self.run_time is not None:
            description = f"{'Training':{len(self.validation_description)}}"
            self.train_progress_bar_id = self._add_task(self.run_time.steps, description)
            self._update(self.train_progress_bar_id, self.trainer.global_step)


class _TimeColumn(CustomTimeColumn):
    """Elapsed and remaining time; for training, of the full run."""

    def __init__(self, bar: PreferenceProgressBar) -> None:
        super().__init__(style=bar.theme.time)
        self.bar = bar

    def render(self, task: Task) -> Text:
        from rich.text import Text

        if self.bar.run_time is None or task.id != self.bar.train_progress_bar_id:
            return super().render(task)
        return Text(f"{clock(self.bar.run_time.elapsed)}, {clock(self.bar.remaining)} to go", style=self.style)


class ProgressLines(ProgressBar):
    """Progress for log files, notebooks and pipes: one line per logged step and one per validation.

    A redrawn bar would leave thousands of its states in a log file, or nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._time: RunTime | None = None

    def enable(self) -> None:
        """Print lines; Lightning calls this on rank zero."""
        self._enabled = True

    def disable(self) -> None:
        """Print nothing; Lightning calls this on all other ranks."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._time = RunTime(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Print the metrics that have just been logged."""
        logged = ends_logged_step(trainer)
        if self._enabled and logged and self._time is not None:
            remaining = clock(self._time.remaining(trainer.global_step))
            self._line(trainer, pl_module, "train/", f"{remaining} to go")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the metrics of a validation during training; a stand-alone validation ends with Lightning's table."""
        if self._enabled and self._time is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._line(trainer, pl_module, "val/")

    def _line(self, trainer: Trainer, module: LightningModule, stage: str, *more: str) -> None:
        metrics = _metric_lines(self.get_metrics(trainer, module), val_stages(trainer)).get(stage, "")
        step = f"step {trainer.global_step}" + (f"/{self._time.steps:.0f}" if self._time is not None else "")
        log.show("  ".join([step, metrics, *more]))


def progress_bar() -> ProgressBar:
    """A progress bar in an interactive terminal, otherwise lines."""
    from rich.console import Console

    return PreferenceProgressBar() if Console().is_terminal else ProgressLines()
