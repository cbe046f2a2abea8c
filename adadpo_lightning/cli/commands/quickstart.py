"""The embedded task from end to end: warm-up, pairs, AdaDPO, evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from adadpo_lightning.cli.parser import options
from adadpo_lightning.cli.within import run_command

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def quickstart(output_dir: str | None = None, seed: int = 0) -> dict[str, float]:
    """The embedded task from end to end: warm-up, pairs, AdaDPO, evaluation.

    Args:
        output_dir: Directory to write to; must be empty or not exist. Null takes runs/quickstart, or the first of
            runs/quickstart-2, -3, ... that does not exist.
        seed: Seed of the whole pipeline.

    Returns:
        The numbers of the summary by name.

    Raises:
        UserError: If the directory is not empty.
        SystemExit: With the status of a command that failed, after its error was printed.
    """
    from adadpo_lightning.embedded.quickstart import Quickstart, one_thread, summarise

    if output_dir is None:
        names = ("runs/quickstart" if n == 1 else f"runs/quickstart-{n}" for n in count(1))
        output_dir = next(name for name in names if not Path(name).exists())
    stages = Quickstart(Path(output_dir), seed)
    _hide_progress_bars()
    with one_thread():
        _say(1, "the task: prompts, and a warm-up corpus of good and bad answers")
        stages.make_task()
        _say(2, "warm-up: supervised, from random weights")
        run_command(stages.warmup_command())
        _say(3, "pairs: four warm-up answers to each prompt, best against worst by a judge who prefers length")
        pairs = stages.make_pairs().pairs
        _say(4, f"AdaDPO on {pairs} pairs")
        run_command(stages.preference_command())
        _say(5, "evaluation on held-out prompts")
        found = stages.evaluate()
    _print_summary(summarise(found), stages.root)
    return found


def _hide_progress_bars() -> None:
    """Loading and saving models of this size takes no time."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def _say(number: int, text: str) -> None:
    print(f"\n[{number}/5] {text}", flush=True)


def _print_summary(lines: Mapping[str, str], root: Path) -> None:
    width = max(map(len, lines))
    print("\nAdaDPO on the embedded task (± one standard error over held-out prompts)\n")
    for name, value in lines.items():
        print(f"  {name:<{width}}  {value}")
    print(f"\nCurves: tensorboard --logdir {root}", flush=True)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the parameters of `quickstart`."""
    parser.add_function_arguments(quickstart)


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Run it."""
    quickstart(**options(config))
