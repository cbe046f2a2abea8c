"""The subcommands that need no Trainer; the command line reads their signatures and docstrings."""

from __future__ import annotations

import dataclasses
from itertools import count
from pathlib import Path


def losses() -> None:
    """Table of the registered losses: formula, reference, options and defaults."""
    from rich.console import Console
    from rich.table import Table

    from adadpo_lightning.losses import available_losses, build_loss

    table = Table(show_lines=True)
    for column in ("key", "formula", "reference", "options and defaults", "source"):
        table.add_column(column, overflow="fold", no_wrap=column == "key")
    for key in available_losses():
        loss = build_loss(key)
        options = dataclasses.fields(loss)  # type: ignore[arg-type]  # registered losses are dataclasses
        defaults = "\n".join(f"{f.name}={getattr(loss, f.name)}" for f in options)
        table.add_row(key, loss.formula, "needed" if loss.needs_reference else "-", defaults or "-", loss.source)
    Console().print(table)


def export(checkpoint: str, output: str, merge: bool = False) -> None:
    """Write a checkpoint's policy as a Hugging Face directory.

    Args:
        checkpoint: A checkpoint file of ``fit``.
        output: Directory to write; must not exist or be empty.
        merge: Merge LoRA adapters into the base model and not write them as adapters.
    """
    from adadpo_lightning.models.export import export_checkpoint

    export_checkpoint(checkpoint, output, merge=merge)
    print(f"exported to {output}")


def quickstart(output_dir: str | None = None, seed: int = 0) -> None:
    """The embedded task from end to end: warm-up, pairs, AdaDPO, evaluation.

    Args:
        output_dir: Directory to write to; must not exist or be empty. Null takes runs/quickstart, or the first of
            runs/quickstart-2, -3, ... that is free.
        seed: Seed of the whole pipeline.
    """
    if output_dir is None:
        names = ("runs/quickstart" if n == 1 else f"runs/quickstart-{n}" for n in count(1))
        output_dir = next(name for name in names if not Path(name).exists())
    from adadpo_lightning.cli import main
    from adadpo_lightning.quickstart import run_quickstart

    run_quickstart(output_dir, seed, main)
