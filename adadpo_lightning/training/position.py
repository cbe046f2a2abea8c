"""Where a run is, in optimizer steps: what the schedules of a loss depend on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

TOTAL_STEPS = "total_steps"


class Position(NamedTuple):
    """Optimizer steps taken, and those of the whole run."""

    step: int
    total_steps: int


def total_steps(trainer: Trainer) -> int:
    """Optimizer steps of the whole run, over all its epochs.

    Raises:
        UserError: If nothing bounds the run, or the length of its data is unknown and `max_steps` is not set.
    """
    total = trainer.estimated_stepping_batches
    if total == float("inf"):
        raise UserError("trainer.max_epochs", "neither max_epochs nor max_steps bounds the run", "set one of them")
    if total < 0:  # Lightning returns max_steps, and -1 means that there is none
        raise UserError(
            "trainer.max_steps",
            "the number of optimizer steps is unknown: the data has no length and max_steps is not set",
            "set trainer.max_steps",
        )
    return int(total)


def position_of(checkpoint: Mapping[str, Any], record: Mapping[str, Any]) -> Position | None:
    """The position at which a checkpoint was written; None if it was written without a scheduled loss."""
    total = record.get(TOTAL_STEPS)
    return None if total is None else Position(int(checkpoint["global_step"]), int(total))
