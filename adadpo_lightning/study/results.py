"""Results of a study as one table: a row per cell and seed, a column per measure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from adadpo_lightning import log
from adadpo_lightning.errors import UserError
from adadpo_lightning.fingerprint import differences
from adadpo_lightning.metrics import names
from adadpo_lightning.study.grid import cells_of
from adadpo_lightning.study.result_file import metrics_in_fractions, read_result

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adadpo_lightning.study.grid import StudyConfig

Point = tuple[float, float]  # learning rate and beta
KEYS = ["arm", "lr", "strength", "seed"]


@dataclass(frozen=True)
class Measure:
    """A number of a cell in the report.

    Args:
        label: Label.
        unit: Unit in the report.
        keys: Names of the metric in a result; the first one present is used.
        scale: Factor from the stored number to `unit`.
        digits: Decimals shown.
    """

    label: str
    unit: str
    keys: tuple[str, ...]
    scale: float = 1.0
    digits: int = 1


MEASURES = {
    "lc": Measure("LC", "%", ("judge_win_rate_lc", "length_controlled_win_rate"), 100.0),
    "wr": Measure("WR", "%", ("judge_win_rate", "win_rate"), 100.0),
    "gold": Measure("gold WR", "%", ("gold_win_rate",), 100.0),
    "lc_wr": Measure("LC - WR", "%", ()),
    "kl": Measure("on-policy KL", "nats an answer", ("kl",), digits=2),
    "kl_token": Measure("on-policy KL", "nats a token", (names.val(names.KL_POLICY),), digits=3),
    "fluency": Measure("fluency", "nats a token", (names.val(names.GENERATION_REFERENCE_LOGPS),), digits=2),
    "length": Measure("length", "tokens", ("length", "mean_length")),
    "accuracy": Measure("reward accuracy", "%", (names.val(names.REWARDS_ACCURACIES),), 100.0),
    "margin": Measure("reward margin", "", (names.val(names.REWARDS_MARGINS),), digits=2),
    "ratio": Measure("balance ratio", "", (names.val(names.BALANCE_RATIO),), digits=3),
    "coefficient": Measure("mean coefficient", "", (names.train(names.BALANCE_COEFFICIENT),), digits=3),
    "chosen": Measure("drift of chosen", "nats", (names.val(names.DISPLACEMENT_CHOSEN),)),
    "correlation": Measure("margin-length correlation", "", (names.val(names.LENGTH_MARGIN_CORRELATION),), digits=2),
    "rejected": Measure("drift of rejected", "nats", (names.val(names.DISPLACEMENT_REJECTED),)),
}


@dataclass(frozen=True)
class Results:
    """Results of a study.

    Args:
        table: Measures as columns, in the units of `MEASURES`; the index is arm, learning rate, strength and seed.
        failed: Names of cells that failed.
        missing: Names of cells that have no result yet.
        seconds: Total run time of all finished cells.
        folders: Run directory of each finished cell, by index.
    """

    table: pd.DataFrame
    failed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    seconds: float = 0.0
    folders: Mapping[tuple[str, float, float, int], Path] = field(default_factory=dict)

    def arms(self) -> list[str]:
        """Arms with a result, in the order of the study."""
        return list(dict.fromkeys(self.table.index.get_level_values("arm")))

    def points(self, *arms: str) -> list[Point]:
        """Grid points at which all of `arms` have a result under some seed."""
        return sorted(set.intersection(*(set(zip(*self._levels(arm, "lr", "strength"), strict=True)) for arm in arms)))

    def seeds(self, *arms: str) -> list[int]:
        """Seeds under which all of `arms` have a result."""
        return sorted(set.intersection(*(set(self._levels(arm, "seed")[0]) for arm in arms)))

    def _levels(self, arm: str, *names: str) -> list[list[Any]]:
        index = self.table.index[self.table.index.get_level_values("arm") == arm]
        return [index.get_level_values(name).tolist() for name in names]

    def of_arm(self, arm: str, measure: str) -> pd.Series:
        """A measure of every cell of an arm that has it; the index is learning rate, strength and seed."""
        return self.table.xs(arm, level="arm")[measure].dropna()

    def over_seeds(self, arm: str, point: Point, measure: str) -> NDArray[np.float64]:
        """A measure of one cell under every seed that has it, shape (seeds,)."""
        values = self.of_arm(arm, measure)
        at = (values.index.get_level_values("lr") == point[0]) & (values.index.get_level_values("strength") == point[1])
        return np.asarray(values[at].sort_index(), dtype=np.float64)

    def has(self, measure: str) -> bool:
        """Whether any cell has the measure."""
        return bool(self.table[measure].notna().any())


def read_results(study: StudyConfig) -> Results:
    """Read the results of the cells of a study.

    Raises:
        UserError: If no cell is finished, a result cannot be read or does not tell the unit of its rates, or two cells
            ran with different configs or data.
    """
    rows: dict[tuple[str, float, float, int], dict[str, float]] = {}
    folders: dict[tuple[str, float, float, int], Path] = {}
    failed, missing, seconds, first, converted = [], [], 0.0, None, 0
    for cell in cells_of(study):
        path = study.root / "cells" / cell.name / "result.json"
        if not path.is_file():
            missing.append(cell.name)
            continue
        found = read_result(path)
        if found["status"] != "done":
            failed.append(cell.name)
            continue
        if shared := found.get("fingerprint", {}).get("shared"):
            first = first or (path.parent, shared)
            check_alike(*first, path.parent, shared)
        key = (cell.arm, cell.lr, cell.beta, cell.seed)
        metrics = metrics_in_fractions(path, found)
        converted += metrics != found["metrics"]
        rows[key], folders[key] = measures_of(metrics), path.parent / found["run"]
        seconds += found["seconds"]
    if not rows:
        raise UserError(str(study.root), "no cell of the study is finished", "run it first")
    if converted:
        log.warn(
            f"{converted} results in {study.root} were written by an earlier version with win rates in percent: "
            "they are converted to fractions"
        )
    return Results(table_of(rows), failed, missing, seconds, folders)


def check_alike(one: Path, first: dict[str, Any], other: Path, second: dict[str, Any]) -> None:
    """Check that two cells ran with the same configs and data."""
    if found := differences(first, second):
        problem = f"{one} and {other} ran with different settings: {'; '.join(found[:5])}"
        raise UserError("study", problem, "remove the directory of one of them and run it again")


def table_of(rows: Mapping[tuple[str, float, float, int], Mapping[str, float]]) -> pd.DataFrame:
    """The table of `Results`, from the measures of each cell; a measure that a cell lacks is NaN."""
    index = pd.MultiIndex.from_tuples(list(rows), names=KEYS)
    return pd.DataFrame(list(rows.values()), index=index, columns=list(MEASURES), dtype="float64")


def write_table(results: Results, path: Path) -> None:
    """Write ``results.csv``: one row for each cell and seed, six digits."""
    results.table.sort_index().to_csv(path, float_format="%.6g")


def read_table(path: Path) -> Results:
    """Read ``results.csv``."""
    table = pd.read_csv(path, keep_default_na=False, na_values=[""])  # an arm may be named null
    return Results(table.set_index(KEYS).reindex(columns=list(MEASURES)).astype("float64"))


def measures_of(metrics: dict[str, float]) -> dict[str, float]:
    """The measures that one cell has, in the units of `MEASURES`; values that are not finite are left out."""
    found: dict[str, float] = {}
    for name, measure in MEASURES.items():
        for key in measure.keys:
            if key in metrics:
                found[name] = metrics[key] * measure.scale
                break
    if {"lc", "wr"} <= found.keys():
        found["lc_wr"] = found["lc"] - found["wr"]
    return {name: value for name, value in found.items() if math.isfinite(value)}
