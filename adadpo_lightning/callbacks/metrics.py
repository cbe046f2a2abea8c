"""Log rewards, log-probabilities, KL and gradient balance, for training and validation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

from adadpo_lightning.callbacks.stages import val_stage, val_stages
from adadpo_lightning.compat import accumulating, ends_logged_step, loss_scale
from adadpo_lightning.data.position import sharing
from adadpo_lightning.metrics import names
from adadpo_lightning.metrics.aggregate import WeightedMeans, summed_over_ranks
from adadpo_lightning.metrics.gradients import gradient_squares
from adadpo_lightning.metrics.preference import finish, gradient_statistics, step_statistics

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor
    from torch.optim import Optimizer

    from adadpo_lightning.models.policy import PolicyModel
    from adadpo_lightning.types import PreferenceBatch, StepOutput

IN_PROGRESS_BAR = (names.LOSS, names.REWARDS_ACCURACIES, names.REWARDS_MARGINS, names.BALANCE_RATIO)


class PreferenceMetrics(Callback):
    """Logs preference metrics under ``train/...``, ``val/...`` (or ``val/<name>/...`` of each set) and ``test/...``.

    Training metrics are means over all pairs since the last log line, at ``trainer.log_every_n_steps``; nothing waits
    for the device between log lines. Validation and test metrics are means over the full set, counting each pair once.

    ``train/grad_norm/{chosen,rejected,prompt}`` are gradient norms of a full optimizer step, before clipping, at the
    last hidden states. A hook reads them during the backward pass, so no extra pass is needed.

    ``train/learning_rate`` and ``train/loss_options/...``, an option of the loss that has a schedule, are those of the
    step that is logged.

    Args:
        gradient_norms: Whether to log ``train/grad_norm/...``.
    """

    def __init__(self, gradient_norms: bool = True) -> None:
        self.gradient_norms = gradient_norms
        self._means: dict[str, WeightedMeans] = {}
        self._squares: Tensor | None = None
        self._at_last_step: dict[str, Any] = {}
        self._rate: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Sums over all ranks since the last log line, as of the last optimizer step."""
        return summed_over_ranks(self._at_last_step)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the sums, so that the first log line of a resumed run includes all pairs."""
        self._at_last_step = dict(state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start observing the gradient; restore the sums of a checkpoint."""
        if self._at_last_step:
            means = self._means["train"] = WeightedMeans().to(pl_module.device)
            # The sums cover all ranks, so only the first of those with different data restores them.
            means.restore(self._at_last_step | ({"sums": 0.0, "weights": 0.0} if sharing(trainer)[1] else {}))
            self._at_last_step = means.snapshot()
        if self.gradient_norms:
            _policy(pl_module).gradient_observer = self._observe

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop observing the gradient."""
        _policy(pl_module).gradient_observer = None

    def _observe(self, batch: PreferenceBatch, gradient: Tensor) -> None:
        self._squares = gradient_squares(batch, gradient.detach())

    def _update(
        self,
        stage: str,
        module: LightningModule,
        step: StepOutput,
        batch: PreferenceBatch,
        squares: Tensor | None = None,
    ) -> None:
        if stage not in self._means:
            self._means[stage] = WeightedMeans().to(module.device)
        beta = step.loss_options.get("beta", getattr(module.loss, "beta", 1.0))
        statistics = step_statistics(step, batch, beta, by_step=stage == "train")
        if squares is not None:
            statistics |= gradient_statistics(squares, batch)
        self._means[stage].update(statistics)

    def _log(self, stage: str, module: LightningModule) -> None:
        means = self._means.pop(stage, None)
        if means is None:
            return
        metrics = finish(means.compute(), means.names)
        shown = {f"{stage}/{name}": value for name, value in metrics.items() if name in IN_PROGRESS_BAR}
        hidden = {f"{stage}/{name}": value for name, value in metrics.items() if name not in IN_PROGRESS_BAR}
        # The values are already means over all ranks, so Lightning must not reduce them again.
        options: dict[str, Any] = {"on_step": stage == "train", "on_epoch": stage != "train", "batch_size": 1}
        module.log_dict(shown, prog_bar=True, **options)
        module.log_dict(hidden, **options)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Read the learning rate of this step; after the step the scheduler has already set the next one."""
        self._rate = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PreferenceBatch, batch_idx: int
    ) -> None:
        """Add the micro-batch; log at the steps at which Lightning writes."""
        if not outputs:  # the step was skipped
            return
        squares, self._squares = self._squares, None
        if squares is not None:
            squares = squares / _gradient_scale(trainer) ** 2
        self._update("train", pl_module, outputs["step"], batch, squares)
        if ends_logged_step(trainer):
            self._log("train", pl_module)
            numbers = {names.loss_option(name): value for name, value in outputs["step"].loss_options.items()}
            if self._rate is not None:
                numbers[names.LEARNING_RATE] = self._rate
            of_this_step = {names.train(name): value for name, value in numbers.items()}
            pl_module.log_dict(of_this_step, on_step=True, on_epoch=False, batch_size=1)
        if not accumulating(trainer):
            means = self._means.get("train")
            self._at_last_step = {} if means is None else means.snapshot()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: PreferenceBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the micro-batch to its set."""
        self._update(val_stage(trainer, dataloader_idx), pl_module, outputs["step"], batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means of each whole set."""
        for stage in val_stages(trainer):
            self._log(stage, pl_module)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PreferenceBatch, *args: Any
    ) -> None:
        """Add the micro-batch."""
        self._update("test", pl_module, outputs["step"], batch)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means of the whole set."""
        self._log("test", pl_module)


def _policy(module: LightningModule) -> PolicyModel:
    policy: Any = module.built_policy
    built: PolicyModel = policy
    return built


def _gradient_scale(trainer: Trainer) -> Tensor | float:
    """Factor by which the backward pass scales the step's gradient; see `PreferenceLitModule.training_step`."""
    replicas = sharing(trainer)[0]
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    # float16 only. Not `get_scale`, which waits for the device.
    scale = None if scaler is None else loss_scale(scaler)
    return replicas if scale is None else replicas * scale
