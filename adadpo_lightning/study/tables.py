"""Sentences and tables of the report, as plain text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from adadpo_lightning.study.comparisons import (
    Comparison,
    Effect,
    best_point,
    effect,
    effect_of_best,
    paired,
)
from adadpo_lightning.study.results import MEASURES, Results
from adadpo_lightning.study.statistics import Count, count_wins

if TYPE_CHECKING:
    from adadpo_lightning.study.grid import StudyConfig

HEADLINES = {
    "lc": "share of cells with higher LC",
    "wr": "share of cells with higher WR",
    "lc_wr": "share of cells with larger LC-minus-WR margin",
    "gold": "share of cells with higher gold WR",
}
EFFECTS = ("lc", "wr", "gold", "lc_wr", "kl", "length", "accuracy", "ratio", "chosen", "rejected")
JUDGED_BY = ("lc", "gold")  # measures of the statements


def arm_table(study: StudyConfig) -> list[list[str]]:
    """Table of the arms."""
    lines = [["arm", "loss", "role", "learning rates", "strength", "options"]]
    for name, arm in study.arms.items():
        role = f"control: {arm.control}" if arm.control else (f"twin of {arm.twin_of}" if arm.twin_of else "plain")
        options = {**arm.options, **({"coefficient": f"mean of {arm.coefficient_of}"} if arm.coefficient_of else {})}
        strengths = "-" if arm.strength is None else f"{arm.strength} {_list(study.strengths_of(name))}"
        said = ", ".join(f"{k}={v}" for k, v in options.items()) or "-"
        lines.append([name, f"`{arm.loss}`", role, _list(study.rates_of(name)), strengths, said])
    return lines


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def statements(results: Results, pair: Comparison, others: Sequence[Comparison]) -> list[str]:
    """Conclusions from the intervals, one sentence each."""
    said = []
    # Without a judge, only validation pairs are available.
    for measure in [name for name in JUDGED_BY if results.has(name)] or ["accuracy"]:
        for other in others:
            found = effect(results, other.arm, other.against, measure)
            said.append(_sentence(other, MEASURES[measure].label, found))
        found = effect_of_best(results, pair.arm, pair.against, measure)
        best = Comparison(pair.arm, pair.against, "each at its own best cell")
        said.append(_sentence(best, MEASURES[measure].label, found))
    return said


def _sentence(comparison: Comparison, label: str, found: Effect) -> str:
    if not found.by_seed:
        return f"**{comparison.title}** ({comparison.role}), {label}: no cell has this measure."
    seeds, size = len(found.by_seed), f"{found.mean:+.1f} points"
    start = f"**{comparison.title}** ({comparison.role}), {label}: {size}"
    if seeds < 2:
        return f"{start} with one seed, which says nothing about its error."
    interval = f"[{found.low:+.1f}, {found.high:+.1f}] over {seeds} seeds, sign-flip p = {found.p:.3g}"
    if found.separated:
        return f"{start} {interval}: {comparison.arm} is {'higher' if found.mean > 0 else 'lower'}."
    if comparison.role == "adapting to each pair":
        return f"{start} {interval}: the data do not show that adapting to each pair is what helps."
    return f"{start} {interval}: the data do not separate it from zero."


def headlines(study: StudyConfig, results: Results, pair: Comparison, others: Sequence[Comparison]) -> list[list[str]]:
    """The headline numbers of the paper, for this study's twins and controls."""
    beside = [other for other in others if other.against == pair.against]
    paper = bool(study.paper) and {"dpo", "adadpo"} == {pair.arm, pair.against}
    head = ["", *(other.title for other in beside), *(["paper (8B, not ours)"] if paper else [])]
    lines = [head]
    for measure, text in HEADLINES.items():
        if not results.has(measure):
            continue
        cells = [_wins(results, other, measure) for other in beside]
        lines.append([f"{text}, seed means", *cells, *([study.paper.get(text, "-")] if paper else [])])
        each = [", ".join(_wins_by_seed(results, other, measure)) for other in beside]
        lines.append(["the same, seed by seed", *each, *(["one run a cell"] if paper else [])])
    for measure in ("lc", "wr"):
        for arm in (pair.arm, pair.against):
            if results.has(measure):
                name = f"best {MEASURES[measure].label}, {arm}"
                rest = ["" for _ in beside[1:]]
                best = best_cell(results, arm, measure)
                lines.append([name, best, *rest, *([study.paper.get(name, "-")] if paper else [])])
    return lines


def _wins(results: Results, pair: Comparison, measure: str) -> str:
    means = [results.of_arm(arm, measure).groupby(level=["lr", "strength"]).mean() for arm in (pair.arm, pair.against)]
    return _count(count_wins((means[0] - means[1]).dropna().tolist()))


def _count(count: Count) -> str:
    if not count.cells:
        return "-"
    share, low, high = (100 * value for value in (count.wins / count.cells, count.low, count.high))
    return f"{count.wins}/{count.cells} ({share:.0f} %) [{low:.0f}, {high:.0f}]"


def _wins_by_seed(results: Results, pair: Comparison, measure: str) -> Iterator[str]:
    for _, found in paired(results, pair.arm, pair.against, measure).groupby(level="seed"):
        yield f"{int((found > 0).sum())}/{len(found)}"


def best_cell(results: Results, arm: str, measure: str) -> str:
    """The best seed mean of an arm, with its deviation and cell."""
    point = best_point(results, arm, measure)
    values = results.over_seeds(arm, point, measure)
    if not len(values):
        return "-"
    return f"{np.mean(values):.1f} ± {_sd(values)} (lr {point[0]:g}, {point[1]:g})"


def _sd(values: np.ndarray, digits: int = 1) -> str:
    return f"{np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "?"


def effect_table(results: Results, others: Sequence[Comparison]) -> list[list[str]]:
    """Differences with 95 % t-intervals over seeds."""
    lines = [["", *(f"{other.title} ({other.role})" for other in others)]]
    for name in EFFECTS:
        if results.has(name):
            measure = MEASURES[name]
            found = [effect(results, other.arm, other.against, name) for other in others]
            unit = f", {'points' if measure.unit == '%' else measure.unit}" if measure.unit else ""
            lines.append([f"{measure.label}{unit}", *(_effect(each, measure.digits) for each in found)])
    return lines


def _effect(found: Effect, digits: int) -> str:
    if math.isnan(found.mean):
        return "-"
    if len(found.by_seed) < 2:
        return f"{found.mean:+.{digits}f}"
    above = sum(value > 0 for value in found.by_seed)
    mark = "**" if found.separated else ""
    interval = f"[{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    return f"{mark}{found.mean:+.{digits}f}{mark} {interval} {above}/{len(found.by_seed)}"


def cell_table(results: Results) -> list[list[str]]:
    """Mean and standard deviation over seeds of every cell."""
    names = [name for name in MEASURES if results.has(name) and name != "lc_wr"]
    lines = [["arm", "lr", "strength", "seeds", *(MEASURES[name].label for name in names)]]
    runs = results.table.groupby(level=["arm", "lr", "strength"], sort=False).size()
    for arm in results.arms():
        for point in results.points(arm):
            values = {name: results.over_seeds(arm, point, name) for name in names}
            seeds = max((len(found) for found in values.values()), default=int(runs[(arm, *point)]))
            cells = [_mean_sd(found, MEASURES[name].digits) for name, found in values.items()]
            lines.append([arm, f"{point[0]:g}", f"{point[1]:g}", str(seeds), *cells])
    return lines


def _mean_sd(values: np.ndarray, digits: int) -> str:
    return f"{np.mean(values):.{digits}f} ± {_sd(values, digits)}" if len(values) else "-"
