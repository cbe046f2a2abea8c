"""The result of ``validate`` over named sets: one row for each metric, one column for each set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

from adadpo_lightning import log
from adadpo_lightning.callbacks.stages import val_stages

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class ValidationTable(Callback):
    """Prints one table where Lightning would print the metrics of all sets once for each set.

    A single set has Lightning's own table; ``verbose=False`` of ``validate`` turns off either.
    """

    def __init__(self) -> None:
        self._wanted = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over from Lightning."""
        loop = trainer.validate_loop
        self._wanted = trainer.state.fn == "validate" and loop.verbose and len(val_stages(trainer)) > 1
        if self._wanted:
            loop.verbose = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print."""
        if self._wanted:
            _print(table_rows(trainer.callback_metrics, val_stages(trainer)))


def table_rows(metrics: Mapping[str, Any], stages: Sequence[str]) -> list[list[str]]:
    """The rows of the table, its header first; a metric of no set is in a row of its own.

    Example:
        >>> table_rows({"val/a/loss": 0.5, "val/b/loss": 0.25, "val/mine": 2.0}, ["val/a", "val/b"])
        [['metric', 'a', 'b'], ['loss', '0.5', '0.25'], ['val/mine', '2', '']]
    """
    of_set = {stage: {tag for tag in metrics if tag.startswith(f"{stage}/")} for stage in stages}
    shared = sorted({tag.removeprefix(f"{stage}/") for stage, tags in of_set.items() for tag in tags})
    others = sorted(tag for tag in metrics if not any(tag in tags for tags in of_set.values()))
    rows = [["metric", *(stage.removeprefix("val/") for stage in stages)]]
    rows += [[name, *(_number(metrics.get(f"{stage}/{name}")) for stage in stages)] for name in shared]
    return rows + [[tag, _number(metrics[tag]), *[""] * (len(stages) - 1)] for tag in others]


def _number(value: Any) -> str:
    return "" if value is None else f"{float(value):.6g}"


def _print(rows: list[list[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Validation")
    for number, name in enumerate(rows[0]):
        table.add_column(Text(name), justify="right" if number else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*map(Text, row))  # brackets in the name of a metric are no markup
    log.show(table)
