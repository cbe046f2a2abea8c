"""The registry of subcommands: one file in ``cli/commands`` each, or one entry point of another package.

A command is a module. The first line of its docstring is its help, the file name with ``-`` for ``_`` its name, and it
defines `add_arguments` and `run`, see `Command`. Nothing is imported until a command is used, so ``--help`` is fast.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from adadpo_lightning.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

ENTRY_POINTS = "adadpo_lightning.commands"
FOLDER = Path(__file__).parent / "commands"


class Command(Protocol):
    """What a command's module defines.

    It may also define ``run_without_arguments()``, for a command that does something useful without its required
    options.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the command's options to its parser, which already has ``--config``."""

    def run(self, config: Namespace, parser: ArgumentParser) -> None:
        """Run the command with the parsed options; `parser` can instantiate, dump and save them."""


@dataclass(frozen=True)
class Entry:
    """A command that is not imported yet.

    Args:
        name: Its name on the command line.
        help: One line.
        load: Imports its module.
    """

    name: str
    help: str
    load: Callable[[], Command]


def commands() -> dict[str, Entry]:
    """All commands by name. Those of this package win over entry points of the same name."""
    own = [_of_file(path) for path in FOLDER.glob("[!_]*.py")]
    plugins = [_of_entry_point(found) for found in entry_points(group=ENTRY_POINTS)]
    return {entry.name: entry for entry in sorted([*plugins, *own], key=lambda entry: entry.name)}


def find_command(name: str) -> Entry:
    """A command by name.

    Raises:
        UserError: If it does not exist.
    """
    known = commands()
    if name not in known:
        raise UserError("command", f"unknown command {name!r}", did_you_mean(name, known))
    return known[name]


def _of_file(path: Path) -> Entry:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    module = f"{__package__}.commands.{path.stem}"
    return Entry(path.stem.replace("_", "-"), text.partition("\n")[0], lambda: cast("Command", import_module(module)))


def _of_entry_point(found: EntryPoint) -> Entry:
    package = found.dist.name if found.dist is not None else found.module
    return Entry(found.name, f"Command of the package {package}.", found.load)
