"""Write a checkpoint's policy as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adadpo_lightning.cli.parser import options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def export(checkpoint: str, output: str, merge: bool = False, base: str | None = None) -> None:
    """Write a checkpoint's policy as a Hugging Face directory.

    Args:
        checkpoint: Checkpoint file or directory of ``fit``.
        output: Directory to write; must be empty or not exist.
        merge: Merge LoRA adapters into the base model instead of writing them as adapters.
        base: Directory of the model that training started from, if it was moved; null takes the recorded one.
    """
    from adadpo_lightning.checkpoints.export import export_checkpoint
    from adadpo_lightning.checkpoints.model_card import write_card

    export_checkpoint(checkpoint, output, merge=merge, base=base)
    write_card(Path(output), Path(checkpoint).resolve().parent.parent)
    print(f"exported to {output}")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the parameters of `export`."""
    parser.add_function_arguments(export)


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Export."""
    export(**options(config))
