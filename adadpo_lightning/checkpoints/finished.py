"""A run that ended: marked in its directory, so that a job system that starts it again finds nothing to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import EarlyStopping

from adadpo_lightning import fingerprint
from adadpo_lightning.checkpoints.integrity import step_of, sync_folder

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

MARKER = "finished.json"


def reached_its_end(trainer: Trainer) -> bool:
    """Whether training ended by its epochs, its steps or early stopping, and not by a limit of time or an error."""
    if 0 <= trainer.max_steps <= trainer.global_step:
        return True
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch:
        return True
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set in the trainer's connector
    return any(isinstance(callback, EarlyStopping) and callback.stopped_epoch for callback in callbacks)


def mark_finished(output_dir: str | Path, step: int, options: Mapping[str, Any]) -> None:
    """Say that a run ended, its export included.

    Args:
        output_dir: The run's directory.
        step: Its last optimizer step.
        options: `settings` of the run.
    """
    folder = Path(output_dir)
    partial = folder / f".{MARKER}.{os.getpid()}"
    partial.write_text(json.dumps({"step": step, "options": options}, indent=1), encoding="utf-8")
    partial.replace(folder / MARKER)
    sync_folder(folder)


def finished_step(
    output_dir: str | Path,
    options: Mapping[str, Any],
    checkpoint: str | None,
    complete: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> int | None:
    """The last step of a run that ended with the same options; None if there is more to do.

    Args:
        output_dir: The run's directory.
        options: `settings` of the run that is about to start.
        checkpoint: The run's latest valid checkpoint; if it is of an earlier step, the last one is damaged.
        complete: Adds the defaults of options that the version which ended the run did not have.
    """
    try:
        found = json.loads((Path(output_dir) / MARKER).read_text(encoding="utf-8"))
        step, before = int(found["step"]), complete(found["options"])
        same = not fingerprint.differences(before, json.loads(json.dumps(options)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    last_is_valid = checkpoint is None or step_of(Path(checkpoint)) >= step
    return step if same and last_is_valid else None


def unmark(output_dir: str | Path) -> None:
    """Forget that a run ended, because it continues."""
    (Path(output_dir) / MARKER).unlink(missing_ok=True)
