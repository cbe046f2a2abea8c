"""Iterative preference training: in each round pairs of the policy's own answers, and a fit on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adadpo_lightning.cli.parser import options
from adadpo_lightning.study.rounds import RoundsOptions

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add the fields of `RoundsOptions`."""
    parser.add_class_arguments(RoundsOptions)


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Run the rounds that are not finished, each command in its own process, and print the table over rounds."""
    from adadpo_lightning.study.processes import run_in_turn
    from adadpo_lightning.study.rounds import run_rounds
    from adadpo_lightning.study.rounds_report import rounds_table

    asked = RoundsOptions(**options(config))
    results = run_in_turn(run_rounds(asked))
    print(f"{rounds_table(results)}\nreport: {asked.root / 'rounds.md'}")
