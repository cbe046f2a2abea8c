"""Script that completes commands and options in a shell (extra completion)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

SHELLS = ("bash", "zsh")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the shell as a positional argument."""
    load = 'such as: eval "$(adadpo-lightning completion bash)"'
    parser.add_argument("shell", choices=SHELLS, help=f"shell that evaluates the script, {load}")


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Print the script.

    Raises:
        UserError: If shtab is not installed.
    """
    from importlib.util import find_spec

    if find_spec("shtab") is None:
        raise UserError("completion", "the package shtab is missing", "pip install 'adadpo-lightning[completion]'")
    print(script(config.shell))


def script(shell: str) -> str:
    """The completion script of every command, those of other packages included.

    Args:
        shell: One of `SHELLS`.
    """
    from jsonargparse import ArgumentParser

    from adadpo_lightning.cli.app import PROGRAM
    from adadpo_lightning.cli.parser import build_parser
    from adadpo_lightning.cli.registry import commands

    whole = ArgumentParser(prog=PROGRAM, exit_on_error=False)
    parts = whole.add_subcommands()
    for entry in commands().values():
        parts.add_subcommand(entry.name, build_parser(f"{PROGRAM} {entry.name}", entry.load()), help=entry.help)
    return str(whole.get_completion_script(f"shtab-{shell}"))
