"""Command lines of a cell, as a user would type them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adadpo_lightning.study.grid import Cell, StudyConfig


def run_in_a_process(arguments: Sequence[str]) -> None:
    """Print a command as a user would type it, and run it in its own process.

    Raises:
        SystemExit: With its status, if it failed.
    """
    print(f"python -m adadpo_lightning {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "adadpo_lightning", *arguments]
    if status := subprocess.run(command, check=False).returncode:  # noqa: S603  # our own command line, no shell
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
    return arguments + [f"--{name}={option_value(value)}" for name, value in study.fit_options.items()]


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


def judge_arguments(study: StudyConfig, cell: Cell, model: Path, responses: Path, report: Path) -> list[list[str]]:
    """The commands that judge a policy: ``generate`` and ``evaluate``; none without `StudyConfig.evaluation`."""
    if (how := study.evaluation) is None:
        return []
    generate = {"model": model, "prompts": how.prompts, "output": responses, "seed": cell.seed, **how.generate}
    evaluate = {
        "judge": how.judge,
        "responses": responses,
        "baseline": how.baseline,
        "output": report,
        **{f"judge_options.{name}": value for name, value in how.judge_options.items()},
        **how.evaluate,
    }
    commands = (("generate", generate), ("evaluate", evaluate))
    return [[command, *(f"--{name}={option_value(v)}" for name, v in options.items())] for command, options in commands]


def seed_folder(study: StudyConfig, seed: int) -> Path:
    """Task, warm-up model, pairs and pool of one seed."""
    return study.root / "seeds" / f"prepare_seed{seed}"
