"""A TensorBoard that tells the story: one page of curves, distributions over pairs, hyper-parameters to compare by."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from adadpo_lightning.callbacks.summary import loss_name, loss_options
from adadpo_lightning.compat import accumulating, steps_logged
from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.errors import UserError
from adadpo_lightning.losses.balance import Adaptive

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

    from adadpo_lightning.losses import PreferenceLoss
    from adadpo_lightning.training.module import PreferenceLitModule
    from adadpo_lightning.types import StepOutput

Layout = dict[str, dict[str, list[Any]]]

_BOTH = "(train|val)/"
# TensorBoard's table of hyper-parameters starts with five columns; these come first.
_FIRST = ("beta", "tau", "lam", "global_batch_size", "loss", "lr", "seed")


class TensorBoardDashboard(Callback):
    """Arranges TensorBoard, and gives every logger the run's hyper-parameters.

    * CUSTOM SCALARS: one page with balance, rewards, likelihood, KL and optimisation, training and validation.
    * HISTOGRAMS: the coefficient and the reward margin of each pair of one optimizer step, every `every_n_steps`, and
      of each validation.
    * HPARAMS: the hyper-parameters with the last validation metrics (those of training where nothing is validated).
      Options of the loss have columns of their own, and all are in ``loss_options`` too: TensorBoard takes the columns
      of a comparison from one of its runs.

    Other loggers get the hyper-parameters by their own ``log_hyperparams``.

    Args:
        every_n_steps: Optimizer steps from one histogram of training pairs to the next; the first is of step 0.

    Raises:
        UserError: If `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise UserError("TensorBoardDashboard.every_n_steps", f"expected at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._seen: dict[str, list[Tensor]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the layout and the hyper-parameters."""
        module = cast("PreferenceLitModule", pl_module)
        values = hyperparameters(trainer, module)
        stage = "val" if trainer.enable_validation else "train"
        for writer in _writers(trainer):
            writer.add_custom_scalars(dashboard(module.loss))
            _write_hyperparameters(writer, values, module.loss, stage)
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(values)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the pairs of an optimizer step that is drawn, and draw them at its end."""
        # Lightning's own count for the step axis; it rises after the last micro-batch of the step.
        if steps_logged(trainer) % self.every_n_steps:
            return
        self._keep(outputs, batch)
        if not accumulating(trainer):
            self._draw(trainer, "train")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Keep the pairs of a validation during training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._keep(outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw all pairs of the validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._draw(trainer, "val")

    def _keep(self, outputs: Any, batch: Any) -> None:
        if outputs and not batch.filler and (step := outputs["step"]).loss.log_balance is not None:
            for name, values in _per_pair(step).items():
                self._seen.setdefault(name, []).append(values)

    def _draw(self, trainer: Trainer, stage: str) -> None:
        mine = {name: torch.cat(parts).float().cpu() for name, parts in self._seen.items()}
        self._seen = {}
        pairs = _gathered(mine)
        for writer in _writers(trainer):
            for name, values in pairs.items():
                step = steps_logged(trainer)
                writer.add_histogram(f"{stage}/{name}_per_pair", values, step)


def _per_pair(step: StepOutput) -> dict[str, Tensor]:
    loss = step.loss
    return {
        "grad_balance/coefficient": loss.coefficient,
        "rewards/margins": loss.chosen_rewards - loss.rejected_rewards,
    }


def dashboard(loss: PreferenceLoss) -> Layout:
    """The page of custom scalars for a loss, as `SummaryWriter.add_custom_scalars` takes it.

    Charts that a loss leaves empty are left out. Tags are regular expressions, matched from the start of a tag.

    Example:
        >>> from adadpo_lightning.losses import SFT, SimPO
        >>> list(dashboard(SFT())), list(dashboard(SimPO()))
        (['Likelihood', 'Optimisation'], ['Balance', 'Rewards', 'Likelihood', 'Optimisation'])
    """
    page: Layout = {}
    if loss.needs_rejected:
        page["Balance"] = _charts(
            {
                "Gradient ratio, chosen to rejected": "grad_balance/ratio",
                "Coefficient on the chosen score": "grad_balance/coefficient",
                "Share of pairs at the ceiling": "grad_balance/clipped_fraction",
                "Gradient norm ratio at the hidden states": "grad_norm/ratio",
                "Gradient ratio in policy space": "grad_balance/ratio_policy",
            }
        )
        page["Rewards"] = _charts(
            {
                "Rewards of chosen and rejected": "rewards/(chosen|rejected)",
                "Margin": "rewards/margins",
                "Accuracy": "rewards/accuracies",
            }
        )
    page["Likelihood"] = _charts({"Log-probability per token": "logps/(chosen|rejected)_per_token"})
    if loss.needs_rejected:
        page["Likelihood"] |= _charts(
            {
                "Change of log-probability since step 0": "displacement/(chosen|rejected)",
                "Share of chosen answers that fell": "displacement/chosen_fell",
            }
        )
    if loss.needs_reference:
        page["KL"] = _charts({"KL per token": "kl/(chosen|rejected|policy)", "Margin of log-ratios": "kl/margin"})
    page["Optimisation"] = _charts(
        {
            "Loss": "loss",
            "Learning rate": "learning_rate",
            "Gradient norm before clipping": "grad_norm/total",
            "Gradient norms at the hidden states": "grad_norm/(chosen|rejected|prompt)",
            "Tokens per second": "tokens_per_second",
        }
    )
    return page


def _charts(tags: dict[str, str]) -> dict[str, list[Any]]:
    return {title: ["Multiline", [f"{_BOTH}{tag}$"]] for title, tag in tags.items()}


def hyperparameters(trainer: Trainer, module: PreferenceLitModule) -> dict[str, str | int | float | bool]:
    """What tells runs apart, flat and without what is not set."""
    policy, optimizer, scheduler = module.policy_config, module.optimizer_config, module.scheduler_config
    options = loss_options(module.loss)
    values: dict[str, Any] = {
        "model": policy.path,
        "loss": loss_name(module.loss),
        **{name: value for name, value in options.items() if isinstance(value, bool | int | float | str)},
        "loss_options": ", ".join(f"{name}={value}" for name, value in options.items()),
        "reference": module.reference_mode,
        "lr": optimizer.lr,
        "weight_decay": optimizer.weight_decay,
        "scheduler": scheduler.name,
        "warmup_ratio": scheduler.warmup_ratio if scheduler.warmup_steps is None else None,
        "warmup_steps": scheduler.warmup_steps,
        "lora_rank": None if policy.lora is None else policy.lora.r,
        "dtype": policy.dtype,
        "precision": str(trainer.precision),
        "gradient_clip_val": trainer.gradient_clip_val,
        "max_epochs": trainer.max_epochs,
        "seed": int(seed) if (seed := os.environ.get("PL_GLOBAL_SEED")) else None,
    }
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, PreferenceDataModule):
        values |= {"global_batch_size": data.global_batch_size, "max_length": data.options.max_length}
        values |= {"optimizer_steps": data.optimizer_steps, "data_seed": data.seed}
    return {name: value for name, value in values.items() if value is not None}


def _write_hyperparameters(writer: SummaryWriter, values: dict[str, Any], loss: PreferenceLoss, stage: str) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard import summary

    metrics = ["loss", "logps/chosen_per_token"]
    if loss.needs_rejected:
        metrics += ["rewards/accuracies", "rewards/margins", "grad_balance/ratio", "grad_balance/ratio_policy"]
    if loss.needs_reference:
        metrics += ["kl/chosen", "displacement/chosen"]
    names = {f"{stage}/{name}": 0.0 for name in metrics}
    # The columns of a plain loss, too, have room for its adaptive twin.
    columns = {**values, "ceiling": 0.0} if loss.needs_rejected and not isinstance(loss, Adaptive) else values
    # TensorBoard itself takes each metric's last value from the run's curve, so the names are enough.
    hparams: Any = summary.hparams
    experiment, _, _ = hparams(columns, names)
    _, start, end = hparams(values, names)
    plugin = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in _FIRST
    plugin.content = content.SerializeToString()
    for part in (experiment, start, end):
        cast("Any", writer).file_writer.add_summary(part)


def log_config(trainer: Trainer, text: str) -> None:
    """Show a config, as YAML, on TensorBoard's TEXT page."""
    for writer in _writers(trainer):
        writer.add_text("config", f"```yaml\n{text.strip()}\n```")


def _writers(trainer: Trainer) -> Iterator[SummaryWriter]:
    """TensorBoard's writers; none on other ranks than the first."""
    if trainer.is_global_zero:
        yield from (logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger))


def _gathered(mine: dict[str, Tensor]) -> dict[str, Tensor]:
    """The pairs of all ranks; one of them may have had none."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return mine
    parts: list[dict[str, Tensor]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, mine)
    names = next((list(part) for part in parts if part), [])
    return {name: torch.cat([part[name] for part in parts if part]) for name in names}
