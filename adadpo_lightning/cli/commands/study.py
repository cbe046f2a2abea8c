"""A grid of fit runs over losses, learning rates, betas and seeds, run side by side, and its report."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import PositiveInt

from adadpo_lightning.cli.parser import build_parser, instantiate, parse
from adadpo_lightning.cli.within import run_command
from adadpo_lightning.errors import UserError
from adadpo_lightning.study.grid import StudyConfig, cells_of, find_job

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add the fields of `StudyConfig`, and which part of the study to run how."""
    parser.add_class_arguments(StudyConfig)
    jobs = "runs side by side (default: as many as cores on the embedded task, else 1)"
    parser.add_argument("--jobs", type=PositiveInt | None, default=None, help=jobs)
    parser.add_argument("--job", type=str | None, default=None, help="run this one job here and write no report")
    parser.add_argument(
        "--slurm", type=str | None, default=None, metavar="FILE", help="write SLURM arrays, run nothing"
    )
    ray = "run the jobs as tasks of Ray: local starts it here, auto or an address joins a cluster (extra ray)"
    parser.add_argument("--ray", type=str | None, default=None, metavar="ADDRESS", help=ray)
    of_ray = "options of ray.remote for each job, such as {num_cpus: 1, num_gpus: 8}"
    parser.add_argument("--ray_options", type=dict[str, Any], default={}, help=of_ray)
    plan = "say which jobs are left and about how long they take, and write nothing"
    parser.add_argument("--plan", type=bool, default=False, help=plan)
    parser.add_argument("--report_only", type=bool, default=False, help="only write the report again")


def study_of(config: Namespace, parser: ArgumentParser) -> StudyConfig:
    """The study that a parsed config describes.

    Raises:
        UserError: If the study is not well-formed.
    """
    built = instantiate(parser, config)
    return StudyConfig(**{field.name: built[field.name] for field in fields(StudyConfig)})


def check_fit(study: StudyConfig) -> None:
    """Check what can be checked of the ``fit`` command of the study's first cell before any cell is trained.

    Raises:
        UserError: If ``fit`` does not accept the study's options, or the report could not read its validation.
    """
    from adadpo_lightning.cli.commands import fit
    from adadpo_lightning.cli.messages import readable_errors
    from adadpo_lightning.data.validation import validation_sources
    from adadpo_lightning.study.cell import reported_stage
    from adadpo_lightning.study.commands import fit_arguments

    cell = next(cells_of(study))
    parser = build_parser("fit", fit)
    with readable_errors("fit"):
        config = parse(parser, fit_arguments(study, cell, cell.options, study.root)[1:])
    if config is not None:
        unused = config.trainer.limit_val_batches == 0
        sources = {} if unused else validation_sources(config.data.val)
        stages = [stage for stage, listed in sources.items() if listed or config.data.val_size]
        if stages or study.validation_set is not None:
            reported_stage(study.validation_set, stages, "data.val")
        elif study.evaluation is None and study.task == "preference":
            raise UserError(
                "fit_options",
                "the cells have neither validation pairs nor an evaluation, so that nothing could be reported",
                "set data.val or data.val_size, or the study's evaluation",
            )
        with readable_errors("fit"):
            instantiate(parser, config)  # options check their ranges; no model and no data are read


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Run a study, one of its jobs, or only its report.

    Raises:
        UserError: If the study is not well-formed, or some of its jobs failed.
    """
    from adadpo_lightning.study.cell import run_job
    from adadpo_lightning.study.directory import save_study
    from adadpo_lightning.study.plan import plan_lines
    from adadpo_lightning.study.ray_tasks import import_ray
    from adadpo_lightning.study.slurm import write_slurm

    study = study_of(config, parser)
    if config.ray is not None:
        import_ray()
    if not config.report_only:
        check_fit(study)
    if config.job is not None:
        for arguments in run_job(study, find_job(study, config.job)):
            run_command(arguments)
        return
    if config.plan:
        print("\n".join(plan_lines(study, _workers(study, config))))
        return
    save_study(study, write=not config.report_only)
    if config.slurm is not None:
        print("\n".join(map(str, write_slurm(study, config.slurm))))
        return
    failed = 0 if config.report_only else _run_cells(study, config)
    from adadpo_lightning.study.report import write_report

    print(f"report: {write_report(study, study.root / 'report')}")
    if failed:
        raise UserError("study", f"{failed} jobs failed or wait for one that did", "run the same command to retry")


def _run_cells(study: StudyConfig, config: Namespace) -> int:
    from adadpo_lightning.study.forked import Forked, is_available
    from adadpo_lightning.study.jobs import run_study
    from adadpo_lightning.study.ray_tasks import ray_tasks

    if config.ray is not None:
        with ray_tasks(study, config.ray, config.ray_options) as (runner, most):
            return run_study(study, config.jobs or most, runner=runner)
    # A run of the embedded task is one process on the CPU, and imports would take a third of it.
    forked = study.task == "embedded" and is_available()
    return run_study(study, _workers(study, config), runner=Forked() if forked else None)


def _workers(study: StudyConfig, config: Namespace) -> int:
    # On a GPU two runs side by side may not fit; only the user knows.
    return int(config.jobs or (os.cpu_count() or 1 if study.task == "embedded" else 1))
