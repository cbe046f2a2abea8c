"""How Lightning's command line is set up for preference training."""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from adadpo_lightning.callbacks import RunCheckpoint, RunSummary
from adadpo_lightning.callbacks.defaults import CHECKPOINT_OPTIONS
from adadpo_lightning.callbacks.tensorboard import log_config
from adadpo_lightning.checkpoints.resume import check_same_run, resolve_checkpoint
from adadpo_lightning.cli.app import check_output_dir, whole_class_options
from adadpo_lightning.compat import actions_of, read_no_config_from
from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.errors import UserError
from adadpo_lightning.training.module import PreferenceLitModule

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule
    from typing_extensions import Self

CHECKPOINT_DEFAULTS = {
    **{f"checkpoint.{name}": value for name, value in CHECKPOINT_OPTIONS.items()},
    # A resumed run continues with its own files: no last-v1.ckpt beside last.ckpt.
    "checkpoint.enable_version_counter": False,
}


FIT_CLASSES = {
    "data": PreferenceDataModule,
    "model": PreferenceLitModule,
    "trainer": Trainer,
    "checkpoint": RunCheckpoint,
}


class SaveRunConfig(SaveConfigCallback):
    """Writes the whole parsed config to ``<output_dir>/config.yaml``: what was run, ready to be run again."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it once, on rank zero, and show it in TensorBoard; a resumed run keeps the first file."""
        path = Path(trainer.default_root_dir) / "config.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or self.config.get("ckpt_path") is None:
            self.parser.save(self.config, str(path), overwrite=True)
        log_config(trainer, path.read_text(encoding="utf-8"))


class PreferenceCLI(LightningCLI):
    """``fit``, ``validate``, ``test`` and ``predict`` over `PreferenceLitModule` and `PreferenceDataModule`."""

    _output_is_new = False

    @classmethod
    def run(cls, args: list[str]) -> Self:
        """Parse `args`, build everything and run the subcommand."""
        _quiet_libraries()
        silent = {command: {"exit_on_error": False} for command in cls.subcommands()}
        return cls(
            PreferenceLitModule,
            PreferenceDataModule,
            args=args,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # a checkpoint says by itself how to rebuild its policy
            seed_everything_default=0,
            # The datamodule's step plan already shares the pairs out over ranks.
            trainer_defaults={"use_distributed_sampler": False, "max_epochs": 1, "gradient_clip_val": 1.0},
            # Errors are raised and not printed below a page of usage.
            parser_kwargs={"prog": "adadpo_lightning", "exit_on_error": False, **silent},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the output directory, which loggers, checkpoints and config share, and the checkpoint callback."""
        parser.add_argument("--output_dir", type=str, default="runs/default", help="Directory that the run writes to.")
        resume = "Go on from the newest whole checkpoint of output_dir, or start where there is none."
        parser.add_argument("--auto_resume", type=bool, default=False, help=resume)
        changed = "Go on although the config differs from the run's in what matters."
        parser.add_argument("--allow_changed_config", type=bool, default=False, help=changed)
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.set_defaults(CHECKPOINT_DEFAULTS)
        _take_paths_as_they_are(parser)
        parser.link_arguments("output_dir", "trainer.default_root_dir")
        parser.link_arguments("output_dir", "checkpoint.dirpath", compute_fn=_checkpoint_dir)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; a class named later forgets the options of the one named earlier."""
        with whole_class_options():
            self.config = parser.parse_args(args)  # type: ignore[arg-type]  # `run` passes a list

    def _parse_ckpt_path(self) -> None:
        """Nothing: the config decides, not hyper-parameters found in a checkpoint."""

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint to go on from; stop before anything is written over."""
        config: Any = self.config[str(self.subcommand)]
        fits = self.subcommand == "fit"
        auto = fits and config.auto_resume
        config.ckpt_path = resolve_checkpoint(config.ckpt_path, config.output_dir, auto_resume=auto)
        if not fits or config.trainer.fast_dev_run:
            return
        self._output_is_new = not Path(config.output_dir).exists()
        check_output_dir(config.output_dir, resuming=config.ckpt_path is not None or auto)
        saved = Path(config.output_dir) / "config.yaml"
        if config.ckpt_path is not None and saved.is_file() and not config.allow_changed_config:
            now = self._parser("fit").dump(config, skip_validation=True)
            check_same_run(*(yaml.safe_load(text) for text in (saved.read_text(encoding="utf-8"), now)))

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; a run that bad input ends before its first step leaves no directory behind."""
        try:
            super()._run_subcommand(subcommand)
        except UserError:
            if self._output_is_new and self.trainer.is_global_zero and self.trainer.global_step == 0:
                shutil.rmtree(self.trainer.default_root_dir, ignore_errors=True)
            raise

    def instantiate_classes(self) -> None:
        """Build module, datamodule and trainer (by the method that jsonargparse does not deprecate)."""
        with whole_class_options():
            self.config_init = self.parser.instantiate(self.config)
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with this package's callbacks and, unless the config names loggers, TensorBoard and CSV."""
        trainer = self._get(self.config_init, "trainer")
        output_dir = self._get(self.config_init, "output_dir")
        wants_logs = self.subcommand in ("fit", "validate", "test")
        if trainer.get("logger") is None:
            kwargs["logger"] = default_loggers(output_dir) if wants_logs else False
        try:
            return super().instantiate_trainer(**kwargs)
        except UserError:
            raise
        except (MisconfigurationException, ValueError, TypeError) as error:
            problem = str(error).splitlines()[0]
            raise UserError("trainer", problem, "see `fit --help` for its options and their values") from error

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        # The module adds the default callbacks: see `adadpo_lightning.callbacks.defaults`.
        if config.get("enable_model_summary"):
            callbacks.append(RunSummary())  # beside Lightning's own, which the config asks for
        if config.get("enable_checkpointing") is False:
            callbacks = [c for c in callbacks if not isinstance(c, ModelCheckpoint)]
        return super()._instantiate_trainer(config, callbacks)


def default_loggers(output_dir: str) -> list[TensorBoardLogger | CSVLogger]:
    """TensorBoard and CSV under `output_dir`; a resumed run goes on in the same TensorBoard curve."""
    return [
        TensorBoardLogger(output_dir, name="tensorboard", version=""),
        CSVLogger(output_dir, name="csv"),
    ]


def _quiet_libraries() -> None:
    """Silence what libraries say of themselves and a user of this package can do nothing about."""
    warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=r".*infer the batch indices.*PlanLoader.*")
    warnings.filterwarnings("ignore", message=r".*is_gradient_checkpointing.*")  # peft asks transformers so
    # What is logged is a mean over all ranks already.
    warnings.filterwarnings("ignore", message=r".*sync_dist=True.*")
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: "Tip:" not in record.getMessage())


def _take_paths_as_they_are(parser: LightningArgumentParser) -> None:
    """Keep the parser from reading data files as configs of `SourceConfig`: it takes minutes for a large file."""
    for action in actions_of(parser):
        if str(action.dest).startswith("data."):
            read_no_config_from(action)


def _checkpoint_dir(output_dir: str) -> str:
    return str(Path(output_dir) / "checkpoints")
