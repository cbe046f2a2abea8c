"""Run the jobs of a study in parallel, each in its own process, and resume after an interruption."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from adadpo_lightning.runs.lock import lock_directory
from adadpo_lightning.study.directory import SAVED, result_path, status_of
from adadpo_lightning.study.grid import jobs_of
from adadpo_lightning.study.processes import Processes, Runner, stop_on_signals
from adadpo_lightning.study.result_file import read_result, write_result

if TYPE_CHECKING:
    from adadpo_lightning.study.grid import Job, StudyConfig


@dataclass
class Progress:
    """Progress of a study; prints one line for each job that ends.

    Args:
        total: Number of jobs of the study.
        done: Number of finished jobs, including those of earlier calls.
        workers: Number of parallel jobs.
    """

    total: int
    done: int
    workers: int
    failed: int = 0
    seconds: list[float] = field(default_factory=list)

    def report(self, job: Job, seconds: float, error: str | None) -> None:
        """Print the job that ended and the estimated time left."""
        self.seconds.append(seconds)
        self.done, self.failed = self.done + (error is None), self.failed + (error is not None)
        left = self.total - self.done - self.failed
        recent = self.seconds[-20:]
        eta = left * sum(recent) / len(recent) / self.workers
        said = f"FAILED: {error}" if error else f"{seconds:.0f} s"
        print(f"[{self.done + self.failed}/{self.total}] {job.name}  {said}  (ETA {eta / 60:.0f} min)", flush=True)


def run_study(
    study: StudyConfig, workers: int, command: Sequence[str] | None = None, runner: Runner | None = None
) -> int:
    """Run all jobs that are not done.

    SIGTERM, SIGINT and SIGHUP also stop the running jobs; the next call resumes them.

    Args:
        study: The study; `save_study` has written it.
        workers: Number of parallel jobs.
        command: Command of a job, to which ``--job NAME`` is appended; None is this package's ``study``.
        runner: What runs the commands; None runs them as processes of this machine.

    Returns:
        The number of jobs that failed or depend on a job that failed.

    Raises:
        UserError: If another process is running the study, or a result cannot be read.
        SystemExit: If a signal stopped it.
    """
    saved = str(study.root / SAVED)
    base = command or [sys.executable, "-m", "adadpo_lightning", "study", "--config", saved]
    environment, processes = _environment(workers), runner or Processes()

    def start(job: Job) -> str | None:
        return run_in_process([*base, "--job", job.name], result_path(study, job), environment, job, processes)

    with lock_directory(study.root, "output_dir"), stop_on_signals(processes):
        jobs = jobs_of(study)
        finished = {job.name for job in jobs if status_of(study, job) == "done"}
        progress = Progress(len(jobs), len(finished), workers)
        print(f"{len(jobs)} jobs, {len(finished)} of them done, {workers} side by side, in {study.root}", flush=True)
        left = [job for job in jobs if job.name not in finished]
        return len(schedule(left, finished, workers, start, progress.report))


def schedule(
    jobs: Sequence[Job],
    finished: set[str],
    workers: int,
    start: Callable[[Job], str | None],
    report: Callable[[Job, float, str | None], None],
) -> list[Job]:
    """Start each job once its dependencies are done, at most `workers` at a time.

    Args:
        jobs: Jobs to run, in order of preference.
        finished: Names of jobs that are already done.
        workers: Number of parallel jobs.
        start: Runs one job and returns None or its error.
        report: Called for each job that ended: the job, its seconds, and its error.

    Returns:
        Jobs that failed or depend on a job that failed.
    """
    waiting, done = list(jobs), set(finished)
    failed: list[Job] = []
    running: dict[Future[str | None], tuple[Job, float]] = {}
    with ThreadPoolExecutor(workers) as pool:
        while True:
            ready = [job for job in waiting if done.issuperset(job.needs)][: workers - len(running)]
            for job in ready:
                waiting.remove(job)
                running[pool.submit(start, job)] = (job, time.monotonic())
            if not running:
                return failed + waiting
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, begun = running.pop(future)
                error = future.result()
                report(job, time.monotonic() - begun, error)
                if error is None:
                    done.add(job.name)
                else:
                    failed.append(job)


def run_in_process(
    command: Sequence[str], result: Path, environment: Mapping[str, str], job: Job, processes: Runner
) -> str | None:
    """Run the command of a job, with its output in ``log.txt`` next to its result.

    Returns:
        None, or the last line of its output if it failed; the failure is also written to the result file, unless
        `processes` was stopped.
    """
    result.parent.mkdir(parents=True, exist_ok=True)
    result.unlink(missing_ok=True)
    log = result.with_name("log.txt")
    with log.open("w", encoding="utf-8") as output:
        status = processes.run(command, output, environment)
    if result.is_file() and read_result(result)["status"] == "done":
        return None
    if processes.stopped:
        return "stopped"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "no output")
    error = f"exit {status}: {last} ({log})"
    cell = job.cell
    described = {} if cell is None else {name: getattr(cell, name) for name in ("arm", "loss", "lr", "beta", "seed")}
    failed = {"status": "failed", "error": error, "seconds": 0.0, "cell": described, "run": "run", "metrics": {}}
    write_result(result, failed)
    return error


def _environment(workers: int) -> dict[str, str]:
    """Divide the threads among the jobs, unless the user set OMP_NUM_THREADS."""
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    return {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false", **os.environ}
