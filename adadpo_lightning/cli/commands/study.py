"""``study``: a grid of ``fit`` runs, run side by side, and its report."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import TYPE_CHECKING

from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jsonargparse import ArgumentParser, Namespace

    from adadpo_lightning.study.grid import StudyConfig


def run_study_command(args: Sequence[str], main: Callable[[Sequence[str]], int]) -> None:
    """Run a study, one of its jobs, or only its report.

    Args:
        args: Options of ``study``.
        main: The command line, for the runs themselves.

    Raises:
        UserError: If the study is not well-formed, or some of its jobs failed.
    """
    from adadpo_lightning.study.cell import run_job
    from adadpo_lightning.study.directory import save_study
    from adadpo_lightning.study.grid import find_job
    from adadpo_lightning.study.jobs import run_study
    from adadpo_lightning.study.slurm import write_slurm

    study, parsed = parse_study(args)
    if parsed.job is not None:
        run_job(study, find_job(study, parsed.job), main)
        return
    save_study(study)
    if parsed.slurm is not None:
        print("\n".join(map(str, write_slurm(study, parsed.slurm))))
        return
    # On a GPU two runs side by side may not fit; that is the user's to say.
    workers = parsed.jobs or (os.cpu_count() or 1 if study.task == "embedded" else 1)
    failed = 0 if parsed.report_only else run_study(study, workers)
    from adadpo_lightning.study.report import write_report

    print(f"report: {write_report(study, study.root / 'report')}")
    if failed:
        raise UserError("study", f"{failed} jobs failed or wait for one that did", "the same command tries them again")


def parse_study(args: Sequence[str]) -> tuple[StudyConfig, Namespace]:
    """The study that options and config files describe, and the options beside it.

    Raises:
        UserError: If the study is not well-formed.
    """
    from adadpo_lightning.study.grid import StudyConfig

    parser = _parser()
    parsed = parser.instantiate(parser.parse_args(list(args)))
    return StudyConfig(**{each.name: parsed[each.name] for each in fields(StudyConfig)}), parsed


def _parser() -> ArgumentParser:
    from jsonargparse import ArgumentParser
    from jsonargparse.typing import PositiveInt

    from adadpo_lightning.study.grid import StudyConfig

    parser = ArgumentParser("adadpo_lightning study", description=__doc__, exit_on_error=False)
    parser.add_argument("--config", action="config", help="file of a study; may be repeated")
    parser.add_class_arguments(StudyConfig)
    jobs = "runs side by side (default: as many as cores on the embedded task, else 1)"
    parser.add_argument("--jobs", type=PositiveInt | None, default=None, help=jobs)
    parser.add_argument("--job", type=str | None, default=None, help="run this one job here and write no report")
    parser.add_argument(
        "--slurm", type=str | None, default=None, metavar="FILE", help="write SLURM arrays, run nothing"
    )
    parser.add_argument("--report_only", type=bool, default=False, help="only write the report again")
    return parser
