"""Convert a config of TRL's DPO script to one of this package, and list what has no counterpart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add TRL's file as a positional argument, the output file and the number of ranks."""
    keys = "YAML or JSON: DPOConfig, ModelConfig and ScriptArguments"
    parser.add_argument("dpo_config", type=str, metavar="DPO_CONFIG", help=keys)
    parser.add_argument("--output", type=str, metavar="FILE", help="file to write (default: print it)")
    ranks = "devices that TRL ran on, for the global batch"
    parser.add_argument("--ranks", type=int, default=1, help=ranks)


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Convert."""
    from adadpo_lightning.convert.from_trl import from_trl_file

    text, parts = from_trl_file(config.dpo_config, config.ranks)
    if config.output is None:
        print(text)
        return
    Path(config.output).write_text(text, encoding="utf-8")
    for key, why in parts.dropped.items():
        print(f"left out: {key} ({why})")
    print("\n".join([*parts.differs, f"written to {config.output}"]))
