"""Convert a DPO config of LLaMA-Factory to a config of this package, and list what has no counterpart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adadpo_lightning.convert.converted import deliver

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add LLaMA-Factory's file as a positional argument, the output file and the number of ranks."""
    keys = "YAML or JSON, as for llamafactory-cli train, with stage: dpo"
    parser.add_argument("factory_config", type=str, metavar="FACTORY_CONFIG", help=keys)
    parser.add_argument("--output", type=str, metavar="FILE", help="file to write (default: print it)")
    ranks = "devices that it ran on, for the global batch"
    parser.add_argument("--ranks", type=int, default=1, help=ranks)


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Convert."""
    from adadpo_lightning.convert.from_llama_factory import from_llama_factory_file

    deliver(*from_llama_factory_file(config.factory_config, config.ranks), config.output)
