"""Command lines of a cell, as a user would type them."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadpo_lightning.errors import UserError
from adadpo_lightning.study.grid import at_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adadpo_lightning.study.grid import Cell, JudgedPrompts, StudyConfig


def run_in_a_process(arguments: Sequence[str]) -> None:
    """Print a command of this package, and run it in its own process.

    Raises:
        SystemExit: With its status, if it failed.
    """
    run_program([sys.executable, "-m", "adadpo_lightning", *arguments])


def run_program(command: Sequence[str]) -> None:
    """Print a command and run it.

    Raises:
        SystemExit: With its status, if it failed.
        UserError: If there is no such program.
    """
    print(shlex.join(command), flush=True)
    try:
        # Our own command line, or the one that the user's config names; no shell.
        status = subprocess.run(command, check=False).returncode  # noqa: S603
    except OSError as error:
        raise UserError(
            "evaluation.annotate", f"{command[0]}: {error.strerror}", "install it, or give its path"
        ) from error
    if status:
        raise SystemExit(status)


def fit_arguments(study: StudyConfig, cell: Cell, options: dict[str, Any], output_dir: Path) -> list[str]:
    """The ``fit`` command of one cell."""
    from adadpo_lightning.losses import build_loss, loss_class
    from adadpo_lightning.shipped import find_config

    configs = study.fit_configs or [str(find_config("quickstart.yaml"))]
    order = cell.seed + 100_000 * study.arms[cell.arm].training_seed
    arguments = [
        "fit",
        *(f"--config={config}" for config in configs),
        f"--output_dir={output_dir}",
        f"--seed_everything={order}",
        f"--data.seed={order}",
        f"--model.loss={loss_class(cell.loss).__name__}",
        *(f"--model.loss.{name}={option_value(value)}" for name, value in options.items()),
        f"--model.optimizer.lr={cell.lr}",
    ]
    if build_loss(cell.loss, **options).needs_reference:
        arguments += ["--model.reference=cached", f"--model.reference_cache={study.root / 'reference_cache'}"]
    if study.task == "embedded":
        arguments += _embedded_arguments(study, cell.seed, output_dir)
    else:
        arguments += ["--auto_resume=true", "--trainer.callbacks+=adadpo_lightning.callbacks.ExportHF"]
        if study.evaluation is not None:
            arguments.append("--trainer.callbacks.init_args.merge=true")  # `generate` needs a model, not an adapter
    further = at_seed(study.fit_options, cell.seed)
    return arguments + [f"--{name}={option_value(value)}" for name, value in further.items()]


def option_value(value: Any) -> str:
    """The value of an option as it is written on a command line."""
    return str(value) if isinstance(value, (str, Path)) else json.dumps(value)


def _embedded_arguments(study: StudyConfig, seed: int, output_dir: Path) -> list[str]:
    folder = seed_folder(study, seed)
    return [
        f"--model.policy.path={folder / 'warmup' / 'export'}",
        f"--data.train={folder / 'pairs' / 'pairs.jsonl'}",
        f"--data.val={folder / 'pairs' / 'pairs_val.jsonl'}",
        "--trainer.enable_checkpointing=false",
        *quiet_trainer(output_dir),
    ]


def quiet_trainer(output_dir: Path) -> list[str]:
    """Options of a small run: no progress bar, metrics in one CSV file."""
    return [
        "--trainer.enable_progress_bar=false",
        "--trainer.logger=adadpo_lightning.runs.csv_logger.AppendingCSVLogger",
        f"--trainer.logger.save_dir={output_dir}",
        "--trainer.logger.name=csv",
        "--trainer.logger.resume=true",
    ]


def generate_arguments(how: JudgedPrompts, cell: Cell, folder: Path) -> list[str]:
    """The ``generate`` command of a trained cell."""
    options = {"model": folder / "run" / "export", "prompts": how.prompts, "output": how.responses(folder)}
    options |= {"seed": cell.seed, **how.generate}
    if options.get("format") == "alpaca_eval":
        options.setdefault("generator", cell.name)
    return ["generate", *(f"--{name}={option_value(value)}" for name, value in options.items())]


def annotate_command(how: JudgedPrompts, folder: Path) -> list[str]:
    """The program that annotates the responses of a cell; empty without one."""
    return [_placed(word, how, folder) for word in how.annotate]


def evaluate_arguments(how: JudgedPrompts, folder: Path, report: Path) -> list[str]:
    """The ``evaluate`` command of a cell that has responses."""
    pair = {} if how.baseline is None else {"responses": how.responses(folder), "baseline": how.baseline}
    judge = {f"judge_options.{name}": value for name, value in how.judge_options.items()}
    further = {name: _placed(value, how, folder) for name, value in how.evaluate.items()}
    options = {"judge": how.judge, **pair, "output": report, **judge, **further}
    return ["evaluate", *(f"--{name}={option_value(value)}" for name, value in options.items())]


def _placed(value: Any, how: JudgedPrompts, folder: Path) -> Any:
    if not isinstance(value, str):
        return value
    places = {"{folder}": str(folder), "{responses}": str(how.responses(folder)), "{python}": sys.executable}
    for name, place in places.items():
        value = value.replace(name, place)
    return value


def seed_folder(study: StudyConfig, seed: int) -> Path:
    """Task, warm-up model, pairs and pool of one seed."""
    return study.root / "seeds" / f"prepare_seed{seed}"
