"""Tables and sentences of a league's report, as plain text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adadpo_lightning.study.comparisons import Comparison
from adadpo_lightning.study.league import (
    NEAR,
    Corrected,
    OverSeeds,
    Standing,
    all_comparisons,
    at,
    baseline,
    cells_by_seed,
    choices,
    corrected,
    standing,
)
from adadpo_lightning.study.results import MEASURES, Results

if TYPE_CHECKING:
    from adadpo_lightning.study.grid import StudyConfig

BESIDE = (
    "kl",
    "kl_token",
    "length",
    "fluency",
    "chosen",
    "rejected",
    "accuracy",
    "ratio",
    "coefficient",
    "correlation",
)


def judged_by(results: Results) -> list[str]:
    """The measures that rank the arms; without a judge the accuracy on validation pairs.

    Where answers have a gold win rate, the judge's raw one is not among them: the difference is the judge's bias.
    """
    first = "gold" if results.has("gold") else "wr"
    return [name for name in (first, "lc") if results.has(name)] or ["accuracy"]


def section(study: StudyConfig, results: Results, measure: str) -> dict[str, Any]:
    """Template values of one measure that ranks."""
    others = [Comparison(arm, baseline(study), "loss") for arm in results.arms() if arm != baseline(study)]
    family = all_comparisons(study, results)
    against = corrected(results, others, measure, best=True)
    pairs = {best: corrected(results, family, measure, best=best) for best in (False, True)}
    ranked = ranking(study, results, measure)
    return {
        "label": MEASURES[measure].label,
        "baseline": baseline(study),
        "near": NEAR,
        "standings": standing_table(ranked, against, baseline(study)),
        "pairs": pair_table(pairs[False], pairs[True]) if family else None,
        "statements": [
            *(_sentence("of cell means", pairs[False]) if family else []),
            *(_sentence("of best cells", pairs[True]) if family else []),
            *_sentence(f"of best cells with {baseline(study)}'s", against),
        ],
        "beside": beside_table(results, [each.arm for each in ranked], measure),
    }


def ranking(study: StudyConfig, results: Results, measure: str) -> list[Standing]:
    """All arms, the highest best cell first, and at the end those without one."""
    found = [standing(study, results, arm, measure) for arm in results.arms()]
    return sorted(found, key=lambda each: (_missing(each.best), -each.best.interval[0], each.arm))


def _missing(found: OverSeeds) -> bool:
    return math.isnan(found.interval[0])


def standing_table(ranked: Sequence[Standing], against: Sequence[Corrected], first: str) -> list[list[str]]:
    """One row for each arm."""
    differences = {each.comparison.arm: each for each in against}
    lines = [["arm", "cells", "best cell", "at", f"best - {first}'s", "p (Holm)", "mean of cells", f"within {NEAR:g}"]]
    for each in ranked:
        other = differences.get(each.arm)
        lines.append(
            [
                each.arm,
                f"{each.cells}/{each.of}",
                shown(each.best),
                "-" if each.point is None else f"lr {each.point[0]:g}, {each.point[1]:g}",
                "-" if other is None else _marked(other),
                "-" if other is None else _p(other.p),
                shown(each.mean),
                "-" if math.isnan(each.near) else f"{100 * each.near:.0f} %",
            ]
        )
    return lines


def pair_table(means: Sequence[Corrected], bests: Sequence[Corrected]) -> list[list[str]]:
    """One row for each comparison: differences of cell means and of best cells, with p before and after correction."""
    lines = [["", "mean of cells", "p", "p (Holm)", "best cell", "p", "p (Holm)"]]
    for mean, best in zip(means, bests, strict=True):
        texts = [text for each in (mean, best) for text in (_marked(each), _p(each.difference.p), _p(each.p))]
        lines.append([f"{mean.comparison.title} ({mean.comparison.role})", *texts])
    return lines


def beside_table(results: Results, arms: Sequence[str], measure: str) -> list[list[str]]:
    """The other measures, at the best cell of `measure` and as the mean of cells."""
    names = [name for name in (*judged_by(results), *BESIDE) if name != measure and results.has(name)]
    heads = [f"{MEASURES[name].label}, {kind}" for kind in ("best", "mean") for name in names]
    lines = [["arm", *heads]]
    for arm in arms:
        chosen = choices(cells_by_seed(results, arm, measure))
        tables = {name: cells_by_seed(results, arm, name) for name in names}
        best = [shown(at(table, chosen), MEASURES[name].digits) for name, table in tables.items()]
        mean = [shown(OverSeeds(table.mean()), MEASURES[name].digits) for name, table in tables.items()]
        lines.append([arm, *best, *mean])
    return lines


def shown(found: OverSeeds, digits: int = 1, sign: str = "") -> str:
    """Mean and 95 % interval."""
    mean, low, high = found.interval
    if math.isnan(mean):
        return "-"
    if math.isnan(low):
        return f"{mean:{sign}.{digits}f}"
    return f"{mean:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def _marked(each: Corrected) -> str:
    text = shown(each.difference, sign="+")
    return f"**{text}**" if each.separated else text


def _p(p: float) -> str:
    return "-" if math.isnan(p) else f"{p:.2g}"


def _sentence(what: str, family: Sequence[Corrected]) -> list[str]:
    counted = [each for each in family if not math.isnan(each.p)]
    if not counted:
        return [f"Differences {what}: none can be tested with fewer than two seeds."]
    alone = sum(each.difference.p < 0.05 for each in counted)
    remain = sum(each.separated for each in counted)
    return [
        f"Differences {what}: {alone} of {len(counted)} are separated from zero at 5 % one by one, {remain} after "
        "Holm's correction for all of them."
    ]
