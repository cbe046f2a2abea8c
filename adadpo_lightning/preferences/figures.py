"""The figure of the report: scores, lengths, both together, and what became of the prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from adadpo_lightning.preferences.statistics import centred, scored_answers, tokens
from adadpo_lightning.runs.figures import COLOURS, INK, PALE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from adadpo_lightning.preferences.statistics import Outcome

BINS = 30
POINTS = 20_000  # more would only darken the cloud


def draw(outcomes: Sequence[Outcome]) -> Figure:
    """Draw the four parts.

    Args:
        outcomes: All prompts of the job; at least one has a pair.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    parts = figure.subplots(2, 2)
    pairs = [pair for outcome in outcomes for pair in outcome.selection.pairs]
    scores, lengths, prompts = scored_answers(outcomes)
    sides = {"chosen": [p.chosen for p in pairs], "rejected": [p.rejected for p in pairs]}
    _histogram(parts[0, 0], "score", scores, {name: [a.score for a in side] for name, side in sides.items()})
    by_side = {name: [tokens(a.response) for a in side] for name, side in sides.items()}
    _histogram(parts[0, 1], "tokens", lengths, by_side)
    _cloud(parts[1, 0], centred(lengths, prompts), centred(scores, prompts))
    _outcomes(parts[1, 1], outcomes)
    return figure


def _histogram(axes: Axes, unit: str, values: np.ndarray, sides: Mapping[str, Sequence[float]]) -> None:
    low, high = float(values.min()), float(values.max())
    space = 0.5 if low == high else 0.0
    edges: list[float] = np.linspace(low - space, high + space, BINS + 1).tolist()
    axes.hist(values, edges, density=True, color=PALE, label="all answers")
    for colour, (name, side) in zip(COLOURS, sides.items(), strict=False):
        axes.hist(side, edges, density=True, histtype="step", color=colour, linewidth=1.6, label=name)
        axes.axvline(float(np.mean(side)), color=colour, linewidth=0.9, linestyle=":", label="_mean")
    axes.set_yticks([])
    _dress(axes, f"{unit.capitalize()} (dotted: mean)", unit, "share of answers")
    axes.legend(frameon=False, fontsize=9)


def _cloud(axes: Axes, lengths: np.ndarray, scores: np.ndarray) -> None:
    step = -(-len(scores) // POINTS)
    size, alpha = (20, 0.7) if len(scores) < 300 else (8, 0.3)
    points = lengths[::step], scores[::step]
    axes.scatter(*points, s=size, alpha=alpha, color=COLOURS[0], linewidths=0, rasterized=True)
    if np.ptp(lengths) > 0:
        slope = float(lengths @ scores / (lengths @ lengths))
        ends = np.array([lengths.min(), lengths.max()])
        axes.plot(ends, slope * ends, color=COLOURS[1], linewidth=1.4)
    _dress(axes, "Score and length, both minus the prompt's mean", "tokens", "score")


def _outcomes(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    counts = Counter(outcome.selection.reason or "gave pairs" for outcome in outcomes)
    names = ["gave pairs", *(name for name, _ in counts.most_common() if name != "gave pairs")]
    values = [counts[name] for name in names]
    bars = axes.barh(range(len(names)), values, color=[COLOURS[2], *[COLOURS[5]] * (len(names) - 1)], height=0.6)
    axes.bar_label(bars, padding=3, fontsize=9, color=INK)
    axes.set_yticks(range(len(names)), [fill(name, 18) for name in names])
    axes.set_ylim(len(names) - 0.4 + max(0, 3 - len(names)), -0.6)
    axes.set_xlim(0, 1.12 * max(values))
    _dress(axes, "What became of the prompts", "prompts", "")


def _dress(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(across, color=INK)
    axes.set_ylabel(up, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=INK, length=0, labelsize=9)
