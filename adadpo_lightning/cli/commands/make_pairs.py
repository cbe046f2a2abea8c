"""From prompts to preference pairs: answers sampled from a model, scored by a judge; an interrupted job resumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adadpo_lightning.cli.parser import options
from adadpo_lightning.preferences.options import MakePairsOptions

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add the fields of `MakePairsOptions`."""
    parser.add_class_arguments(MakePairsOptions)


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Make the pairs, and print a summary."""
    from adadpo_lightning.preferences.make import make_pairs
    from adadpo_lightning.preferences.report import summary

    made = make_pairs(MakePairsOptions(**options(config)))
    print(f"{summary(made.statistics)}\npairs: {made.pairs}\nreport: {made.report}")
