"""Report on the rows of a dataset: read, dropped, truncated, and how special tokens were read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


@dataclass
class DataReport:
    """Report on the rows of one dataset.

    Args:
        name: ``train``, ``val``, ...
        formats: Path to detected or forced format.
        rows: Rows read.
        dropped: Reason to number of rows.
        first_bad: File, row and problem of the first row that is not usable.
        cut: What was cut to number of pairs.
        boundary_moved: Pairs whose answers begin before the tokenised prompt's end.
        notes: Further counts.
        pairs: Pairs left, repeats by a source's weight included.
        tokens: Mean and longest token count of prompts, chosen and rejected answers.
        chosen_longer: Share of pairs whose chosen answer has more tokens.
    """

    name: str
    formats: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    first_bad: str = ""
    cut: Counter[str] = field(default_factory=Counter)
    boundary_moved: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    pairs: int = 0
    tokens: dict[str, tuple[float, int]] = field(default_factory=dict)
    chosen_longer: float = math.nan

    def note(self, what: str, count: int) -> None:
        """Add to a count, unless the number is zero."""
        if count:
            self.notes[what] = self.notes.get(what, 0) + count

    def lines(self) -> list[tuple[str, str]]:
        """The report as (label, count)."""
        return [
            *((f"{path}", f"{fmt} format") for path, fmt in self.formats.items()),
            *([("rows read", f"{self.rows:,}")] if self.rows else []),
            *((f"dropped: {reason}", f"{count:,}") for reason, count in sorted(self.dropped.items())),
            *((what, f"{count:,}") for what, count in sorted(self.cut.items())),
            *([("boundary inside a merged token", f"{self.boundary_moved:,}")] if self.boundary_moved else []),
            *((what, f"{count:,}") for what, count in self.notes.items()),
            ("pairs", f"{self.pairs:,}"),
            *(
                (f"tokens: {what}, mean / longest", f"{mean:.0f} / {most}")
                for what, (mean, most) in self.tokens.items()
            ),
            *([("chosen answer longer", f"{self.chosen_longer:.0%}")] if not math.isnan(self.chosen_longer) else []),
        ]


def report_table(reports: Sequence[DataReport]) -> Table:
    """All datasets in one table."""
    from rich.table import Table
    from rich.text import Text

    table = Table("data", title="Preference data")
    table.add_column("what", overflow="fold")
    table.add_column("count", justify="right", no_wrap=True)
    for report in reports:
        for i, (what, count) in enumerate(report.lines()):
            # As `Text`, so that brackets in a path or a reason are no markup.
            table.add_row("" if i else report.name, Text(what), Text(count))
        table.add_section()
    return table
