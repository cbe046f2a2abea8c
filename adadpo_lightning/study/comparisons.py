"""Comparisons of arms: which arms, and their difference, paired by cell, with intervals over pipeline seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadpo_lightning.study.statistics import sign_flip, t_interval

if TYPE_CHECKING:
    import pandas as pd

    from adadpo_lightning.study.grid import StudyConfig
    from adadpo_lightning.study.results import Point, Results


@dataclass(frozen=True)
class Comparison:
    """Two arms that the report compares.

    Args:
        arm: Name of an arm.
        against: Name of the arm it is compared with.
        role: Purpose of the comparison, in a word or two.
    """

    arm: str
    against: str
    role: str

    @property
    def title(self) -> str:
        """Name in the report."""
        return f"{self.arm} - {self.against}"


def twin_pairs(study: StudyConfig, results: Results) -> list[Comparison]:
    """Pairs of an adaptive arm and its plain arm with results at a common cell."""
    pairs = [Comparison(name, arm.twin_of, "twin") for name, arm in study.arms.items() if arm.twin_of is not None]
    return [pair for pair in pairs if _present(results, pair)]


def comparisons(study: StudyConfig, results: Results, pair: Comparison) -> list[Comparison]:
    """The pair and its controls: each control against the plain arm, and the twin against the static arm."""
    found = [pair]
    for name, arm in study.arms.items():
        if arm.control is not None and (arm.against or pair.against) == pair.against:
            found.append(Comparison(name, pair.against, arm.control))
        if arm.coefficient_of == pair.arm:
            found.append(Comparison(pair.arm, name, "adapting to each pair"))
    return [comparison for comparison in found if _present(results, comparison)]


def _present(results: Results, comparison: Comparison) -> bool:
    arms = {comparison.arm, comparison.against}
    return arms <= set(results.arms()) and bool(results.points(comparison.arm, comparison.against))


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
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def effect(results: Results, arm: str, against: str, measure: str, points: Iterable[Point] | None = None) -> Effect:
    """Difference of a measure between `arm` and `against`.

    Args:
        results: Results of the study.
        arm: Name of an arm.
        against: Name of the other arm.
        measure: A key of `MEASURES`.
        points: Cells to compare; None takes all that both have.

    Returns:
        The effect, with NaN where nothing can be compared.
    """
    found = paired(results, arm, against, measure)
    if points is not None:
        wanted = set(points)
        found = found[[(lr, strength) in wanted for lr, strength, _ in found.index]]
    by_seed = found.groupby(level="seed")
    return _over_seeds(by_seed.mean().tolist(), int(by_seed.size().max()) if len(found) else 0)


def effect_of_best(results: Results, arm: str, against: str, measure: str) -> Effect:
    """Difference between the best cells of both arms, by their means over seeds; one cell per seed."""
    best = [results.of_arm(name, measure) for name in (arm, against)]
    one, other = (
        values.xs(best_point(results, name, measure), level=["lr", "strength"]) if len(values) else values
        for name, values in zip((arm, against), best, strict=True)
    )
    return _over_seeds((one - other).dropna().sort_index().tolist(), 1)


def _over_seeds(by_seed: Sequence[float], cells: int) -> Effect:
    mean, low, high = t_interval(by_seed)
    return Effect(mean, low, high, tuple(by_seed), sign_flip(by_seed), cells)


def best_point(results: Results, arm: str, measure: str) -> Point:
    """The point of the grid at which an arm's mean over seeds is highest; the first one without the measure."""
    means = results.of_arm(arm, measure).groupby(level=["lr", "strength"]).mean()
    lr, strength = means.idxmax() if len(means) else results.points(arm)[0]
    return float(lr), float(strength)


def paired(results: Results, arm: str, against: str, measure: str) -> pd.Series:
    """Differences over the cells and seeds that both arms have; the index is learning rate, strength and seed."""
    return (results.of_arm(arm, measure) - results.of_arm(against, measure)).dropna().sort_index()
