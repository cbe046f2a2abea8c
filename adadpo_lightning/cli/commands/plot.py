"""Figures (PNG and SVG) of one or several runs: gradient balance, log-probabilities, margin, accuracy, KL."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add runs as positional arguments, the output directory and the metrics."""
    runs = "output directory of a run, or a directory with several"
    parser.add_argument("runs", nargs="+", type=str, metavar="RUN", help=runs)
    parser.add_argument("--output", type=str, default="figures", metavar="DIR", help="directory to write to")
    parser.add_argument(
        "--metric",
        dest="metrics",
        action="append",
        type=str,
        metavar="NAME",
        help="balance, logps, margin, accuracy, kl, or any logged metric such as grad_norm/total; may be repeated "
        "(default: all of the named ones that were logged)",
    )


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Draw the figures and print their paths."""
    from adadpo_lightning.runs.figures import plot_runs

    for path in plot_runs(config.runs, config.output, config.metrics or ()):
        print(path)
