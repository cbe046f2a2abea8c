"""Parsed commands, without running them."""

from adadpo_lightning.cli.parser import build_parser, parse
from adadpo_lightning.cli.registry import find_command


def parser_of(name):
    return build_parser(name, find_command(name).load())


def parsed(*args):
    """The options of a command line, and the parser that read them."""
    name, *rest = map(str, args)
    parser = parser_of(name)
    return parse(parser, rest), parser
