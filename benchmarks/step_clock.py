"""A callback for `end_to_end.py` that notes the moments of a run of this package."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback
from trl_dpo import note, note_memory


class StepClock(Callback):
    """Notes where each optimizer step begins and ends."""

    def __init__(self) -> None:
        self.steps = -1

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        """The first micro-batch of a step."""
        if trainer.global_step > self.steps:
            self.steps = trainer.global_step
            note("step begins")

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        """The last micro-batch of a step."""
        if trainer.global_step > self.steps:
            note("step ends")
            note_memory()
