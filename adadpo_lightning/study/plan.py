"""What a study will run and about how long that takes, before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adadpo_lightning.study.directory import result_path
from adadpo_lightning.study.grid import EmbeddedTaskConfig, jobs_of
from adadpo_lightning.study.result_file import read_result

if TYPE_CHECKING:
    from adadpo_lightning.study.grid import Job, StudyConfig

# Seconds of a job of the embedded task at its default size, two side by side on 2 cores and nothing else: those of
# docs/study/balance_questions.
PREPARE, CELL = 64.0, 11.0


def plan_lines(study: StudyConfig, workers: int) -> list[str]:
    """Lines that say how many jobs a study has, how many are left, and about how long they take.

    Args:
        study: The study; nothing of it is written.
        workers: Number of parallel jobs.

    Raises:
        UserError: If a result cannot be read.
    """
    jobs = jobs_of(study)
    seconds = {job.name: found for job in jobs if (found := _seconds(study, job)) is not None}
    left = [job for job in jobs if job.name not in seconds]
    lines = [f"{len(jobs)} jobs, {len(seconds)} of them done, {len(left)} left, in {study.root}"]
    for arm in study.arms:
        cells = [job for job in jobs if job.cell is not None and job.cell.arm == arm]
        grid = " x ".join(str(len(each)) for each in (study.rates_of(arm), study.strengths_of(arm), study.seeds))
        lines.append(f"  {arm}: {grid} = {len(cells)} cells, {sum(job.name in seconds for job in cells)} done")
    return [*lines, time_line(study, left, [job for job in jobs if job.name in seconds], seconds, workers)]


def _seconds(study: StudyConfig, job: Job) -> float | None:
    path = result_path(study, job)
    if path.is_file() and (found := read_result(path))["status"] == "done":
        return float(found["seconds"])
    return None


def time_line(
    study: StudyConfig, left: Sequence[Job], done: Sequence[Job], seconds: dict[str, float], workers: int
) -> str:
    """About how long the jobs that are left take: from the means of those done, else from committed studies."""
    if not left:
        return "nothing is left to run"
    each: dict[bool, float | None] = {}
    for prepares in (True, False):
        own = [seconds[job.name] for job in done if (job.cell is None) == prepares]
        known = (PREPARE if prepares else CELL) if study.embedded == EmbeddedTaskConfig() else None
        each[prepares] = sum(own) / len(own) if own else known if study.task == "embedded" else None
    needed = [each[job.cell is None] for job in left]
    if None in needed:
        return "how long that takes is known once a cell is done; `doctor` times the steps of one `fit`"
    hours = sum(found for found in needed if found is not None) / workers / 3600
    cell = each[False]
    source = "as its own cells so far" if any(job.cell is not None for job in done) else "as in the committed studies"
    of_cell = "" if cell is None else f", {cell:.0f} s a cell {source}"
    return f"about {hours:.1f} hours with {workers} side by side{of_cell}"
