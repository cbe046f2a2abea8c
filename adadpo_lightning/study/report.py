"""The report of a study in Markdown, with its figures and one CSV row a cell: what the data show, a null result too."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adadpo_lightning.study.statistics import (
    MEASURES,
    Count,
    Effect,
    Results,
    best_point,
    count_wins,
    effect,
    effect_of_best,
    paired,
    read_results,
)

if TYPE_CHECKING:
    from adadpo_lightning.study.grid import StudyConfig

HEADLINES = {
    "lc": "share of cells with higher LC",
    "wr": "share of cells with higher WR",
    "lc_wr": "share of cells with larger LC-minus-WR margin",
    "gold": "share of cells with higher gold WR",
}
EFFECTS = ("lc", "wr", "gold", "lc_wr", "kl", "length", "accuracy", "ratio", "chosen", "rejected")
JUDGED_BY = ("lc", "gold")  # what the plain words are about


@dataclass(frozen=True)
class Comparison:
    """Two arms that the report sets side by side.

    Args:
        arm: The one.
        against: The other.
        role: What the comparison is for, in a word or two.
    """

    arm: str
    against: str
    role: str

    @property
    def title(self) -> str:
        """How the report names it."""
        return f"{self.arm} - {self.against}"


def write_report(study: StudyConfig, output: Path) -> Path:
    """Write ``report.md``, ``results.csv`` and the figures.

    Args:
        study: The study, of which some cells at least are finished.
        output: Directory to write to.

    Returns:
        The Markdown file.

    Raises:
        UserError: If no cell is finished, or a library that draws or counts is missing.
    """
    from adadpo_lightning.study.report_figures import draw_figures

    results = read_results(study)
    output.mkdir(parents=True, exist_ok=True)
    write_table(results, output / "results.csv")
    figures = draw_figures(study, results, twin_pairs(study, results), output)
    lines = [f"# {study.name}", "", *settings(study, results)]
    for pair in twin_pairs(study, results):
        lines += ["", *section(study, results, pair)]
    lines += ["", "## Figures", ""]
    lines += [line for name, caption in figures.items() for line in (f"![{caption}]({name}.png)", "", caption, "")]
    lines += ["## All cells", "", *cell_table(results)]
    path = output / "report.md"
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return path


def twin_pairs(study: StudyConfig, results: Results) -> list[Comparison]:
    """Each adaptive arm with its plain one, as far as both have results at some cell."""
    pairs = [Comparison(name, arm.twin_of, "twin") for name, arm in study.arms.items() if arm.twin_of is not None]
    return [pair for pair in pairs if _present(results, pair)]


def comparisons(study: StudyConfig, results: Results, pair: Comparison) -> list[Comparison]:
    """The pair, then what it has to be seen beside: controls against the plain arm, and the twin against the static."""
    found = [pair]
    for name, arm in study.arms.items():
        if arm.control is not None and (arm.against or pair.against) == pair.against:
            found.append(Comparison(name, pair.against, arm.control))
        if arm.coefficient_of == pair.arm:
            found.append(Comparison(pair.arm, name, "adapting to each pair"))
    return [comparison for comparison in found if _present(results, comparison)]


def _present(results: Results, comparison: Comparison) -> bool:
    arms = {arm for arm, _, _ in results.values}
    return {comparison.arm, comparison.against} <= arms and bool(results.points(comparison.arm, comparison.against))


def settings(study: StudyConfig, results: Results) -> list[str]:
    """What was run."""
    redraws = (
        "A seed redraws warm-up corpus and model, pairs, training and evaluation; all cells of a seed share them."
        if study.task == "embedded"
        else "A seed redraws the order of the pairs and what is random in training."
    )
    lines = [
        f"{len(results.values)} runs done, {len(results.failed)} failed, {len(results.missing)} missing; "
        f"{results.seconds / 60:.0f} minutes of process time. Seeds {', '.join(map(str, study.seeds))}. {redraws}",
        "",
        "| arm | loss | role | learning rates | strength | options |",
        "|---|---|---|---|---|---|",
    ]
    for name, arm in study.arms.items():
        role = f"control: {arm.control}" if arm.control else (f"twin of {arm.twin_of}" if arm.twin_of else "plain")
        options = {**arm.options, **({"coefficient": f"mean of {arm.coefficient_of}"} if arm.coefficient_of else {})}
        rates, betas = arm.learning_rates or study.learning_rates, arm.betas or study.betas
        said = ", ".join(f"{k}={v}" for k, v in options.items()) or "-"
        lines.append(f"| {name} | `{arm.loss}` | {role} | {_list(rates)} | {arm.strength} {_list(betas)} | {said} |")
    if results.failed:
        lines += ["", f"Failed: {', '.join(results.failed)}."]
    return lines


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def section(study: StudyConfig, results: Results, pair: Comparison) -> list[str]:
    """Everything about one plain loss and its twin."""
    others = comparisons(study, results, pair)
    judged = any(results.has(measure) for measure in HEADLINES)
    return [
        f"## {pair.arm} against {pair.against}",
        "",
        *statements(results, pair, others),
        "",
        *([*headlines(study, results, pair, others), ""] if judged else []),
        *effect_table(results, others),
    ]


def statements(results: Results, pair: Comparison, others: Sequence[Comparison]) -> list[str]:
    """What the intervals say, in plain words."""
    said = []
    # Where nobody judged, the validation pairs are all there is.
    for measure in [name for name in JUDGED_BY if results.has(name)] or ["accuracy"]:
        for other in others:
            found = effect(results, other.arm, other.against, measure)
            said.append(f"- {_sentence(other, MEASURES[measure].label, found)}")
        found = effect_of_best(results, pair.arm, pair.against, measure)
        best = Comparison(pair.arm, pair.against, "each at its own best cell")
        said.append(f"- {_sentence(best, MEASURES[measure].label, found)}")
    return said


def _sentence(comparison: Comparison, label: str, found: Effect) -> str:
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


def headlines(study: StudyConfig, results: Results, pair: Comparison, others: Sequence[Comparison]) -> list[str]:
    """The paper's numbers on this study's cells, the same counts for the controls beside them."""
    beside = [other for other in others if other.against == pair.against]
    paper = bool(study.paper) and {"dpo", "adadpo"} == {pair.arm, pair.against}
    head = ["", *(other.title for other in beside), *(["paper (8B, not ours)"] if paper else [])]
    lines = [_row(head), _row(["---"] * len(head))]
    for measure, text in HEADLINES.items():
        if not results.has(measure):
            continue
        cells = [_wins(results, other, measure) for other in beside]
        lines.append(_row([f"{text}, seed means", *cells, *([study.paper.get(text, "-")] if paper else [])]))
        each = [", ".join(_wins_by_seed(results, other, measure)) for other in beside]
        lines.append(_row(["the same, seed by seed", *each, *(["one run a cell"] if paper else [])]))
    for measure in ("lc", "wr"):
        for arm in (pair.arm, pair.against):
            if results.has(measure):
                name = f"best {MEASURES[measure].label}, {arm}"
                rest = ["" for _ in beside[1:]]
                best = best_cell(results, arm, measure)
                lines.append(_row([name, best, *rest, *([study.paper.get(name, "-")] if paper else [])]))
    note = (
        "Intervals of counts are Clopper-Pearson's for independent cells. Cells of a seed share a warm-up model and an "
        "evaluation set, so they are too narrow; the table of effects below, over seeds, is what to judge by. A "
        "control's column says what noise, or another use of the same weight, gives on the same cells."
    )
    return [*lines, "", note]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _wins(results: Results, pair: Comparison, measure: str) -> str:
    means = [
        float(np.mean(results.over_seeds(pair.arm, p, measure)) - np.mean(results.over_seeds(pair.against, p, measure)))
        for p in results.points(pair.arm, pair.against)
    ]
    return _count(count_wins(means))


def _count(count: Count) -> str:
    if not count.cells:
        return "-"
    share, low, high = (100 * value for value in (count.wins / count.cells, count.low, count.high))
    return f"{count.wins}/{count.cells} ({share:.0f} %) [{low:.0f}, {high:.0f}]"


def _wins_by_seed(results: Results, pair: Comparison, measure: str) -> Iterator[str]:
    points = results.points(pair.arm, pair.against)
    for seed in results.seeds(pair.arm, pair.against):
        found = paired(results, pair.arm, pair.against, measure, points, seed)
        if found:
            yield f"{sum(d > 0 for d in found)}/{len(found)}"


def best_cell(results: Results, arm: str, measure: str) -> str:
    """The best seed mean of an arm, with its deviation and cell."""
    point = best_point(results, arm, measure)
    values = results.over_seeds(arm, point, measure)
    return f"{np.mean(values):.1f} ± {_sd(values)} (lr {point[0]:g}, {point[1]:g})"


def _sd(values: np.ndarray, digits: int = 1) -> str:
    return f"{np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "?"


def effect_table(results: Results, others: Sequence[Comparison]) -> list[str]:
    """Differences with 95 % t-intervals over seeds."""
    lines = [
        "Difference, averaged over the cells that both have; mean over seeds [95 % t-interval], seeds above zero.",
        "",
        _row(["", *(f"{other.title} ({other.role})" for other in others)]),
        _row(["---"] * (len(others) + 1)),
    ]
    for name in EFFECTS:
        if results.has(name):
            measure = MEASURES[name]
            found = [effect(results, other.arm, other.against, name) for other in others]
            unit = f", {'points' if measure.unit == '%' else measure.unit}" if measure.unit else ""
            lines.append(_row([f"{measure.label}{unit}", *(_effect(each, measure.digits) for each in found)]))
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


def cell_table(results: Results) -> list[str]:
    """Mean and standard deviation over seeds of every cell."""
    names = [name for name in MEASURES if results.has(name) and name != "lc_wr"]
    lines = [
        _row(["arm", "lr", "strength", "seeds", *(MEASURES[name].label for name in names)]),
        _row(["---"] * (len(names) + 4)),
    ]
    for arm in dict.fromkeys(arm for arm, _, _ in results.values):
        for point in results.points(arm):
            values = {name: results.over_seeds(arm, point, name) for name in names}
            seeds = max(len(found) for found in values.values())
            cells = [_mean_sd(found, MEASURES[name].digits) for name, found in values.items()]
            lines.append(_row([arm, f"{point[0]:g}", f"{point[1]:g}", str(seeds), *cells]))
    return lines


def _mean_sd(values: np.ndarray, digits: int) -> str:
    return f"{np.mean(values):.{digits}f} ± {_sd(values, digits)}" if len(values) else "-"


def write_table(results: Results, path: Path) -> None:
    """One row a cell and seed."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["arm", "lr", "strength", "seed", *MEASURES])
        for (arm, (lr, beta), seed), found in sorted(results.values.items()):
            numbers = [f"{found[name]:.6g}" if name in found else "" for name in MEASURES]
            table.writerow([arm, lr, beta, seed, *numbers])
