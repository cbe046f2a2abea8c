"""Win rate and length-controlled win rate of a model's responses against a baseline's, according to a judge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adadpo_lightning.cli.parser import options
from adadpo_lightning.evaluation.options import EvaluateOptions

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add the fields of `EvaluateOptions`."""
    parser.add_class_arguments(EvaluateOptions)


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Evaluate, and print a summary."""
    from adadpo_lightning.evaluation.evaluate import evaluate
    from adadpo_lightning.evaluation.report import summary

    report = evaluate(EvaluateOptions(**options(config)))
    print(f"{summary(report)}\nwritten to {config.output}")
