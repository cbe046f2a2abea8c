"""Command lines that a command runs within itself."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

WIDTH = 90


def run_command(arguments: Sequence[str]) -> None:
    """Print a command as a user would type it, and run it in this process.

    Raises:
        SystemExit: With its status, if it failed, after its error was printed.
    """
    from adadpo_lightning.cli import app

    print(typed(arguments), flush=True)
    if status := app.main(arguments):
        raise SystemExit(status)


def typed(arguments: Sequence[str]) -> str:
    r"""A command as a user would type it, broken into lines of at most `WIDTH` characters where that is possible.

    Example:
        >>> print(typed(["fit", "--config=a.yaml", "--output_dir=" + "x" * 60]))
        python -m adadpo_lightning fit --config=a.yaml \
          --output_dir=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
    """
    lines = ["python -m adadpo_lightning"]
    for word in map(shlex.quote, arguments):
        if len(lines[-1]) + len(word) + 3 > WIDTH:
            lines.append(f"  {word}")
        else:
            lines[-1] += f" {word}"
    return " \\\n".join(lines)
