"""From the results of cells to effects with intervals: paired by cell, judged over pipeline seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adadpo_lightning.errors import UserError
from adadpo_lightning.metrics import names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adadpo_lightning.study.grid import StudyConfig

Point = tuple[float, float]  # learning rate and beta


@dataclass(frozen=True)
class Measure:
    """One number of a cell as the report shows it.

    Args:
        label: What it is called.
        unit: Its unit.
        keys: Names under which a result has it; the first that is there counts.
        scale: What the stored number is multiplied by.
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
    "length": Measure("length", "tokens", ("length", "mean_length")),
    "accuracy": Measure("reward accuracy", "%", (names.val(names.REWARDS_ACCURACIES),), 100.0),
    "margin": Measure("reward margin", "", (names.val(names.REWARDS_MARGINS),), digits=2),
    "ratio": Measure("balance ratio", "", (names.val(names.BALANCE_RATIO),), digits=3),
    "chosen": Measure("drift of chosen", "nats", (names.val(names.DISPLACEMENT_CHOSEN),)),
    "rejected": Measure("drift of rejected", "nats", (names.val(names.DISPLACEMENT_REJECTED),)),
}


@dataclass(frozen=True)
class Results:
    """What a study has measured.

    Args:
        values: From arm, point and seed to the measures of that cell.
        failed: Names of cells that failed.
        missing: Names of cells that have no result yet.
        seconds: Machine time of all finished cells.
        folders: Directory of each finished cell's run.
    """

    values: dict[tuple[str, Point, int], dict[str, float]]
    failed: list[str]
    missing: list[str]
    seconds: float
    folders: dict[tuple[str, Point, int], Path]

    def points(self, *arms: str) -> list[Point]:
        """Points of the grid at which every one of `arms` has a result under some seed."""
        each = [{point for arm, point, _ in self.values if arm == name} for name in arms]
        return sorted(set.intersection(*each))

    def seeds(self, *arms: str) -> list[int]:
        """Seeds under which every one of `arms` has a result."""
        each = [{seed for arm, _, seed in self.values if arm == name} for name in arms]
        return sorted(set.intersection(*each))

    def over_seeds(self, arm: str, point: Point, measure: str) -> NDArray[np.float64]:
        """A measure of one cell under every seed that has it."""
        found = (self.values.get((arm, point, seed), {}).get(measure) for seed in self.seeds(arm))
        return np.array([value for value in found if value is not None])

    def has(self, measure: str) -> bool:
        """Whether any cell has the measure."""
        return any(measure in found for found in self.values.values())


def read_results(study: StudyConfig) -> Results:
    """Read what the cells of a study have written.

    Raises:
        UserError: If no cell is finished.
    """
    from adadpo_lightning.study.grid import cells_of

    values: dict[tuple[str, Point, int], dict[str, float]] = {}
    folders: dict[tuple[str, Point, int], Path] = {}
    failed, missing, seconds = [], [], 0.0
    for cell in cells_of(study):
        folder = study.root / "cells" / cell.name
        if not (folder / "result.json").is_file():
            missing.append(cell.name)
            continue
        found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        if found["status"] != "done":
            failed.append(cell.name)
            continue
        key = (cell.arm, (cell.lr, cell.beta), cell.seed)
        values[key], folders[key] = measures_of(found["metrics"]), folder / found["run"]
        seconds += found["seconds"]
    if not values:
        raise UserError(str(study.root), "no cell of the study is finished", "run it first")
    return Results(values, failed, missing, seconds, folders)


def measures_of(metrics: dict[str, float]) -> dict[str, float]:
    """The report's measures of one cell; those that it has."""
    found: dict[str, float] = {}
    for name, measure in MEASURES.items():
        for key in measure.keys:
            if key in metrics:
                found[name] = metrics[key] * measure.scale
                break
    if {"lc", "wr"} <= found.keys():
        found["lc_wr"] = found["lc"] - found["wr"]
    return {name: value for name, value in found.items() if math.isfinite(value)}


@dataclass(frozen=True)
class Effect:
    """A difference between two arms, paired by cell and averaged over the cells of each seed.

    Args:
        mean: Mean over seeds.
        low: Lower end of the 95 % t-interval over seeds; NaN with one seed.
        high: Its upper end.
        by_seed: The difference of each seed.
        p: Of the exact sign-flip test over seeds, two-sided; 2 / 2^seeds at best.
        cells: Cells compared under each seed.
    """

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    p: float
    cells: int

    @property
    def separated(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def effect(results: Results, arm: str, against: str, measure: str, points: Iterable[Point] | None = None) -> Effect:
    """Difference of a measure between `arm` and `against`.

    Args:
        results: Of the study.
        arm: Name of an arm.
        against: Name of the other.
        measure: A key of `MEASURES`.
        points: Cells to compare; None takes all that both have.

    Returns:
        The effect, with NaN where nothing can be compared.
    """
    wanted = list(results.points(arm, against) if points is None else points)
    by_seed, most = [], 0
    for seed in results.seeds(arm, against):
        differences = paired(results, arm, against, measure, wanted, seed)
        if differences:
            by_seed.append(float(np.mean(differences)))
            most = max(most, len(differences))
    mean, low, high = t_interval(by_seed)
    return Effect(mean, low, high, tuple(by_seed), sign_flip(by_seed), most)


def effect_of_best(results: Results, arm: str, against: str, measure: str) -> Effect:
    """Difference between each arm's own best cell, by its mean over seeds; one cell a seed."""
    points = {name: best_point(results, name, measure) for name in (arm, against)}
    by_seed = []
    for seed in results.seeds(arm, against):
        pair = [results.values.get((name, points[name], seed), {}).get(measure) for name in (arm, against)]
        if pair[0] is not None and pair[1] is not None:
            by_seed.append(pair[0] - pair[1])
    mean, low, high = t_interval(by_seed)
    return Effect(mean, low, high, tuple(by_seed), sign_flip(by_seed), 1)


def best_point(results: Results, arm: str, measure: str) -> Point:
    """The point of the grid at which an arm's mean over seeds is highest."""

    def mean(point: Point) -> float:
        values = results.over_seeds(arm, point, measure)
        return float(values.mean()) if len(values) else -math.inf

    return max(results.points(arm), key=mean)


def paired(results: Results, arm: str, against: str, measure: str, points: Sequence[Point], seed: int) -> list[float]:
    """Differences of one seed, over the cells that both arms have."""
    found = []
    for point in points:
        one = results.values.get((arm, point, seed), {}).get(measure)
        other = results.values.get((against, point, seed), {}).get(measure)
        if one is not None and other is not None:
            found.append(one - other)
    return found


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean and t-interval of independent values; NaN ends for fewer than two.

    Example:
        >>> [round(v, 2) for v in t_interval([1.0, 2.0, 3.0])]
        [2.0, -0.48, 4.48]
    """
    if not values:
        return math.nan, math.nan, math.nan
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(_scipy().t.ppf(0.5 + level / 2, len(values) - 1)) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return mean, mean - half, mean + half


def sign_flip(values: Sequence[float]) -> float:
    """Two-sided p of the exact sign-flip test: how often random signs give a mean at least as far from zero.

    Example:
        >>> sign_flip([1.0, 2.0, 1.5, 3.0, 0.5])
        0.0625
    """
    if not values:
        return math.nan
    signs = np.array(list(product((1.0, -1.0), repeat=len(values))))
    means = np.abs(signs @ np.asarray(values))
    return float(np.mean(means >= abs(float(np.sum(values))) - 1e-12))


@dataclass(frozen=True)
class Count:
    """How many cells one arm wins against another.

    Args:
        wins: Cells with a difference above zero.
        cells: Cells compared.
        low: Lower end of the 95 % Clopper-Pearson interval of the share.
        high: Its upper end.
    """

    wins: int
    cells: int
    low: float
    high: float


def count_wins(differences: Sequence[float]) -> Count:
    """Count differences above zero, with the interval that independent cells would have."""
    wins, cells = sum(d > 0 for d in differences), len(differences)
    if not cells:
        return Count(0, 0, math.nan, math.nan)
    interval = _scipy().binomtest(wins, cells).proportion_ci()
    return Count(wins, cells, float(interval.low), float(interval.high))


def _scipy() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise UserError("study", "the report needs scipy", "pip install 'adadpo-lightning[eval]'") from error
    return stats
