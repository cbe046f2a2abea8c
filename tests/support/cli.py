"""Parsed commands, without running them, and the configs of `fit` that are shipped."""

from pathlib import Path

from adadpo_lightning.cli.parser import build_parser, parse
from adadpo_lightning.cli.registry import find_command

CONFIGS = Path(__file__).parents[2] / "configs"
_OF_OTHER_COMMANDS = {"study", "recipes"}
FIT_CONFIGS = sorted(p for p in CONFIGS.rglob("*.yaml") if _OF_OTHER_COMMANDS.isdisjoint(p.relative_to(CONFIGS).parts))


def parser_of(name):
    return build_parser(name, find_command(name).load())


def parsed(*args):
    """The options of a command line, and the parser that read them."""
    name, *rest = map(str, args)
    parser = parser_of(name)
    return parse(parser, rest), parser
