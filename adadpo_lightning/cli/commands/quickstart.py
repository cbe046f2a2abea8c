"""The embedded task from end to end: warm-up, pairs, AdaDPO, evaluation."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from adadpo_lightning.cli.parser import options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def quickstart(output_dir: str | None = None, seed: int = 0) -> None:
    """The embedded task from end to end: warm-up, pairs, AdaDPO, evaluation.

    Args:
        output_dir: Directory to write to; must be empty or not exist. Null takes runs/quickstart, or the first of
            runs/quickstart-2, -3, ... that does not exist.
        seed: Seed of the whole pipeline.
    """
    from adadpo_lightning.cli.app import main
    from adadpo_lightning.embedded.quickstart import run_quickstart

    if output_dir is None:
        names = ("runs/quickstart" if n == 1 else f"runs/quickstart-{n}" for n in count(1))
        output_dir = next(name for name in names if not Path(name).exists())
    run_quickstart(output_dir, seed, main)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the parameters of `quickstart`."""
    parser.add_function_arguments(quickstart)


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Run it."""
    quickstart(**options(config))
