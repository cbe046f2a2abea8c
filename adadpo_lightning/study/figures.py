"""Figures of a study: heat maps over the grid, effects with intervals, win rate against KL, curves of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adadpo_lightning.errors import UserError
from adadpo_lightning.metrics import names
from adadpo_lightning.runs.figures import INK, PALE, colours, save
from adadpo_lightning.runs.logs import read_tables
from adadpo_lightning.study.comparisons import best_point, effect
from adadpo_lightning.study.results import MEASURES, Point, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from adadpo_lightning.study.comparisons import Comparison

CURVES = {
    names.train(names.BALANCE_RATIO): "gradient balance ratio, per token",
    names.train(names.DISPLACEMENT_CHOSEN): "drift of chosen answers, nats",
    names.train(names.DISPLACEMENT_REJECTED): "drift of rejected answers, nats",
    names.train(names.KL_CHOSEN): "KL on chosen answers, nats a token",
    names.train(names.REWARDS_MARGINS): "reward margin",
    names.train(names.REWARDS_ACCURACIES): "reward accuracy",
}


def draw_figures(results: Results, groups: Mapping[Comparison, Sequence[Comparison]], output: Path) -> dict[str, str]:
    """Draw the figures for which the results have data.

    Args:
        results: Results of the study.
        groups: Each pair of twins, and its comparisons.
        output: Directory to write to.

    Returns:
        The caption of each figure by file name.

    Raises:
        UserError: If matplotlib is missing.
    """
    check_matplotlib()
    figures: dict[str, str] = {}
    for pair, others in groups.items():
        for measure in ("lc", "gold"):
            if results.has(measure) and len(results.points(pair.arm, pair.against)) > 1:
                name = f"heat_{measure}_{pair.arm}"
                save(heat_maps(results, pair, measure), output, name)
                figures[name] = (
                    f"{MEASURES[measure].label} over the grid, means over seeds: {pair.arm}, {pair.against}."
                )
        measures = [measure for measure in ("lc", "wr", "gold") if results.has(measure)]
        if measures and len(results.seeds(pair.arm, pair.against)) > 1:
            save(forest(results, others, measures), output, f"effects_{pair.arm}")
            figures[f"effects_{pair.arm}"] = "Differences with 95 % intervals over seeds; small dots are single seeds."
        point = best_point(results, pair.against, "lc" if results.has("lc") else "accuracy")
        arms = list(dict.fromkeys([pair.against, pair.arm, *(other.arm for other in others[1:])]))
        save(training_curves(results, arms, point), output, f"curves_{pair.arm}")
        figures[f"curves_{pair.arm}"] = (
            f"Training at lr {point[0]:g}, {point[1]:g}, the best cell of {pair.against}: mean and standard deviation "
            "over seeds. The ratio is per token and leaves the lengths' factor n_w/n_l out; of an adaptive arm it is 1 "
            "by construction where nothing is clipped."
        )
    if results.has("gold") and results.has("kl"):
        save(frontier(results), output, "gold_against_kl")
        figures["gold_against_kl"] = "Gold win rate against on-policy KL to the warm-up model; one dot a run."
    return figures


def check_matplotlib() -> None:
    """Check that figures can be drawn.

    Raises:
        UserError: If matplotlib is missing.
    """
    if find_spec("matplotlib") is None:
        raise UserError("study", "the report needs matplotlib", "pip install 'adadpo-lightning[study]'")


def heat_maps(results: Results, pair: Comparison, measure: str) -> Figure:
    """Heat maps of plain arm, twin, and their difference over learning rate and strength."""
    from matplotlib.figure import Figure

    points = results.points(pair.arm, pair.against)
    plain, twin = (grid_of(results, arm, measure, points) for arm in (pair.against, pair.arm))
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    low, high = float(np.nanmin([plain, twin])), float(np.nanmax([plain, twin]))
    largest = max(float(np.nanmax(np.abs(twin - plain))), 0.1)
    label = MEASURES[measure].label
    shown = [
        (plain, f"{pair.against}: {label}", "cividis", low, high),
        (twin, f"{pair.arm}: {label}", "cividis", low, high),
        (twin - plain, f"{pair.arm} - {pair.against}", "PuOr", -largest, largest),
    ]
    for number, (values, title, colour_map, least, most) in enumerate(shown):
        axes = figure.add_subplot(1, 3, number + 1)
        image = axes.imshow(values, cmap=colour_map, vmin=least, vmax=most, aspect="auto")
        _label_grid(axes, points, values, image, signed=number == 2)
        axes.set_title(title, loc="left", fontsize=11, color=INK)
    return figure


def grid_of(results: Results, arm: str, measure: str, points: Sequence[Point]) -> NDArray[np.float64]:
    """Means over seeds, shape (strengths, learning rates); NaN for missing cells."""
    rates, betas = sorted({p[0] for p in points}), sorted({p[1] for p in points})
    grid = np.full((len(betas), len(rates)), np.nan)
    for rate, beta in points:
        values = results.over_seeds(arm, (rate, beta), measure)
        if len(values):
            grid[betas.index(beta), rates.index(rate)] = values.mean()
    return grid


def _label_grid(axes: Axes, points: Sequence[Point], values: NDArray[np.float64], image: Any, *, signed: bool) -> None:
    rates, betas = sorted({p[0] for p in points}), sorted({p[1] for p in points})
    axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axes.set_yticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    axes.set_xlabel("learning rate", color=INK)
    axes.set_ylabel("strength", color=INK)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            text = f"{value:+.1f}" if signed else f"{value:.1f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")


def forest(results: Results, others: Sequence[Comparison], measures: Sequence[str]) -> Figure:
    """Effects of all comparisons, one panel per measure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.5 * len(others) + 1.3), layout="constrained")
    places = np.arange(len(others))[::-1]
    first: Any = None
    for number, measure in enumerate(measures):
        axes = figure.add_subplot(1, len(measures), number + 1, sharey=first)
        first = first or axes
        for place, other, colour in zip(places, others, colours(len(others)), strict=True):
            found = effect(results, other.arm, other.against, measure)
            axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2)
            axes.plot(found.by_seed, [place - 0.22] * len(found.by_seed), ".", color=colour, markersize=4, alpha=0.6)
            axes.plot(found.mean, place, "o", color=colour, markersize=7)
        axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        axes.set_yticks(places, [f"{other.title}\n({other.role})" for other in others])
        axes.set_ylim(-0.6, len(others) - 0.5)
        axes.set_title(f"{MEASURES[measure].label}, points", loc="left", fontsize=11, color=INK)
        plain_axes(axes)
        axes.tick_params(labelleft=number == 0)
    return figure


def frontier(results: Results) -> Figure:
    """Gold win rate against KL, one dot per run."""
    from matplotlib.figure import Figure

    runs = results.table[["kl", "gold"]].dropna()
    arms = [arm for arm in results.arms() if arm in runs.index.get_level_values("arm")]
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for arm, colour in zip(arms, colours(len(arms)), strict=True):
        dots = runs.xs(arm, level="arm").to_numpy()
        axes.scatter(dots[:, 0], dots[:, 1], s=14, color=colour, alpha=0.65, linewidths=0, label=arm)
    axes.axhline(50, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xlim(left=0)
    axes.set_xlabel("on-policy KL to the warm-up model, nats an answer", color=INK)
    axes.set_ylabel("gold win rate, %", color=INK)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    plain_axes(axes)
    return figure


def training_curves(results: Results, arms: Sequence[str], point: Point) -> Figure:
    """Training curves of all arms with runs at one grid point."""
    from matplotlib.figure import Figure

    logs = {arm: _logs(results, arm, point) for arm in arms}
    figure = Figure(figsize=(12, 6), layout="constrained")
    for number, (tag, title) in enumerate(CURVES.items()):
        axes = figure.add_subplot(2, 3, number + 1)
        for (arm, runs), colour in zip(logs.items(), colours(len(arms)), strict=True):
            steps, mean, deviation = mean_curve([dict(run[tag]) for run in runs if tag in run])
            if len(steps):
                axes.plot(steps, mean, color=colour, linewidth=1.4, label=arm)
                axes.fill_between(steps, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("optimizer step", color=INK)
        if "ratio" in tag:
            _ratio_axis(axes)
        elif "kl" in tag:
            axes.set_ylim(bottom=0)
        plain_axes(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(arms), frameon=False, fontsize=9)
    return figure


def _logs(results: Results, arm: str, point: Point) -> list[dict[str, list[tuple[int, float]]]]:
    folders = [folder for (name, *at, _), folder in results.folders.items() if name == arm and tuple(at) == point]
    return [read_tables(folder) for folder in folders if folder.is_dir()]


def mean_curve(
    runs: Sequence[dict[int, float]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Steps logged by all runs, with mean and standard deviation over the runs."""
    if not runs:
        return np.array([]), np.array([]), np.array([])
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    values = np.array([[run[step] for step in steps] for run in runs])
    return np.array(steps, dtype=float), values.mean(0), values.std(0, ddof=1 if len(runs) > 1 else 0)


def _ratio_axis(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axes.set_yscale("log")
    low, high = axes.dataLim.intervaly
    axes.set_ylim(min(float(low) * 0.97, 0.9), max(float(high) * 1.03, 1.1))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.axhline(1, color=INK, linewidth=0.8, linestyle=":")


def plain_axes(axes: Axes) -> None:
    """A pale grid and no frame."""
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=INK, length=0, labelsize=9)
