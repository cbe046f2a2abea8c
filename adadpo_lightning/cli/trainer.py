"""From a parsed config of ``fit`` to a run: check, build module, datamodule and Trainer, call one of its methods."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from adadpo_lightning import log
from adadpo_lightning.callbacks import RunSummary
from adadpo_lightning.checkpoints.finished import finished_step, mark_finished, reached_its_end
from adadpo_lightning.checkpoints.history import CONFIG
from adadpo_lightning.checkpoints.parts import check_parts, read_checkpoint
from adadpo_lightning.checkpoints.resume import PASSED_ON, resolve_checkpoint
from adadpo_lightning.checkpoints.settings import settings, with_defaults
from adadpo_lightning.cli.fit_options import Method, method_options
from adadpo_lightning.cli.output_dir import check_output_dir
from adadpo_lightning.cli.parser import instantiate
from adadpo_lightning.cli.save_config import SaveRunConfig
from adadpo_lightning.compat import is_missing_monitor
from adadpo_lightning.errors import UserError, first_line
from adadpo_lightning.runs.csv_logger import AppendingCSVLogger
from adadpo_lightning.runs.lock import lock_directory
from adadpo_lightning.runs.output import check_output

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


# The least value of options of the Trainer that Lightning itself does not check.
LEAST = {
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": -1,
    "reload_dataloaders_every_n_epochs": 0,
}
SEEDS = range(2**32)  # what numpy accepts


def run_method(method: Method, config: Namespace, parser: ArgumentParser, callbacks: Sequence[Callback] = ()) -> None:
    """Run a method of the Trainer as a config says.

    Args:
        method: The method.
        config: The parsed config; ``seed_everything`` and ``ckpt_path`` are resolved in place.
        parser: The parser that read it.
        callbacks: Further callbacks, which no config names.

    Raises:
        UserError: If the config is wrong.
    """
    quiet_libraries()
    _check_sections(config)
    set_seed(config)
    is_new = prepare_output(method, config)
    try:
        built = instantiate(parser, config)
    except MisconfigurationException as error:  # of a callback or a logger
        raise UserError("config", first_line(error), f"{method} --help lists its options") from error
    options = dict(vars(built.trainer))
    if options.get("logger") is None:
        options["logger"] = False if method == "predict" else default_loggers(built.output_dir, method)
    added = [*callbacks, built.checkpoint]
    if not options.get("fast_dev_run"):
        added.append(SaveRunConfig(parser, config))
    trainer = build_trainer(method, options, added)
    built.model.run_record.allow_changed = config.allow_changed_config
    try:
        if method == "fit" and not options.get("fast_dev_run"):
            _fit_alone(trainer, built, config)
        else:
            getattr(trainer, method)(built.model, datamodule=built.data, **method_options(built, method))
    except Exception as error:
        # A run that fails before its first step leaves no directory behind.
        if is_new and trainer.is_global_zero and not _has_begun(trainer, method, error):
            shutil.rmtree(config.output_dir, ignore_errors=True)
        if isinstance(error, MisconfigurationException) or is_missing_monitor(error):
            raise _of_the_trainer(error, method) from error
        raise


def _has_begun(trainer: Trainer, method: Method, error: BaseException) -> bool:
    """Whether a run that failed had come to its first step, or an evaluation to anything but bad input."""
    if method != "fit":
        return not isinstance(error, (UserError, MisconfigurationException))
    written = (Path(trainer.default_root_dir) / CONFIG).exists()  # with the first step; a resumed run begins at another
    return trainer.global_step > 0 and written


def _check_sections(config: Namespace) -> None:
    """A section that is null in a config file loses the defaults of all its options; the parser accepts that.

    Raises:
        UserError: Naming the section.
    """
    for name, option in (
        ("model", "policy"),
        ("data", "train"),
        ("trainer", "max_epochs"),
        ("checkpoint", "save_last"),
    ):
        if config.get(name) is None or option not in config[name]:
            raise UserError(name, "expected keys and values, got null", "remove the key, or set options below it")


def _fit_alone(trainer: Trainer, built: Namespace, config: Namespace) -> None:
    """Train with a lock on the output directory, and not again once the run is finished."""
    options = settings(trainer, built.model, built.data)
    complete = partial(with_defaults, module=built.model, data=built.data)
    step = finished_step(config.output_dir, options, config.ckpt_path, complete) if config.auto_resume else None
    if step is not None:
        log.info(f"{config.output_dir} holds a finished run of {step} steps: nothing to do.")
        return
    if config.ckpt_path not in (None, *PASSED_ON):
        built.model.run_record.check_options(config.ckpt_path, trainer, built.model, built.data)
    with lock_directory(config.output_dir, "output_dir") if log.is_rank_zero() else nullcontext():
        # Again: the run that held the lock until now may have ended in the meantime.
        check_output_dir(config.output_dir, resuming=config.ckpt_path is not None or config.auto_resume)
        trainer.fit(built.model, datamodule=built.data, **method_options(built, "fit"))
        if trainer.is_global_zero and reached_its_end(trainer):
            mark_finished(config.output_dir, trainer.global_step, options)


def set_seed(config: Namespace) -> None:
    """Seed everything, and write down which seed was chosen."""
    if config.seed_everything is not False:
        chosen = None if config.seed_everything is True else config.seed_everything
        if chosen is not None and chosen not in SEEDS:
            raise UserError("seed_everything", f"expected a number in [0, 2**32), got {chosen}")
        config.seed_everything = seed_everything(chosen, workers=True)


def prepare_output(method: Method, config: Namespace) -> bool:
    """Find the checkpoint to resume from, and stop before anything is overwritten.

    Returns:
        Whether the run will create its output directory.

    Raises:
        UserError: If there is no such checkpoint, or the directory cannot be used.
    """
    fits = method == "fit"
    auto = fits and config.auto_resume
    config.ckpt_path = resolve_checkpoint(config.ckpt_path, config.output_dir, auto_resume=auto)
    if config.ckpt_path not in (None, *PASSED_ON) and "://" not in config.ckpt_path:
        check_parts(read_checkpoint(Path(config.ckpt_path)), resume=fits, path=config.ckpt_path)
    if fits and config.trainer.fast_dev_run:
        return False
    is_new = not Path(config.output_dir).exists()
    if fits:
        check_output_dir(config.output_dir, resuming=config.ckpt_path is not None or auto)
    else:
        check_output(config.output_dir, "output_dir", directory=True)
    return is_new


def build_trainer(method: Method, options: dict[str, Any], callbacks: Sequence[Callback]) -> Trainer:
    """The Trainer of a run; the module adds the default callbacks (`adadpo_lightning.callbacks.defaults`).

    Args:
        method: The method that will be called.
        options: Arguments of the Trainer; ``callbacks`` are those that the config names.
        callbacks: Further callbacks.

    Raises:
        UserError: If the Trainer refuses its arguments.
    """
    _check_numbers(options)
    configured = options.get("callbacks") or []
    added = [*(configured if isinstance(configured, list) else [configured]), *callbacks]
    if options.get("enable_model_summary"):
        added.append(RunSummary())  # beside Lightning's own, which the config asks for
    if options.get("enable_checkpointing") is False:
        added = [c for c in added if not isinstance(c, ModelCheckpoint)]
    try:
        return Trainer(**{**options, "callbacks": added})
    except UserError:
        raise
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise _of_the_trainer(error, method) from error


def _check_numbers(options: dict[str, Any]) -> None:
    """Numbers that Lightning takes, and then trains nothing, ignores them, or divides by zero.

    Raises:
        UserError: Naming the option.
    """
    for name, least in LEAST.items():
        value = options.get(name)
        if isinstance(value, (int, float)) and value < least:
            raise UserError(f"trainer.{name}", f"expected {least} or more, got {value}")
    for name in ("max_steps", "max_epochs"):
        if options.get(name) == 0:
            raise UserError(f"trainer.{name}", "expected at least 1, or -1 for no limit, got 0")


def _of_the_trainer(error: Exception, method: str) -> UserError:
    return UserError("trainer", first_line(error), f"{method} --help lists its options")


def default_loggers(output_dir: str, method: Method) -> list[Logger]:
    """TensorBoard and CSV under `output_dir`; a resumed run continues the same curve and the same table."""
    return [
        TensorBoardLogger(output_dir, name="tensorboard", version=""),
        AppendingCSVLogger(output_dir, name="csv", resume=method == "fit"),
    ]


def quiet_libraries() -> None:
    """Silence messages of libraries that a user of this package can do nothing about."""
    warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=r".*infer the batch indices.*PlanLoader.*")
    warnings.filterwarnings("ignore", message=r".*is_gradient_checkpointing.*")  # peft asks transformers so
    # What is logged is already a mean over all ranks.
    warnings.filterwarnings("ignore", message=r".*sync_dist=True.*")
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    if _is_no_tip not in logger.filters:
        logger.addFilter(_is_no_tip)


def _is_no_tip(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()
