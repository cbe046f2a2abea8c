"""Which checkpoint a run resumes from."""

from __future__ import annotations

import re
from pathlib import Path

from adadpo_lightning import log
from adadpo_lightning.checkpoints.integrity import damage, step_of
from adadpo_lightning.errors import UserError

PASSED_ON = ("best", "hpc", "registry")  # keywords that Lightning itself understands


def checkpoint_folder(output_dir: str) -> Path:
    """Where a run keeps its checkpoints."""
    return Path(output_dir) / "checkpoints"


def candidates(folder: Path) -> list[Path]:
    """Everything in `folder` that may be a valid checkpoint, including what a kill left between two renames."""
    if not folder.is_dir():
        return []
    left_over = (path for path in folder.iterdir() if re.fullmatch(r"\..*\.ckpt\.(partial|old)", path.name))
    return sorted([*folder.glob("*.ckpt"), *(path for path in left_over if path.is_dir())])


def latest_valid(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The valid checkpoint of the latest step.

    Args:
        folder: Directory of a run's checkpoints.

    Returns:
        The checkpoint, or None if no file is valid; and for each damaged file of a later step what is wrong with it.
    """
    damaged: dict[Path, str] = {}
    for path in sorted(candidates(folder), key=lambda path: _age(path, damaged), reverse=True):
        if path in damaged:
            continue
        if (reason := damage(path)) is None:
            return path, damaged
        damaged[path] = reason
    return None, damaged


def _age(path: Path, damaged: dict[Path, str]) -> tuple[int, float]:
    try:
        return step_of(path), path.stat().st_mtime
    except Exception as error:  # whatever a damaged file makes torch raise
        damaged[path] = damage(path) or f"it cannot be read ({str(error).splitlines()[0]})"
        return -1, 0.0


def resolve_checkpoint(ckpt_path: str | None, output_dir: str, *, auto_resume: bool = False) -> str | None:
    """What ``--ckpt_path`` and ``--auto_resume`` select.

    Args:
        ckpt_path: ``last`` for the latest valid checkpoint of the run, a path, or None.
        output_dir: Directory of the run.
        auto_resume: Take ``last`` if there is a checkpoint, and start fresh if there is not.

    Returns:
        The path of a valid checkpoint, or None to start fresh.

    Raises:
        UserError: If no checkpoint is found, or the given one is damaged.
    """
    folder = checkpoint_folder(output_dir)
    if ckpt_path in PASSED_ON or (ckpt_path is None and not auto_resume):
        return ckpt_path
    if ckpt_path is not None and ckpt_path != "last":
        return _checked(ckpt_path)
    found, damaged = latest_valid(folder)
    for path, reason in damaged.items():
        log.warn(f"{path} is damaged: {reason}. It is left as it is.")
    if found is not None:
        return str(found)
    if ckpt_path == "last" or damaged:
        problem = f"no checkpoint in {folder} is valid" if damaged else f"no checkpoint found in {folder}"
        raise UserError("ckpt_path", problem, "to start fresh, remove the option and choose another output_dir")
    log.info(f"No checkpoint found in {folder}: starting fresh.")
    return None


def _checked(ckpt_path: str) -> str:
    path = Path(ckpt_path)
    if "://" in ckpt_path:
        return ckpt_path
    if not path.exists():
        raise UserError("ckpt_path", f"no checkpoint {ckpt_path} found", "give a file, or last")
    if (reason := damage(path)) is not None:
        other, _ = latest_valid(path.parent)
        fix = "no other checkpoint in its directory is valid" if other is None else f"{other} is valid"
        raise UserError("ckpt_path", f"{ckpt_path} is damaged: {reason}", fix)
    return ckpt_path
