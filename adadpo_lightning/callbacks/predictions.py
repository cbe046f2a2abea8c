"""Write the results of ``predict``, one JSON line per pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import BasePredictionWriter

from adadpo_lightning.data.position import sharing
from adadpo_lightning.strategies.capabilities import first_of_its_data

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class WritePredictions(BasePredictionWriter):
    """Writes ``<output_dir>/predictions.jsonl``, or ``predictions-rank0.jsonl`` etc. with several data-parallel ranks.

    Each line has the dataset row, the positions of the answers in its ranked list (0 and 1 for a pair), summed
    log-probabilities (nats) and implicit rewards of both answers, and the margin.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self._path: Path | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create an empty file."""
        ranks, rank = sharing(trainer)
        if not first_of_its_data(trainer.strategy):
            return  # another rank writes the same
        name = "predictions.jsonl" if ranks == 1 else f"predictions-rank{rank}.jsonl"
        self._path = Path(trainer.default_root_dir) / name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("", encoding="utf-8")

    def write_on_batch_end(self, trainer: Trainer, pl_module: LightningModule, prediction: Any, *args: Any) -> None:
        """Append the pairs of a micro-batch; fillers have none."""
        if not prediction or self._path is None:
            return
        columns = {name: values.tolist() for name, values in prediction.items()}
        with self._path.open("a", encoding="utf-8") as file:
            for values in zip(*columns.values(), strict=True):
                row = dict(zip(columns, values, strict=True))
                row["margin"] = row["reward_chosen"] - row["reward_rejected"]
                file.write(json.dumps(row) + "\n")
