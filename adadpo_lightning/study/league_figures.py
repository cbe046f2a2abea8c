"""Figures of a league: gold win rate against KL for all arms, and each arm against the one it is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from adadpo_lightning.losses import loss_class
from adadpo_lightning.runs.figures import INK, colours, save
from adadpo_lightning.study.figures import check_matplotlib, plain_axes
from adadpo_lightning.study.league import Corrected, all_comparisons, cells_by_seed, corrected
from adadpo_lightning.study.league_tables import judged_by
from adadpo_lightning.study.results import MEASURES, Results

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from adadpo_lightning.study.grid import StudyConfig


def draw_league(study: StudyConfig, results: Results, output: Path) -> dict[str, str]:
    """Draw the figures for which the results have data.

    Args:
        study: The study.
        results: Its results.
        output: Directory to write to.

    Returns:
        The caption of each figure by file name.

    Raises:
        UserError: If matplotlib is missing.
    """
    check_matplotlib()
    figures: dict[str, str] = {}
    for measure in judged_by(results):
        label = MEASURES[measure].label
        if kl := next((name for name in ("kl", "kl_token") if results.has(name)), None):
            save(frontier(study, results, measure, kl), output, f"{measure}_against_kl")
            figures[f"{measure}_against_kl"] = (
                f"{label} against on-policy KL to the model before, means over seeds. Pale dots are cells, large dots "
                "best cells (by the same seeds, so a little too high); an open diamond is the twin of the loss it is "
                "joined to. Cells far beyond the worst best cell are not shown."
            )
        if family := all_comparisons(study, results):
            means, bests = (corrected(results, family, measure, best=best) for best in (False, True))
            save(differences(means, bests, measure), output, f"{measure}_differences")
            figures[f"{measure}_differences"] = (
                f"Differences in {label} with 95 % intervals over seeds, not corrected; filled dots remain after "
                "Holm's correction."
            )
    return figures


def frontier(study: StudyConfig, results: Results, measure: str = "gold", against: str = "kl") -> Figure:
    """A measure against on-policy KL: pale dots are cells, large ones the best cell of each arm, means over seeds.

    Colours are the groups of losses; a twin is an open diamond, joined to its plain loss.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.add_subplot()
    groups = list(dict.fromkeys(loss_class(study.arms[arm].loss).group for arm in results.arms()))
    colour = dict(zip(groups, colours(len(groups)), strict=True))
    best: dict[str, tuple[float, float]] = {}
    for arm in results.arms():
        own = colour[loss_class(study.arms[arm].loss).group]
        table = cells_by_seed(results, arm, measure).mean(axis=1)
        kl = cells_by_seed(results, arm, against).mean(axis=1).reindex(table.index)
        axes.scatter(kl, table, s=8, color=own, alpha=0.3, linewidths=0)
        if len(table) and np.isfinite(kl[table.idxmax()]):
            best[arm] = (float(kl[table.idxmax()]), float(table.max()))
    for arm, (x, y) in best.items():
        own, plain = colour[loss_class(study.arms[arm].loss).group], study.arms[arm].twin_of
        twin = plain is not None
        axes.scatter(x, y, s=42, marker="D" if twin else "o", color="none" if twin else own, edgecolors=own, zorder=3)
        if plain in best:
            axes.plot(*zip(best[plain], (x, y), strict=True), color=own, linewidth=0.8, alpha=0.6)
    for group, own in colour.items():
        axes.scatter([], [], s=42, color=own, label=group)
    axes.scatter([], [], s=42, marker="D", color="none", edgecolors=INK, label="twin")
    axes.axhline(50, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlim(left=0)
    if best:  # where cells collapsed, the others would be a line
        divergences, values = zip(*best.values(), strict=True)
        if max(divergences) > 20 * max(min(divergences), 0.0):
            axes.set_xscale("symlog", linthresh=0.1)
        else:
            axes.set_xlim(right=1.2 * max(divergences))
        axes.set_ylim(bottom=min(values) - 5)
    axes.set_xlabel(f"on-policy KL to the model before, {MEASURES[against].unit}", color=INK)
    axes.set_ylabel(f"{MEASURES[measure].label}, {MEASURES[measure].unit}", color=INK)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    plain_axes(axes)
    label_dots(axes, {arm: at for arm, at in best.items() if study.arms[arm].twin_of is None})
    return figure


def label_dots(axes: Axes, dots: Mapping[str, tuple[float, float]]) -> None:
    """Name dots, each as near to its own as other dots and names allow, with a line to it where that is far.

    Call it last: places depend on the limits of the axes.

    Args:
        axes: The axes.
        dots: The position of each dot in data coordinates, by name.
    """
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("the axes belong to no figure")
    figure.draw_without_rendering()  # now the layout is known
    points = 72 / figure.dpi
    places = {name: np.asarray(axes.transData.transform(at)) * points for name, at in dots.items()}
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in places.values()]
    for name, (x, y) in sorted(places.items(), key=lambda each: -each[1][1]):
        text = axes.annotate(name, dots[name], (0, 0), textcoords="offset points", fontsize=8, color=INK)
        size = np.asarray(text.get_window_extent().size) * points
        for dx, dy in _offsets(*size):
            box = Bbox.from_bounds(x + dx, y + dy, *size)
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        text.set_position((dx, dy))
        if abs(dy + size[1] / 2) > size[1]:
            line = {"arrowstyle": "-", "color": INK, "linewidth": 0.4, "alpha": 0.6, "shrinkA": 0, "shrinkB": 3}
            side = "left" if dx > 0 else "right"
            at = (dx if dx > 0 else dx + size[0], dy + size[1] / 2)
            axes.annotate("", dots[name], at, textcoords="offset points", ha=side, arrowprops=line)


def _offsets(width: float, height: float) -> Iterator[tuple[float, float]]:
    """Lower left corners of a text to the right and to the left of a dot, in points, the nearest first."""
    for far in range(20):
        for up in (far, -far) if far else (0,):
            yield 6, (up - 0.5) * height
            yield -6 - width, (up - 0.5) * height


def differences(means: Sequence[Corrected], bests: Sequence[Corrected], measure: str) -> Figure:
    """Every comparison with its 95 % interval, by mean of cells and by best cell; filled after the correction."""
    from matplotlib.figure import Figure

    order = sorted(range(len(means)), key=lambda i: means[i].difference.interval[0])
    figure = Figure(figsize=(11, 0.28 * len(order) + 1.3), layout="constrained")
    for number, (title, family) in enumerate((("mean of cells", means), ("best cell", bests))):
        axes = figure.add_subplot(1, 2, number + 1)
        for place, i in enumerate(order):
            mean, low, high = family[i].difference.interval
            (own,) = colours(1)
            axes.plot([low, high], [place, place], color=own, linewidth=1.6)
            axes.plot(
                mean, place, "o", markersize=6, color=own, markerfacecolor=own if family[i].separated else "white"
            )
        axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(order)), [means[i].comparison.title for i in order])
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.set_title(f"{MEASURES[measure].label}, points: {title}", loc="left", fontsize=11, color=INK)
        plain_axes(axes)
        axes.tick_params(labelleft=number == 0)
    return figure
