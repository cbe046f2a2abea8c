"""Rewards and log-probabilities of every pair, as JSON lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adadpo_lightning.cli.fit_options import add_fit_options
from adadpo_lightning.cli.trainer import run_method

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of a run."""
    add_fit_options(parser, "predict")


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Run it."""
    run_method("predict", config, parser)
