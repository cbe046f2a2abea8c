"""A short summary of a run, printed before its first step."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import Callback

from adadpo_lightning import log
from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.data.position import sharing

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from adadpo_lightning.losses import PreferenceLoss
    from adadpo_lightning.training.module import PreferenceLitModule


class RunSummary(Callback):
    """Prints model, loss, optimizer and data of the run once, on rank zero, before the first step."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print."""
        _print(run_lines(trainer, cast("PreferenceLitModule", pl_module)))


def run_lines(trainer: Trainer, module: PreferenceLitModule) -> list[tuple[str, str]]:
    """The summary as (label, text); data and steps are included only with a `PreferenceDataModule`."""
    lines = [
        ("model", describe_model(module)),
        ("loss", describe_loss(module.loss)),
        ("reference", module.reference_mode),
        ("layout", module.layout),
        ("optimizer", describe_optimizer(trainer, module)),
    ]
    data = getattr(trainer, "datamodule", None)
    return lines + (describe_data(trainer, data) if isinstance(data, PreferenceDataModule) else [])


def describe_model(module: PreferenceLitModule) -> str:
    """Architecture, number of parameters, and how many of them are trained."""
    model = module.built_policy.causal_lm
    # transformers counts 4-bit weights by the number of values that they represent.
    total, trained = model.num_parameters(), model.num_parameters(only_trainable=True)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    share = "all trained" if trained == total else f"{count(trained)} ({trained / total:.2%}) trained"
    return f"{type(model).__name__}, {count(total)} parameters, {share}, {dtype}"


def describe_loss(loss: PreferenceLoss) -> str:
    """Key, formula and options.

    Example:
        >>> from adadpo_lightning.losses import SimPO
        >>> describe_loss(SimPO())
        'simpo: -logsigmoid(beta*lbar_w - beta*lbar_l - beta*gamma_beta_ratio); beta=2.0, gamma_beta_ratio=0.5, \
label_smoothing=0.0'
    """
    named = ", ".join(f"{name}={value}" for name, value in loss_options(loss).items())
    return f"{loss_name(loss)}: {loss.formula}" + (f"; {named}" if named else "")


def loss_name(loss: PreferenceLoss) -> str:
    """The registry key of a loss, or its class name if it is not registered."""
    return loss.key or type(loss).__name__


def loss_options(loss: PreferenceLoss) -> dict[str, Any]:
    """The options of a loss that are set; for a mixture, its parts.

    Example:
        >>> from adadpo_lightning.losses import CPO, SFT, Mixture
        >>> loss_options(CPO()), loss_options(Mixture([SFT()], [0.5]))
        ({'beta': 0.1, 'nll_weight': 1.0, 'label_smoothing': 0.0}, {'parts': 'Mixture(0.5 * SFT())'})
    """
    record: Any = loss
    if not is_dataclass(record):
        return {"parts": repr(loss)}
    return {f.name: value for f in fields(record) if (value := getattr(record, f.name)) is not None}


def describe_optimizer(trainer: Trainer, module: PreferenceLitModule) -> str:
    """Learning rate, schedule, precision and clipping."""
    schedule = module.scheduler_config
    warmup = f"{schedule.warmup_ratio:.0%}" if schedule.warmup_steps is None else f"{schedule.warmup_steps} steps"
    rate = module.optimizer_config.lr
    shown = "" if rate is None else f"lr {rate:g} "
    parts = [f"{optimizer_name(module)}, {shown}{schedule.name} after a warm-up of {warmup}"]
    parts += [f"precision {trainer.precision}"]
    parts += [f"gradient clipped at {trainer.gradient_clip_val:g}"] if trainer.gradient_clip_val else []
    return ", ".join(parts)


def optimizer_name(module: PreferenceLitModule) -> str:
    """The class of the optimizer, without its package."""
    return str(getattr(module.optimizer_config, "class_path", "AdamW")).rpartition(".")[2]


def describe_data(trainer: Trainer, data: PreferenceDataModule) -> list[tuple[str, str]]:
    """Pairs, tokens and steps, and the composition of a step."""
    tokens = sum(int(lengths.sum()) for lengths in data.prepared["train"].counts())
    pairs = f"{len(data.prepared['train'].pairs):,} pairs, {tokens:,} tokens an epoch"
    for stage in data.val_names:
        name = stage.removeprefix("val").removeprefix("/")
        pairs += f"; {len(data.prepared[stage].pairs):,} validation pairs" + (f" ({name})" if name else "")
    steps = f"{data.optimizer_steps:,} optimizer steps"
    if trainer.global_step:
        steps += f", resumed after {trainer.global_step:,}"
    ranks, _ = sharing(trainer)
    micro = str(data.micro_batch_size) if data.max_tokens is None else f"as many as fit in {data.max_tokens:,} tokens"
    parts = (_counted(ranks, "rank"), f"{trainer.accumulate_grad_batches} accumulated", f"{micro} a micro-batch")
    return [
        ("data", pairs),
        ("steps", steps),
        ("global batch", f"{data.global_batch_size:,} pairs = {' x '.join(parts)}"),
    ]


def count(number: float) -> str:
    """Abbreviate a large number.

    Example:
        >>> count(950), count(1_234_567), count(8_030_261_248)
        ('950', '1.23 M', '8.03 B')
    """
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:g}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _print(lines: list[tuple[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Run", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for what, text in lines:
        table.add_row(what, Text(text))  # brackets in a formula are not markup
    log.show(table)
