"""SLURM: put the job back into the queue, to resume from the checkpoint that was just saved."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from adadpo_lightning import log

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

# Under SLURM, `Trainer.fit` without a checkpoint resumes from the file of this name in `default_root_dir`.
FOUND_BY_LIGHTNING = "hpc_ckpt_1.ckpt"


def requeue(trainer: Trainer, checkpoint: str | None) -> None:
    """Requeue the SLURM job of this run, on rank zero.

    The command line resumes with ``--auto_resume true``, a script by Lightning's own rule, for which the checkpoint is
    linked under the name that it looks for.

    Args:
        trainer: The trainer of the run.
        checkpoint: What was saved; None if checkpoints are disabled.
    """
    if not trainer.is_global_zero:
        return
    if checkpoint is not None and "://" not in checkpoint:
        link = Path(trainer.default_root_dir) / FOUND_BY_LIGHTNING
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(checkpoint, link.parent))
    job = job_id()
    try:
        # A fixed program, no shell.
        done = subprocess.run(["scontrol", "requeue", job], check=False, capture_output=True, text=True)  # noqa: S603, S607
        problem = None if done.returncode == 0 else done.stderr.strip() or f"exit status {done.returncode}"
    except OSError as error:
        problem = str(error)
    if problem is None:
        log.info(f"requeued SLURM job {job}")
    else:
        log.warn(f"SLURM job {job} could not be requeued ({problem}): submit it again")


def job_id() -> str:
    """The job as ``scontrol`` names it: of an array, its own element."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return os.environ["SLURM_JOB_ID"] if array is None else f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
