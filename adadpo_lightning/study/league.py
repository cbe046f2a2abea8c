"""A league of arms: the mean and the best cell of each over seeds, and comparisons corrected for their number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from adadpo_lightning.study.comparisons import Comparison
from adadpo_lightning.study.statistics import holm, t_interval, t_test

if TYPE_CHECKING:
    from adadpo_lightning.study.grid import StudyConfig
    from adadpo_lightning.study.results import Point, Results

NEAR = 2.0  # points below the best cell that still count as good


@dataclass(frozen=True)
class OverSeeds:
    """One number for each seed.

    Args:
        by_seed: The numbers; the index is the seed.
    """

    by_seed: pd.Series

    @property
    def interval(self) -> tuple[float, float, float]:
        """Mean and 95 % t-interval; NaN ends for fewer than two seeds."""
        return t_interval(self.by_seed.tolist())

    @property
    def p(self) -> float:
        """Two-sided p of the t-test that the mean is 0."""
        return t_test(self.by_seed.tolist())


@dataclass(frozen=True)
class Standing:
    """What one arm reaches in one measure.

    Args:
        arm: Its name.
        cells: Cells with a result under every seed; only these count in what follows.
        of: Cells of its grid.
        mean: Mean over the cells.
        best: The best cell, chosen on the other seeds than the one it is scored on.
        point: The best cell by the mean over all seeds; None without a cell.
        near: Share of the grid within `NEAR` of that cell; a cell without a result is not.
    """

    arm: str
    cells: int
    of: int
    mean: OverSeeds
    best: OverSeeds
    point: Point | None
    near: float


def cells_by_seed(results: Results, arm: str, measure: str) -> pd.DataFrame:
    """A measure of an arm, a row for each cell that has it under every seed of the arm, a column for each seed."""
    return results.of_arm(arm, measure).unstack("seed").dropna().sort_index()


def choices(table: pd.DataFrame) -> dict[int, Point]:
    """For each seed the cell with the highest mean over the other seeds; empty with fewer than two seeds or no cell.

    The score of a cell that was chosen by that very score is too high (the winner's curse); here the seed that scores
    has no part in the choice.
    """
    if len(table) == 0 or table.shape[1] < 2:
        return {}
    return {seed: table.drop(columns=seed).mean(axis=1).idxmax() for seed in table.columns}


def at(table: pd.DataFrame, chosen: Mapping[int, Point]) -> OverSeeds:
    """The values of the chosen cell of each seed; a cell that the table lacks is left out."""
    found = {seed: table.loc[point, seed] for seed, point in chosen.items() if point in table.index and seed in table}
    return OverSeeds(pd.Series(found, dtype="float64"))


def standing(study: StudyConfig, results: Results, arm: str, measure: str) -> Standing:
    """Mean, best cell and robustness of an arm."""
    table, size = cells_by_seed(results, arm, measure), grid_size(study, arm)
    means = table.mean(axis=1)
    point = means.idxmax() if len(means) else None
    near = float((means >= means.max() - NEAR).sum()) / size if len(means) else math.nan
    return Standing(arm, len(table), size, OverSeeds(table.mean()), at(table, choices(table)), point, near)


def grid_size(study: StudyConfig, arm: str) -> int:
    """Cells of an arm under one seed."""
    return len(study.rates_of(arm)) * len(study.strengths_of(arm))


def difference(results: Results, comparison: Comparison, measure: str, *, best: bool) -> OverSeeds:
    """Difference of two arms by seed.

    Args:
        results: Results of the study.
        comparison: The two arms.
        measure: A key of `MEASURES`.
        best: Between their best cells, each chosen on the other seeds. False compares means: over the cells that both
            have, or, where their strengths have different scales and no cell is shared, each over its own grid.
    """
    one, other = (cells_by_seed(results, arm, measure) for arm in (comparison.arm, comparison.against))
    if best:
        return OverSeeds((at(one, choices(one)).by_seed - at(other, choices(other)).by_seed).dropna())
    if len(shared := one.index.intersection(other.index)):
        one, other = one.loc[shared], other.loc[shared]
    return OverSeeds((one.mean() - other.mean()).dropna())


def all_comparisons(study: StudyConfig, results: Results) -> list[Comparison]:
    """Every twin with its plain arm, every control with its arm, every arm with the constant of its own mean."""
    found = []
    for name, arm in study.arms.items():
        if arm.twin_of is not None:
            found.append(Comparison(name, arm.twin_of, "twin"))
        if arm.control is not None:
            found.append(Comparison(name, arm.against or baseline(study), arm.control))
        if arm.coefficient_of is not None:
            found.append(Comparison(arm.coefficient_of, name, "adapting to each pair"))
    present = set(results.arms())
    return [each for each in found if {each.arm, each.against} <= present]


def baseline(study: StudyConfig) -> str:
    """The arm that all others are compared with: the first that is neither a twin nor a control."""
    plain = [name for name, arm in study.arms.items() if arm.twin_of is None and arm.control is None]
    return plain[0] if plain else next(iter(study.arms))


@dataclass(frozen=True)
class Corrected:
    """A comparison and its p, corrected for the number of comparisons tested with it.

    Args:
        comparison: The two arms.
        difference: Their difference by seed.
        p: Holm's adjusted p of the t-test.
    """

    comparison: Comparison
    difference: OverSeeds
    p: float

    @property
    def separated(self) -> bool:
        """Whether the difference remains at 5 % after the correction."""
        return self.p < 0.05


def corrected(results: Results, family: Sequence[Comparison], measure: str, *, best: bool) -> list[Corrected]:
    """All comparisons of one family in one measure, corrected together by Holm's method."""
    found = [difference(results, each, measure, best=best) for each in family]
    adjusted = holm([each.p for each in found])
    return [Corrected(*each) for each in zip(family, found, adjusted, strict=True)]
