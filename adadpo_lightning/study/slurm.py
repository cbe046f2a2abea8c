"""Jobs as SLURM arrays: one array per layer of jobs whose dependencies are in earlier layers."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from adadpo_lightning.study.directory import SAVED, status_of
from adadpo_lightning.study.grid import jobs_of

if TYPE_CHECKING:
    from adadpo_lightning.study.grid import Job, StudyConfig


def layers_of(jobs: list[Job], finished: set[str]) -> list[list[Job]]:
    """Jobs grouped so that each group needs only jobs of earlier groups or finished ones."""
    left, done, layers = list(jobs), set(finished), []
    while left:
        layer = [job for job in left if done.issuperset(job.needs)]
        left = [job for job in left if job not in layer]
        done |= {job.name for job in layer}
        layers.append(layer)
    return layers


def write_slurm(study: StudyConfig, script: str, python: str = "python") -> list[Path]:
    """Write a script that submits every open job, and one list of job names per layer next to it.

    Args:
        study: The study; `save_study` has written it.
        script: File to write; ``bash FILE`` submits. Options of sbatch can be given in ``$SBATCH_OPTIONS``.
        python: Interpreter on the nodes.

    Returns:
        The files written.
    """
    path, saved = Path(script).resolve(), (study.root / SAVED).resolve()
    jobs = jobs_of(study)
    finished = {job.name for job in jobs if status_of(study, job) == "done"}
    lines = [
        "#!/usr/bin/env bash",
        f"# {study.name}: submit with `bash {path.name}`, for example",
        "# SBATCH_OPTIONS='--gpus=8 --time=4:00:00 --signal=SIGUSR1@120 --requeue --open-mode=append'.",
        "set -euo pipefail",
        "after=",
    ]
    written = [path]
    command = f"{shlex.quote(python)} -m adadpo_lightning study --config {shlex.quote(str(saved))}"
    for number, layer in enumerate(layers_of([job for job in jobs if job.name not in finished], finished), start=1):
        names = path.with_name(f"{path.stem}_jobs{number}.txt")
        names.write_text("".join(f"{job.name}\n" for job in layer), encoding="utf-8")
        written.append(names)
        lines += [
            # afterany, not afterok: a failed cell does not stop the rest; cells that need it report what is missing.
            f"id=$(sbatch --parsable ${{SBATCH_OPTIONS:-}} $after --array=1-{len(layer)} --job-name=study{number} "
            f"--wrap='srun {command} --job $(sed -n ${{SLURM_ARRAY_TASK_ID}}p {shlex.quote(str(names))})')",
            'after="--dependency=afterany:$id"',
        ]
    lines.append(f"echo 'When all have ended, for the report: {command} --report_only true'")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return written
