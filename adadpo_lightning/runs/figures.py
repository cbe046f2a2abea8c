"""Figures of one or several runs: gradient balance, log-probabilities, margin, accuracy, KL, or any other metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadpo_lightning.errors import UserError, did_you_mean
from adadpo_lightning.metrics import names
from adadpo_lightning.runs.logs import val_stages_of
from adadpo_lightning.runs.output import check_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from adadpo_lightning.runs.logs import Curve, Run

# Okabe and Ito's palette for colour-blind readers, without its yellow and black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
INK, PALE = "#444444", "#DDDDDD"
MARKERS = "os^Dv<>P"  # one for each validation set of a figure
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.5)))


@dataclass(frozen=True)
class Chart:
    """The content of a figure.

    Args:
        title: Title.
        unit: Label of the vertical axis.
        series: Label and tag (without stage) of each line; the first is solid, the next dashed.
        log: Whether the vertical axis is logarithmic.
        mark: Value of a horizontal line.
        optional: Labels of `series` that may be missing.
    """

    title: str
    unit: str
    series: dict[str, str]
    log: bool = False
    mark: float | None = None
    optional: tuple[str, ...] = ()


CHARTS = {
    "balance": Chart(
        "Gradient balance", "chosen gradient / rejected gradient", {"ratio": names.BALANCE_RATIO}, log=True, mark=1.0
    ),
    "logps": Chart(
        "Log-probability of the answers",
        "nats per token",
        {"chosen": names.LOGPS_CHOSEN_PER_TOKEN, "rejected": names.LOGPS_REJECTED_PER_TOKEN},
    ),
    "margin": Chart("Reward margin", "chosen - rejected reward", {"margin": names.REWARDS_MARGINS}, mark=0.0),
    "accuracy": Chart("Reward accuracy", "share of pairs", {"accuracy": names.REWARDS_ACCURACIES}, mark=0.5),
    "kl": Chart(
        "KL to the reference",
        "nats per token",
        {"chosen": names.KL_CHOSEN, "rejected": names.KL_REJECTED, "own answers": names.KL_POLICY},
        optional=("own answers",),
    ),
}


def choose_charts(runs: Sequence[Run], metrics: Sequence[str]) -> dict[str, Chart]:
    """Select charts, keyed by file name.

    Args:
        runs: The runs.
        metrics: Names of `CHARTS`, or tags with or without stage; empty selects all charts with data.

    Raises:
        UserError: If no run has a metric.
    """
    if not metrics:
        found = {name: chart for name, chart in CHARTS.items() if any(_has(run, chart) for run in runs)}
        if not found:
            raise UserError("runs", f"no run has metrics of a chart ({', '.join(CHARTS)})", "name metrics")
        return found
    staged = [
        (stage, tag) for run in runs for stage in stages_of(run) for tag in run.curves if tag.startswith(f"{stage}/")
    ]
    tags = {tag.removeprefix(f"{stage}/") for stage, tag in staged}
    charts: dict[str, Chart] = {}
    for metric in metrics:
        of = next((stage for run in runs for stage in stages_of(run) if metric.startswith(f"{stage}/")), None)
        tag = metric if of is None else metric.removeprefix(f"{of}/")
        if metric in CHARTS and any(_has(run, CHARTS[metric]) for run in runs):
            charts[metric] = CHARTS[metric]
        elif tag in tags:
            ratio = "ratio" in tag
            charts[tag.replace("/", "_")] = Chart(tag, tag, {tag: tag}, log=ratio, mark=1.0 if ratio else None)
        else:
            raise UserError("metric", f"no run has {metric!r}", did_you_mean(metric, {*CHARTS, *tags}))
    return charts


def _has(run: Run, chart: Chart) -> bool:
    return any(f"{stage}/{tag}" in run.curves for stage in stages_of(run) for tag in chart.series.values())


def stages_of(run: Run) -> list[str]:
    """Training, and each validation set of a run."""
    return ["train", *val_stages_of(run.curves)]


def draw(runs: Sequence[Run], chart: Chart) -> Figure:
    """Draw one chart of all runs on its own figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    draw_chart(axes, runs, chart)
    figure.legend(handles=legend(runs, [chart]), loc="outside right upper", frameon=False, fontsize=9)
    return figure


def overview(runs: Sequence[Run], charts: Sequence[Chart]) -> Figure:
    """Draw all charts on one figure with one legend."""
    from matplotlib.figure import Figure

    rows = -(-len(charts) // 3)
    figure = Figure(figsize=(12, 3.1 * rows + 0.5), layout="constrained")
    grid = figure.add_gridspec(rows, min(3, len(charts)))
    for i, chart in enumerate(charts):
        draw_chart(figure.add_subplot(grid[divmod(i, 3)]), runs, chart)
    handles = legend(runs, charts)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def draw_chart(axes: Axes, runs: Sequence[Run], chart: Chart) -> None:
    """Draw training as a thin line and validation as a line with markers, in one colour per run."""
    marks = _marks(runs, [chart])
    for run, colour in zip(runs, colours(len(runs)), strict=True):
        for stage, dash, label, curve in _curves(run, chart):
            style: dict[str, Any] = {"color": colour, "linestyle": dash, "label": f"{run.name} {stage} {label}"}
            if stage == "train":
                style |= {"linewidth": 1.1, "alpha": 0.55 if _validated(runs, chart) else 1.0}
            else:
                style |= {"linewidth": 1.6, "marker": marks[stage], "markersize": 4, "markeredgecolor": "white"}
            axes.plot(curve.steps, curve.values, **style)
    _dress(axes, chart)


def _marks(runs: Sequence[Run], charts: Sequence[Chart]) -> dict[str, str]:
    """The marker of each validation set."""
    drawn = {stage for chart in charts for run in runs for stage, *_ in _curves(run, chart)} - {"train"}
    return {stage: MARKERS[i % len(MARKERS)] for i, stage in enumerate(sorted(drawn))}


def _curves(run: Run, chart: Chart) -> Iterator[tuple[str, Any, str, Curve]]:
    for stage in stages_of(run):
        for dash, (label, tag) in zip(DASHES, chart.series.items(), strict=False):
            if (curve := run.curves.get(f"{stage}/{tag}")) is not None:
                yield stage, dash, label, curve


def _validated(runs: Sequence[Run], chart: Chart) -> bool:
    return any(stage != "train" for run in runs for stage, *_ in _curves(run, chart))


def _dress(axes: Axes, chart: Chart) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_title(chart.title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel("optimizer step", color=INK)
    axes.set_ylabel(chart.unit, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if chart.log:
        axes.set_yscale("log")
        # matplotlib's own limits span two decades around a constant curve.
        low, high = axes.dataLim.minposy, axes.dataLim.intervaly[1]
        space = (high / low) ** 0.05
        low, high = min(low / space, 0.8), max(high * space, 1.25)
        axes.set_ylim(low, high)
        # With decades only, a narrow range would have no tick label.
        subs = (1.0,) if high > 1e3 * low else (1.0, 2.0, 5.0)
        axes.yaxis.set_major_locator(MaxNLocator(5) if high < 5 * low else LogLocator(subs=subs))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if chart.mark is not None:
        axes.axhline(chart.mark, color=INK, linewidth=0.8, linestyle=":", zorder=1, label="_mark")
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=INK, length=0, labelsize=9)


def legend(runs: Sequence[Run], charts: Sequence[Chart]) -> list[Any]:
    """Legend entries: the colour of each run, then the line styles in use."""
    from matplotlib.lines import Line2D

    coloured = zip(runs, colours(len(runs)), strict=True)
    shown = [(run, colour) for run, colour in coloured if any(_has(run, chart) for chart in charts)]
    handles = [Line2D([], [], color=colour, label=run.name) for run, colour in shown]
    drawn = [curve for chart in charts for run in runs for curve in _curves(run, chart)]
    several = [chart for chart in charts if len(chart.series) > 1]
    sides = {label: dash for chart in several for run in runs for _, dash, label, _ in _curves(run, chart)}
    handles += [Line2D([], [], color=INK, linestyle=dash, label=label) for label, dash in sides.items()]
    stages = {stage for stage, *_ in drawn}
    if "train" in stages:
        handles.append(Line2D([], [], color=INK, linewidth=1.1, alpha=0.55, label="training"))
    for stage, marker in _marks(runs, charts).items():
        label = "validation" + stage.removeprefix("val").replace("/", " ")
        handles.append(Line2D([], [], color=INK, marker=marker, markersize=4, label=label))
    return handles


def colours(count: int) -> list[Any]:
    """Distinct colours: the palette, or a scale from dark to light if there are more runs than colours."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * i / (count - 1)) for i in range(count)]


def save(figure: Figure, output: Path, name: str) -> list[Path]:
    """Write a figure as PNG and SVG."""
    output.mkdir(parents=True, exist_ok=True)
    paths = [output / f"{name}.{ending}" for ending in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=160)
    return paths


def plot_runs(paths: Sequence[str], output: str, metrics: Sequence[str] = ()) -> list[Path]:
    """Draw runs and write the figures, plus an ``overview`` of several charts.

    Args:
        paths: Output directories of runs, or directories that hold several.
        output: Directory to write to.
        metrics: As for `choose_charts`.

    Returns:
        The files written.

    Raises:
        UserError: If matplotlib is missing, a path holds no logs, or a metric is unknown.
    """
    from importlib.util import find_spec

    from adadpo_lightning.runs.logs import read_runs

    if find_spec("matplotlib") is None:
        raise UserError("plot", "needs matplotlib, which is not installed", "pip install 'adadpo-lightning[plot]'")
    check_output(output, "output", directory=True)
    runs = read_runs(paths)
    charts = choose_charts(runs, metrics)
    files = [path for name, chart in charts.items() for path in save(draw(runs, chart), Path(output), name)]
    if len(charts) > 1:
        files += save(overview(runs, list(charts.values())), Path(output), "overview")
    return files
