"""Command lines that a command runs within itself."""

from __future__ import annotations

from collections.abc import Sequence


def run_command(arguments: Sequence[str]) -> None:
    """Print a command as a user would type it, and run it in this process.

    Raises:
        SystemExit: With its status, if it failed, after its error was printed.
    """
    from adadpo_lightning.cli import app

    print(f"python -m adadpo_lightning {' '.join(arguments)}", flush=True)
    if status := app.main(arguments):
        raise SystemExit(status)
