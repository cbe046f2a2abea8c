"""Parsers of the commands, all built with jsonargparse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from adadpo_lightning.cli.config_files import prepare
from adadpo_lightning.compat import forget_options_of_other_classes
from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from adadpo_lightning.cli.registry import Command


def build_parser(prog: str, command: Command) -> ArgumentParser:
    """The parser of a command, with ``--config``, ``--print_config`` and the command's own options.

    Args:
        prog: Program and command, for the usage line.
        command: The command.
    """
    set_parsing_settings(
        config_read_mode_fsspec_enabled=True,  # as Lightning's command line: configs may be on any file system
        # A config names no class of jsonargparse's own denylist (os, subprocess, pickle and so on) ...
        import_path_denylist=[],
        # ... and builds no class where a signature does not ask for one.
        instantiate_subclass_spec_in_any=False,
    )
    # With exit_on_error, errors would be printed below a page of usage and end the process.
    parser = ArgumentParser(prog=prog, description=command.__doc__, exit_on_error=False)
    parser.add_argument("-c", "--config", action="config", help="YAML or JSON file with options; may be repeated.")
    command.add_arguments(parser)
    return parser


def parse(parser: ArgumentParser, args: Sequence[str]) -> Namespace | None:
    """Parse arguments; a class that is named later forgets the options of the class named before it.

    Returns:
        The options, or None if ``--help`` or ``--print_config`` has printed what was asked for.

    Raises:
        UserError: If a config file cannot be read.
        ArgumentError: If an option is wrong.
    """
    prepared = prepare(args)
    with forget_options_of_other_classes():
        try:
            return parser.parse_args(prepared)
        except SystemExit as end:
            if end.code:
                raise
            return None


def instantiate(parser: ArgumentParser, config: Namespace) -> Namespace:
    """Build the classes that a config names.

    Raises:
        UserError: If a section that holds options is null, which the parser accepts.
    """
    with forget_options_of_other_classes():
        try:
            built: Namespace = parser.instantiate(config)
        except TypeError as error:
            sections = parser.get_defaults().items(branches=True)
            empty = [name for name, value in sections if isinstance(value, Namespace) and config.get(name) is None]
            if not empty:
                raise
            raise UserError(
                empty[0], "expected keys and values, got null", "remove it, or set options below"
            ) from error
    return built


def options(config: Namespace) -> dict[str, Any]:
    """The options of a command without those of the parser itself."""
    return {name: value for name, value in config.as_dict().items() if name != "config"}
