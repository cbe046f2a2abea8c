"""What one job of a study does: prepare a seed, or train and judge one cell by the ordinary commands."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadpo_lightning.errors import UserError
from adadpo_lightning.study.grid import Cell, source_cell

if TYPE_CHECKING:
    from adadpo_lightning.study.grid import Job, StudyConfig

RESULT = "result.json"
COEFFICIENT = "train/grad_balance/coefficient"
Command = Callable[[Sequence[str]], int]


def result_path(study: StudyConfig, job: Job) -> Path:
    """Where a job says that it is finished."""
    folder = "cells" if job.cell is not None else "seeds"
    return study.root / folder / job.name / RESULT


def run_job(study: StudyConfig, job: Job, main: Command) -> None:
    """Run one job and write its result.

    Args:
        study: The study.
        job: One of its jobs, whose needs are met.
        main: The command line; it takes arguments and returns an exit status.

    Raises:
        SystemExit: With the status of a command that failed; it has said why.
    """
    begun = time.monotonic()
    path = result_path(study, job)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = prepare_seed(study, job.seed, main) if job.cell is None else run_cell(study, job.cell, main)
    if int(os.environ.get("LOCAL_RANK", "0")) != 0:
        return  # another rank of the same run
    result = {"status": "done", "error": None, "seconds": round(time.monotonic() - begun, 1), **found}
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(result, indent=1), encoding="utf-8")
    unfinished.replace(path)


def prepare_seed(study: StudyConfig, seed: int, main: Command) -> dict[str, Any]:
    """Make the embedded task of one seed: corpus, warm-up model, pairs, and the samples that policies are judged by."""
    from adadpo_lightning.embedded import make_pairs, make_task
    from adadpo_lightning.embedded.evaluation import sample_pool
    from adadpo_lightning.shipped import find_config

    folder, size = seed_folder(study, seed), study.embedded
    for part in ("task", "warmup", "pairs"):
        shutil.rmtree(folder / part, ignore_errors=True)  # of an attempt that was stopped
    task = make_task(
        folder / "task",
        seed=seed,
        corpus_size=size.corpus_size,
        prompts=size.prompts,
        heldout_prompts=size.heldout_prompts,
    )
    run(
        main,
        [
            "fit",
            f"--config={find_config('quickstart_warmup.yaml')}",
            f"--output_dir={folder / 'warmup'}",
            f"--seed_everything={seed}",
            f"--data.seed={seed}",
            f"--model.policy.config={task.model}",
            f"--model.policy.init_seed={seed}",
            f"--data.train={task.warmup}",
            f"--trainer.max_steps={size.warmup_steps}",
            "--trainer.enable_checkpointing=false",
            *quiet_trainer(folder / "warmup"),
        ],
    )
    warmup = folder / "warmup" / "export"
    statistics = make_pairs(warmup, task.root, folder / "pairs", seed=seed)
    sample_pool(warmup, task.root, folder / "pool.jsonl", n_prompts=size.heldout_prompts, seed=seed)
    return asdict(statistics)


def run_cell(study: StudyConfig, cell: Cell, main: Command) -> dict[str, Any]:
    """Train one cell and judge its policy."""
    folder = study.root / "cells" / cell.name
    options = cell.options | coefficient_options(study, cell)
    run(main, fit_arguments(study, cell, options, folder / "run"))
    if int(os.environ.get("LOCAL_RANK", "0")) != 0:
        return {}
    metrics = last_values(folder / "run")
    judged = judge_embedded if study.task == "embedded" else judge_responses
    metrics |= judged(study, cell, folder)
    if not study.keep_models:
        shutil.rmtree(folder / "run" / "export", ignore_errors=True)
    described = {name: getattr(cell, name) for name in ("arm", "loss", "lr", "beta", "seed")}
    return {"cell": {**described, "options": options}, "run": "run", "metrics": metrics}


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
        *(f"--model.loss.{name}={_value(value)}" for name, value in options.items()),
        f"--model.optimizer.lr={cell.lr}",
    ]
    if build_loss(cell.loss, **options).needs_reference:
        arguments += ["--model.reference=cached", f"--model.reference_cache={study.root / 'reference_cache'}"]
    if study.task == "embedded":
        arguments += _embedded_arguments(study, cell.seed, output_dir)
        shutil.rmtree(output_dir, ignore_errors=True)  # of an attempt that was stopped; it takes seconds to run anew
    else:
        arguments += ["--auto_resume=true", "--trainer.callbacks+=adadpo_lightning.callbacks.ExportHF"]
    return arguments + [f"--{name}={_value(value)}" for name, value in study.fit_options.items()]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


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
    """Options that leave a small run's curves to one CSV file."""
    return [
        "--trainer.enable_progress_bar=false",
        "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
        f"--trainer.logger.save_dir={output_dir}",
        "--trainer.logger.name=csv",
    ]


def coefficient_options(study: StudyConfig, cell: Cell) -> dict[str, float]:
    """Floor and ceiling of a static arm: the mean coefficient over the other arm's training."""
    arm = study.arms[cell.arm].coefficient_of
    if arm is None:
        return {}
    values = logged(study.root / "cells" / source_cell(cell, arm).name / "run")[COEFFICIENT]
    mean = sum(values) / len(values)
    return {"floor": mean, "ceiling": mean}


def logged(run_dir: Path) -> dict[str, list[float]]:
    """Every metric of a run's CSV log, in the order of its steps.

    Raises:
        UserError: If the run has logged nothing.
    """
    files = sorted(run_dir.glob("csv/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise UserError(str(run_dir), "holds no csv/version_*/metrics.csv", "leave a CSVLogger in trainer.logger")
    values: dict[str, list[float]] = {}
    for file in files:  # a resumed run has begun a file of its own
        with file.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                for name, value in row.items():
                    if value:
                        values.setdefault(name, []).append(float(value))
    return values


def last_values(run_dir: Path) -> dict[str, float]:
    """What the last validation said, and the mean coefficient of training."""
    values = logged(run_dir)
    last = {name: found[-1] for name, found in values.items() if name.startswith("val/")}
    if found := values.get(COEFFICIENT):
        last[COEFFICIENT] = sum(found) / len(found)
    return last


def judge_embedded(study: StudyConfig, cell: Cell, folder: Path) -> dict[str, float]:
    """Gold and judged win rates over the warm-up model's samples, the same for all cells of a seed."""
    from adadpo_lightning.embedded.evaluation import evaluate_embedded

    seed = seed_folder(study, cell.seed)
    return evaluate_embedded(
        folder / "run" / "export",
        seed / "warmup" / "export",
        seed / "task",
        n_prompts=study.embedded.heldout_prompts,
        seed=cell.seed,
        pool=seed / "pool.jsonl",
    )


def judge_responses(study: StudyConfig, cell: Cell, folder: Path) -> dict[str, float]:
    """Answers to the study's prompts and their win rates, by ``generate`` and ``evaluate``."""
    if (how := study.evaluation) is None:
        return {}
    model, responses, report = folder / "run" / "export", folder / "responses.jsonl", folder / "evaluation.json"
    generate = {"model": model, "prompts": how.prompts, "output": responses, "seed": cell.seed, **how.generate}
    evaluate = {
        "judge": how.judge,
        "responses": responses,
        "baseline": how.baseline,
        "output": report,
        **{f"judge_options.{name}": value for name, value in how.judge_options.items()},
        **how.evaluate,
    }
    # Processes of their own: the trained model's memory is free again.
    for command, options in (("generate", generate), ("evaluate", evaluate)):
        arguments = [f"--{name}={_value(v) if not isinstance(v, Path) else v}" for name, v in options.items()]
        run(_in_a_process, [command, *arguments])
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def _in_a_process(arguments: Sequence[str]) -> int:
    command = [sys.executable, "-m", "adadpo_lightning", *arguments]
    return subprocess.run(command, check=False).returncode  # noqa: S603  # our own command line, no shell


def run(main: Command, arguments: Sequence[str]) -> None:
    """Say a command as a user would type it, and run it.

    Raises:
        SystemExit: With its status, if it failed.
    """
    print(f"python -m adadpo_lightning {' '.join(arguments)}", flush=True)
    if status := main(arguments):
        raise SystemExit(status)


def seed_folder(study: StudyConfig, seed: int) -> Path:
    """Task, warm-up model, pairs and pool of one seed."""
    return study.root / "seeds" / f"prepare_seed{seed}"
