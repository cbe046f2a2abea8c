"""How Lightning's command line is set up for preference training."""

from __future__ import annotations

import logging
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from adadpo_lightning import log
from adadpo_lightning.callbacks import RunCheckpoint, RunSummary
from adadpo_lightning.callbacks.defaults import CHECKPOINT_OPTIONS
from adadpo_lightning.callbacks.tensorboard import log_config
from adadpo_lightning.checkpoints.finished import finished_step, mark_finished, reached_its_end, unmark
from adadpo_lightning.checkpoints.history import CONFIG, save_config
from adadpo_lightning.checkpoints.lock import lock_directory
from adadpo_lightning.checkpoints.resume import PASSED_ON, resolve_checkpoint
from adadpo_lightning.checkpoints.settings import settings
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
    """Writes the whole parsed config to ``<output_dir>/config.yaml``: what was run, ready to be run again.

    A config that a resumed run replaces is kept in ``config.history``.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it for an evaluation; a fit first has to pass the checks of a resume."""
        if stage != "fit":
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it on rank zero."""
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it, and show it in TensorBoard; an evaluation leaves the config of a run as it is."""
        path = Path(trainer.default_root_dir) / CONFIG
        if stage == "fit" or not path.exists():
            save_config(trainer.default_root_dir, self.parser.dump(self.config))
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
        resume = "Resume from the latest valid checkpoint of output_dir, or start fresh."
        parser.add_argument("--auto_resume", type=bool, default=False, help=resume)
        changed = "Resume with options, data or weights that differ from those of the run, and list them."
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
        """Find the checkpoint to resume from; stop before anything is overwritten."""
        config: Any = self.config[str(self.subcommand)]
        fits = self.subcommand == "fit"
        auto = fits and config.auto_resume
        config.ckpt_path = resolve_checkpoint(config.ckpt_path, config.output_dir, auto_resume=auto)
        if not fits or config.trainer.fast_dev_run:
            return
        self._output_is_new = not Path(config.output_dir).exists()
        check_output_dir(config.output_dir, resuming=config.ckpt_path is not None or auto)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; a fit alone in its directory, and not again once it is finished."""
        config: Any = self.config[subcommand]
        self.model.run_record.allow_changed = config.allow_changed_config
        if subcommand != "fit" or config.trainer.fast_dev_run:
            super()._run_subcommand(subcommand)
            return
        options = settings(self.trainer, self.model, self.datamodule)
        step = finished_step(config.output_dir, options, config.ckpt_path) if config.auto_resume else None
        if step is not None:
            log.info(f"{config.output_dir} holds a finished run of {step} steps: nothing to do.")
            return
        if config.ckpt_path not in (None, *PASSED_ON):
            self.model.run_record.check_options(config.ckpt_path, options)
        with lock_directory(config.output_dir, "output_dir") if log.is_rank_zero() else nullcontext():
            # Again: the run that held the lock until now may have ended in the meantime.
            check_output_dir(config.output_dir, resuming=config.ckpt_path is not None or config.auto_resume)
            unmark(config.output_dir)
            self._fit()
            if self.trainer.is_global_zero and reached_its_end(self.trainer):
                mark_finished(config.output_dir, self.trainer.global_step, options)

    def _fit(self) -> None:
        """Train; a run that bad input ends before its first step leaves no directory behind."""
        try:
            super()._run_subcommand("fit")
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
