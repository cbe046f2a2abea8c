"""Run a study's jobs side by side, each in its own process, and go on where it was stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from adadpo_lightning.errors import UserError
from adadpo_lightning.study.cell import result_path
from adadpo_lightning.study.grid import as_document, jobs_of

if TYPE_CHECKING:
    from adadpo_lightning.study.grid import Job, StudyConfig

SAVED = "study.yaml"


def save_study(study: StudyConfig) -> Path:
    """Write ``study.yaml``, or see that the one that is there is the same grid with perhaps more in it.

    Raises:
        UserError: If the directory holds a study of another task or other training.
    """
    path = study.root / SAVED
    document = as_document(study)
    if path.exists():
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name in ("task", "embedded", "fit_configs", "fit_options", "evaluation"):
            if before.get(name) != document[name]:
                raise UserError(
                    name,
                    f"{study.root} holds a study with {before.get(name)}, got {document[name]}",
                    "its cells could not be compared: choose another output_dir",
                )
        for name, arm in before.get("arms", {}).items():
            now = document["arms"].get(name)
            if now is not None and _training_of(now) != _training_of(arm):
                raise UserError(f"arms.{name}", f"{study.root} holds cells of {arm}, got {now}", "give it another name")
    study.root.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def _training_of(arm: dict[str, Any]) -> dict[str, Any]:
    return {name: arm[name] for name in ("loss", "options", "strength", "coefficient_of", "training_seed")}


def status_of(study: StudyConfig, job: Job) -> str:
    """``done``, ``failed`` or ``open``."""
    path = result_path(study, job)
    if not path.is_file():
        return "open"
    return str(json.loads(path.read_text(encoding="utf-8"))["status"])


@dataclass
class Progress:
    """How far a study is; one line for each job that ends.

    Args:
        total: Jobs of the study.
        done: Those that are finished, from earlier calls too.
        workers: Jobs that run side by side.
    """

    total: int
    done: int
    workers: int
    failed: int = 0
    seconds: list[float] = field(default_factory=list)

    def report(self, job: Job, seconds: float, error: str | None) -> None:
        """Say what has ended, and when the rest will have."""
        self.seconds.append(seconds)
        self.done, self.failed = self.done + (error is None), self.failed + (error is not None)
        left = self.total - self.done - self.failed
        recent = self.seconds[-20:]
        eta = left * sum(recent) / len(recent) / self.workers
        said = f"FAILED: {error}" if error else f"{seconds:.0f} s"
        print(f"[{self.done + self.failed}/{self.total}] {job.name}  {said}  (ETA {eta / 60:.0f} min)", flush=True)


def run_study(study: StudyConfig, workers: int) -> int:
    """Run every job that is not done.

    Args:
        study: The study; `save_study` has written it.
        workers: Jobs that run side by side.

    Returns:
        The number of jobs that failed or could not be started because one that they need has failed.
    """
    jobs = jobs_of(study)
    finished = {job.name for job in jobs if status_of(study, job) == "done"}
    progress = Progress(len(jobs), len(finished), workers)
    print(f"{len(jobs)} jobs, {len(finished)} of them done, {workers} side by side, in {study.root}", flush=True)
    command = [sys.executable, "-m", "adadpo_lightning", "study", "--config", str(study.root / SAVED)]
    environment = _environment(workers)

    def start(job: Job) -> str | None:
        return run_in_process([*command, "--job", job.name], result_path(study, job), environment, job)

    return len(schedule([job for job in jobs if job.name not in finished], finished, workers, start, progress.report))


def schedule(
    jobs: Sequence[Job],
    finished: set[str],
    workers: int,
    start: Callable[[Job], str | None],
    report: Callable[[Job, float, str | None], None],
) -> list[Job]:
    """Start each job when what it needs is done, at most `workers` at a time.

    Args:
        jobs: What is to be run, in the order of preference.
        finished: Names of jobs that are done already.
        workers: How many run at one time.
        start: Runs one job and returns None, or why it failed.
        report: Is told of each job that has ended: the job, its seconds, and why it failed.

    Returns:
        Jobs that failed, and those that wait for one that did.
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


def run_in_process(command: Sequence[str], result: Path, environment: dict[str, str], job: Job) -> str | None:
    """Run a job's command with its output in ``log.txt`` beside its result.

    Returns:
        None, or the last line of its output if it failed; the result file then says so too.
    """
    result.parent.mkdir(parents=True, exist_ok=True)
    result.unlink(missing_ok=True)
    log = result.with_name("log.txt")
    with log.open("w", encoding="utf-8") as output:
        status = subprocess.run(command, stdout=output, stderr=output, env=environment, check=False).returncode  # noqa: S603  # our own command line, no shell
    if status == 0 and result.is_file():
        return None
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "no output")
    error = f"exit {status}: {said} ({log})"
    cell = job.cell
    described = {} if cell is None else {name: getattr(cell, name) for name in ("arm", "loss", "lr", "beta", "seed")}
    failed = {"status": "failed", "error": error, "seconds": 0.0, "cell": described, "run": "run", "metrics": {}}
    result.write_text(json.dumps(failed, indent=1), encoding="utf-8")
    return error


def _environment(workers: int) -> dict[str, str]:
    """Threads shared out over the jobs, unless the user has said how many."""
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    return {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false", **os.environ}
