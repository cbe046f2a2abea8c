"""Lightning's logger interface over `Table`."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from adadpo_lightning import log
from adadpo_lightning.runs.table import Table


class AppendingCSVLogger(Logger):
    """Metrics as ``<save_dir>/<name>/version_<n>/metrics.csv``, hyper-parameters as ``hparams.yaml`` beside it.

    Unlike Lightning's `CSVLogger`, each row is in the file as soon as it is logged, and no later one can lose it.

    Args:
        save_dir: Output directory of a run.
        name: Directory below it.
        resume: Continue the latest version there: rows that the resumed run writes again are moved to ``replaced.csv``.
            Otherwise a new version is written.
    """

    def __init__(self, save_dir: str, name: str = "csv", resume: bool = False) -> None:
        super().__init__()
        self._folder = Path(save_dir) / name
        self._save_dir = save_dir
        self._name = name
        self._resume = resume
        self._version: int | None = None
        self._table: Table | None = None

    @property
    def name(self) -> str:
        """The directory below `save_dir`."""
        return self._name

    @property
    def version(self) -> int:
        """The version that is written."""
        if self._version is None:
            found = [re.fullmatch(r"version_(\d+)", path.name) for path in self._folder.glob("version_*")]
            numbers = [int(match[1]) for match in found if match]
            self._version = max(numbers, default=0 if self._resume else -1) + (not self._resume)
        return self._version

    @property
    def save_dir(self) -> str:
        """Output directory of the run."""
        return self._save_dir

    @property
    def log_dir(self) -> str:
        """Directory of the version."""
        return str(self._folder / f"version_{self.version}")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Write the hyper-parameters."""
        folder = Path(self.log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_hparams_to_yaml(str(folder / "hparams.yaml"), params)

    @rank_zero_only
    def save(self) -> None:
        """Wait until the rows are on the disk; every checkpoint asks for this."""
        if self._table is not None:
            self._table.sync()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Write one row.

        Args:
            metrics: Values by name.
            step: Optimizer step; None is 0.
        """
        if self._table is None:
            self._table = Table(Path(self.log_dir) / "metrics.csv", continued=self._resume)
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        if moved := self._table.append(step or 0, values):
            log.info(f"{self._table.path}: {moved} rows of step {step} or later are written again; see replaced.csv.")
