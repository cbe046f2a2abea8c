"""Table of the registered losses: formula, reference, options and defaults."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from adadpo_lightning.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from adadpo_lightning.losses import PreferenceLoss


def add_arguments(parser: ArgumentParser) -> None:
    """Add the filter."""
    parser.add_argument(
        "--group",
        type=str | None,
        default=None,
        help="Show one group: margin, remedy, side-wise, reference-free, listwise or likelihood; without it, all.",
    )


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Print one table per group."""
    from adadpo_lightning.losses import available_losses, build_loss

    groups: dict[str, list[PreferenceLoss]] = {}
    for loss in map(build_loss, available_losses()):
        groups.setdefault(loss.group, []).append(loss)
    if config.group is not None and config.group not in groups:
        raise UserError("group", f"no group {config.group!r}", did_you_mean(config.group, groups))
    for group in [config.group] if config.group else groups:
        Console().print(_table(group, groups[group]))


def _table(group: str, losses: list[PreferenceLoss]) -> Table:
    table = Table(title=group, show_lines=True)
    for column in ("key", "formula", "reference", "options and defaults", "source"):
        table.add_column(column, overflow="fold", no_wrap=column == "key")
    for loss in losses:
        fields = dataclasses.fields(loss)  # type: ignore[arg-type]  # registered losses are dataclasses
        defaults = "\n".join(f"{field.name}={getattr(loss, field.name)}" for field in fields)
        cells = (loss.key, loss.formula, "needed" if loss.needs_reference else "-", defaults or "-", loss.source)
        table.add_row(*map(Text, cells))  # a formula may look like Rich markup
    return table
