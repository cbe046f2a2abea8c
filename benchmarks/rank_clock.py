"""A callback for `growth.py` that notes what each rank of a run of this package takes."""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback


class RankClock(Callback):
    """Writes the CPU time of each step and the peak memory of this rank to the folder that RANK_CLOCK names."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.begin = 0.0

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        """A step begins."""
        self.begin = time.process_time()

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        """It has ended."""
        self.times.append(time.process_time() - self.begin)

    def on_fit_end(self, trainer: Any, *args: Any) -> None:
        """Write the file of this rank."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        note = {"step_cpu_s": self.times, "memory_mib": peak}
        path = Path(os.environ["RANK_CLOCK"]) / f"rank{trainer.global_rank}.json"
        path.write_text(json.dumps(note), encoding="utf-8")
