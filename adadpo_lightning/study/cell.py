"""One job of a study: prepare a seed, or train and judge one cell, with the ordinary commands."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadpo_lightning import log
from adadpo_lightning.errors import UserError
from adadpo_lightning.metrics import names
from adadpo_lightning.runs.lock import lock_directory
from adadpo_lightning.runs.logs import last_metrics, read_metrics, val_stages_of
from adadpo_lightning.study.commands import (
    annotate_command,
    evaluate_arguments,
    fit_arguments,
    generate_arguments,
    quiet_trainer,
    run_in_a_process,
    run_program,
    seed_folder,
)
from adadpo_lightning.study.directory import fingerprint_of, result_path
from adadpo_lightning.study.grid import Cell, JudgedPrompts, at_seed, source_cell
from adadpo_lightning.study.result_file import write_result

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from adadpo_lightning.study.grid import Job, StudyConfig

COEFFICIENT = names.train(names.BALANCE_COEFFICIENT)
FITTED = "fitted.json"  # marks finished training and export
ANSWERS = tuple(f"responses.{kind}{record}" for kind in ("json", "jsonl") for record in ("", ".settings.json"))
OF_AN_EARLIER_POLICY = (FITTED, *ANSWERS, "evaluation.json")


def run_job(study: StudyConfig, job: Job) -> Generator[list[str], None, None]:
    """Run one job and write its result.

    Args:
        study: The study.
        job: One of its jobs; its dependencies are done.

    Yields:
        The arguments of each command line that has to be run next, here and before the job continues. Stop at one
        that fails: the job then stays open.

    Raises:
        UserError: If another process runs the job.
        SystemExit: With the status of a judging command that failed, after its error was printed.
    """
    begun = time.monotonic()
    path = result_path(study, job)
    first = log.is_rank_zero()  # the other ranks take part in `fit` only
    with lock_directory(path.parent, "job") if first else nullcontext():
        made_under = fingerprint_of(study, job)
        if job.cell is None:
            found = yield from prepare_seed(study, job.seed)
        else:
            found = yield from run_cell(study, job.cell, made_under, first=first)
        if first:
            seconds = round(time.monotonic() - begun, 1)
            result = {"status": "done", "error": None, "seconds": seconds, "fingerprint": made_under, **found}
            write_result(path, result)


def prepare_seed(study: StudyConfig, seed: int) -> Generator[list[str], None, dict[str, Any]]:
    """Prepare the embedded task of one seed: corpus, warm-up model, pairs, and samples to compare policies with."""
    from adadpo_lightning.embedded import make_pairs, make_task
    from adadpo_lightning.embedded.evaluation import sample_pool
    from adadpo_lightning.shipped import find_config

    folder, size = seed_folder(study, seed), study.embedded
    for part in ("task", "warmup", "pairs"):
        shutil.rmtree(folder / part, ignore_errors=True)  # from an interrupted attempt
    task = make_task(
        folder / "task",
        seed=seed,
        corpus_size=size.corpus_size,
        prompts=size.prompts,
        heldout_prompts=size.heldout_prompts,
    )
    yield [
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
    ]
    warmup = folder / "warmup" / "export"
    statistics = make_pairs(warmup, task.root, folder / "pairs", seed=seed)
    sample_pool(warmup, task.root, folder / "pool.jsonl", n_prompts=size.heldout_prompts, seed=seed)
    return asdict(statistics)


def run_cell(
    study: StudyConfig, cell: Cell, made_under: dict[str, Any], *, first: bool
) -> Generator[list[str], None, dict[str, Any]]:
    """Train one cell and judge its policy.

    If an earlier attempt finished training and failed afterwards, only the judging is repeated.

    Args:
        study: The study.
        cell: The cell.
        made_under: Its fingerprint.
        first: Whether this is the first rank of the run.
    """
    folder = study.root / "cells" / cell.name
    options = cell.options | coefficient_options(study, cell)
    if not _fitted(folder, made_under):
        if first:
            _remove_leftovers(study, folder)
        yield fit_arguments(study, cell, options, folder / "run")
        if first:
            (folder / FITTED).write_text(json.dumps(made_under), encoding="utf-8")
    if not first:
        return {}
    metrics = last_values(folder / "run", study.validation_set)
    judged = judge_embedded if study.task == "embedded" else judge_responses
    metrics |= judged(study, cell, folder)
    if not study.keep_models:
        shutil.rmtree(folder / "run" / "export", ignore_errors=True)
    described = {name: getattr(cell, name) for name in ("arm", "loss", "lr", "beta", "seed")}
    return {"cell": {**described, "options": options}, "run": "run", "metrics": metrics}


def _fitted(folder: Path, made_under: dict[str, Any]) -> bool:
    with suppress(OSError, ValueError):
        marker = json.loads((folder / FITTED).read_text(encoding="utf-8"))
        return marker == made_under and (folder / "run" / "export").is_dir()
    return False


def _remove_leftovers(study: StudyConfig, folder: Path) -> None:
    """Remove files of an interrupted attempt, except checkpoints, from which `fit` resumes."""
    # A run of the embedded task takes seconds and writes no checkpoints.
    shutil.rmtree(folder / "run" if study.task == "embedded" else folder / "run" / "export", ignore_errors=True)
    for name in OF_AN_EARLIER_POLICY:
        (folder / name).unlink(missing_ok=True)


def coefficient_options(study: StudyConfig, cell: Cell) -> dict[str, float]:
    """Floor and ceiling of a static arm: the mean coefficient over the other arm's training."""
    arm = study.arms[cell.arm].coefficient_of
    if arm is None:
        return {}
    values = read_metrics(study.root / "cells" / source_cell(cell, arm).name / "run", [COEFFICIENT])[COEFFICIENT]
    mean = sum(values) / len(values)
    return {"floor": mean, "ceiling": mean}


def last_values(run_dir: Path, validation_set: str | None = None) -> dict[str, float]:
    """The metrics of the last validation, and the mean coefficient of training.

    Args:
        run_dir: Output directory of the run.
        validation_set: The named validation set whose metrics are also ``val/...``, which the report reads.

    Raises:
        UserError: If the run has no CSV log, or its validation sets have names and none of them is chosen.
    """
    read_metrics(run_dir, [])
    found = last_metrics(run_dir)
    last = {name: value for name, value in found.items() if name.startswith("val/")}
    stage = reported_stage(validation_set, val_stages_of(last), str(run_dir))
    if stage != "val":
        last |= {name.replace(stage, "val", 1): value for name, value in last.items() if name.startswith(f"{stage}/")}
    if COEFFICIENT in found:
        values = read_metrics(run_dir, [COEFFICIENT])[COEFFICIENT]
        last[COEFFICIENT] = sum(values) / len(values)
    return last


def reported_stage(validation_set: str | None, stages: Sequence[str], where: str) -> str:
    """The validation set that the report reads: ``val``, or ``val/<name>``.

    Args:
        validation_set: As in `StudyConfig`.
        stages: The validation sets of a run.
        where: The run, for the error.

    Raises:
        UserError: If the sets have names and none of them is chosen, or there is no set of that name.
    """
    stage = "val" if validation_set is None else f"val/{validation_set}"
    if stage not in stages:
        named = ", ".join(name.removeprefix("val").removeprefix("/") or "without a name" for name in stages) or "none"
        given = "null" if validation_set is None else repr(validation_set)
        raise UserError("validation_set", f"got {given}; the validation sets of {where} are: {named}", "name one")
    return stage


def judge_embedded(study: StudyConfig, cell: Cell, folder: Path) -> dict[str, float]:
    """Gold and judged win rates against samples of the warm-up model, which all cells of a seed share."""
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
    """Win rates of answers to the study's prompts, from ``generate``, the annotator if any, and ``evaluate``."""
    if study.evaluation is None:
        return {}
    how = JudgedPrompts(**at_seed(asdict(study.evaluation), cell.seed))
    report = folder / "evaluation.json"
    run_in_a_process(generate_arguments(how, cell, folder))  # its own process: the trained model's memory is released
    if how.annotate:
        run_program(annotate_command(how, folder))
    run_in_a_process(evaluate_arguments(how, folder, report))
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}
