"""Convert a config or script of TRL to a config of this package, and list what has no counterpart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adadpo_lightning.convert.converted import deliver

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add TRL's file as a positional argument, how to read it, and where to write."""
    keys = "YAML, JSON or Python: DPOConfig, CPOConfig, ORPOConfig or SimPOConfig, with ModelConfig and ScriptArguments"
    parser.add_argument("trl_config", type=str, metavar="TRL_CONFIG", help=keys)
    parser.add_argument("--output", type=str, metavar="FILE", help="file to write (default: print it)")
    ranks = "devices that TRL ran on, for the global batch"
    parser.add_argument("--ranks", type=int, default=1, help=ranks)
    which = "whose config it is: auto, dpo, cpo, orpo or simpo (SimPO's own repository)"
    parser.add_argument("--trainer", type=str, default="auto", help=which)
    settings = "values in TRL's terms that replace those of the file, or that a script computes"
    parser.add_argument("--set", type=str, nargs="*", default=[], metavar="KEY=VALUE", help=settings)


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Convert."""
    from adadpo_lightning.convert.from_trl import from_trl_file

    deliver(*from_trl_file(config.trl_config, config.ranks, config.trainer, config.set), config.output)
