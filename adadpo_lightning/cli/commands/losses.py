"""Table of the registered losses: formula, reference, options and defaults."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add nothing: the command has no options of its own."""


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Print the table."""
    from adadpo_lightning.losses import available_losses, build_loss

    table = Table(show_lines=True)
    for column in ("key", "formula", "reference", "options and defaults", "source"):
        table.add_column(column, overflow="fold", no_wrap=column == "key")
    for key in available_losses():
        loss = build_loss(key)
        fields = dataclasses.fields(loss)  # type: ignore[arg-type]  # registered losses are dataclasses
        defaults = "\n".join(f"{field.name}={getattr(loss, field.name)}" for field in fields)
        cells = (key, loss.formula, "needed" if loss.needs_reference else "-", defaults or "-", loss.source)
        table.add_row(*map(Text, cells))  # a formula may look like Rich markup
    Console().print(table)
