"""The options of ``fit`` and of every other command that takes a config of ``fit``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import Trainer

from adadpo_lightning.callbacks import RunCheckpoint
from adadpo_lightning.callbacks.defaults import CHECKPOINT_OPTIONS
from adadpo_lightning.compat import actions_of, read_no_config_from
from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.losses.registry import ENTRY_POINT_GROUP
from adadpo_lightning.plugins import load_plugins
from adadpo_lightning.training.module import PreferenceLitModule

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

Method = Literal["fit", "validate", "test", "predict"]

FIT_CLASSES: dict[str, type] = {
    "trainer": Trainer,
    "model": PreferenceLitModule,
    "data": PreferenceDataModule,
    "checkpoint": RunCheckpoint,
}
DEFAULTS: dict[str, Any] = {
    # The step plan of the datamodule already distributes the pairs over ranks.
    "trainer.use_distributed_sampler": False,
    "trainer.max_epochs": 1,
    "trainer.gradient_clip_val": 1.0,
    # Without a class, the options of `model.optimizer` are those of AdamW.
    "model.optimizer": {"class_path": "adadpo_lightning.training.optim.DefaultAdamW"},
    **{f"checkpoint.{name}": value for name, value in CHECKPOINT_OPTIONS.items()},
    # A resumed run continues its own files: no last-v1.ckpt beside last.ckpt.
    "checkpoint.enable_version_counter": False,
}
# What the command line gives to a method of the Trainer by itself.
GIVEN = {"self", "model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}


def add_fit_options(parser: ArgumentParser, method: Method = "fit") -> None:
    """Add trainer, module, datamodule, checkpoint callback, output directory, and the options of one Trainer method.

    Args:
        parser: The parser of a command.
        method: Method of the Trainer, whose options (such as ``--ckpt_path``) are added too.
    """
    load_plugins(ENTRY_POINT_GROUP)
    parser.add_argument(
        "--seed_everything",
        type=bool | int,
        default=0,
        help="Seed of everything but the order of pairs, which is data.seed; true chooses one, false sets none.",
    )
    for key, made in FIT_CLASSES.items():
        if key != "checkpoint":
            _add_class(parser, made, key)
    parser.add_argument("--output_dir", type=str, default="runs/default", help="Directory that the run writes to.")
    resume = "Resume from the latest valid checkpoint of output_dir, or start fresh."
    parser.add_argument("--auto_resume", type=bool, default=False, help=resume)
    changed = "Resume with options, data or weights that differ from those of the run, and list them."
    parser.add_argument("--allow_changed_config", type=bool, default=False, help=changed)
    _add_class(parser, RunCheckpoint, "checkpoint")
    parser.set_defaults(DEFAULTS)
    for action in actions_of(parser):
        if str(action.dest).startswith("data."):
            # A data file is not a config of `SourceConfig`, and reading a large one as such takes minutes.
            read_no_config_from(action)
    parser.link_arguments("output_dir", "trainer.default_root_dir")
    parser.link_arguments("output_dir", "checkpoint.dirpath", compute_fn=checkpoint_dir)
    parser.add_method_arguments(Trainer, method, skip=GIVEN - {"self"})


def _add_class(parser: ArgumentParser, made: type, key: str) -> None:
    # The Trainer is built later, with callbacks and loggers that no config names.
    parser.add_class_arguments(made, key, fail_untyped=False, instantiate=made is not Trainer, sub_configs=True)


def checkpoint_dir(output_dir: str) -> str:
    """Directory of a run's checkpoints."""
    return str(Path(output_dir) / "checkpoints")


def method_options(config: Namespace, method: Method) -> dict[str, Any]:
    """The options of a Trainer method that a config has."""
    names = inspect.signature(getattr(Trainer, method)).parameters.keys() - GIVEN
    return {name: config[name] for name in sorted(names)}


def known_options() -> list[str]:
    """Dotted names of the options of ``fit``, for advice."""
    from adadpo_lightning.losses import available_losses, loss_class
    from adadpo_lightning.models.loading import LoraOptions, PolicyConfig
    from adadpo_lightning.training.optim import OptimizerConfig, SchedulerConfig

    parts = {
        "model.policy": PolicyConfig,
        "model.policy.lora": LoraOptions,
        "model.optimizer": OptimizerConfig,
        "model.scheduler": SchedulerConfig,
    }
    classes = {**FIT_CLASSES, **parts}
    named = [f"{prefix}.{name}" for prefix, made in classes.items() for name in inspect.signature(made).parameters]
    losses = {name for key in available_losses() for name in inspect.signature(loss_class(key)).parameters}
    own = ["output_dir", "auto_resume", "allow_changed_config", "seed_everything", "ckpt_path", "config"]
    return [*named, *(f"model.loss.{name}" for name in losses), *own]
