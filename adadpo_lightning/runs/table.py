"""A CSV file of metrics that a kill cannot shorten: rows are appended one by one, and replaced only as a whole file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

# Columns that every row has: not what a row is about.
COMMON = ("epoch", "step")
Row = dict[str, str]


class Table:
    """The file, its columns, and the rows of an earlier run that it continues.

    A row is one write to the file at the moment it is logged, so that SIGKILL loses none. A new column rewrites the
    file beside itself and replaces it in one step.

    Args:
        path: The file; its directory is created.
        continued: Whether the rows that are there belong to the run that this one resumes. Rows that this run writes
            again are moved to ``replaced.csv`` beside the file: as it writes its first row all of later steps, and at
            any time those of the same step and metrics.

    Raises:
        FileExistsError: If the file is there and not continued.
    """

    def __init__(self, path: Path, *, continued: bool) -> None:
        self.path = path
        self.columns: list[str] = []
        self.old: list[Row] = []
        self.new: list[Row] | None = None  # None as long as no row was written
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if not continued:
                raise FileExistsError(path)
            self._open()

    def _open(self) -> None:
        """Read what is there, without an incomplete last row."""
        text = self.path.read_text(encoding="utf-8")
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        self.columns = list(reader.fieldnames or ())
        self.old = [{name: value for name, value in row.items() if value} for row in reader]
        if not text.endswith("\n"):
            self._rewrite()

    def append(self, step: int, values: Mapping[str, Any]) -> int:
        """Write one row.

        Args:
            step: Optimizer step.
            values: Metrics by name.

        Returns:
            Number of rows of the earlier run that were moved to ``replaced.csv``.
        """
        row = {name: str(value) for name, value in ({"step": step} | dict(values)).items()}
        first = self.new is None
        moved = self._replace(lambda old: _is_repeated(old, step, row, later=first))
        self.new = [*(self.new or ()), row]
        missing = sorted(set(row) - set(self.columns))
        if missing:
            self.columns += missing
            self._rewrite()
        else:
            with self.path.open("ab", buffering=0) as file:
                file.write(self._text([row]))
            if moved:
                self._rewrite()
        return moved

    def sync(self) -> None:
        """Wait until all rows are on the disk, so that power loss cannot take them either."""
        with self.path.open("ab") as file:
            os.fsync(file.fileno())

    def _replace(self, repeated: Callable[[Row], bool]) -> int:
        gone = [row for row in self.old if repeated(row)]
        if gone:
            with self.path.with_name("replaced.csv").open("a", encoding="utf-8", newline="") as file:
                for row in gone:
                    csv.writer(file).writerows((row["step"], name, row[name]) for name in row if name != "step")
            self.old = [row for row in self.old if not repeated(row)]
        return len(gone)

    def _rewrite(self) -> None:
        partial = self.path.with_name(f".{self.path.name}.partial")
        try:
            with partial.open("wb") as file:
                header = dict(zip(self.columns, self.columns, strict=True))
                file.write(self._text([header, *self.old, *(self.new or ())]))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    def _text(self, rows: Iterable[Row]) -> bytes:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self.columns, lineterminator="\n").writerows(rows)
        return text.getvalue().encode()


def _is_repeated(old: Row, step: int, row: Row, *, later: bool) -> bool:
    there = int(old.get("step", -1))
    return (later and there > step) or (there == step and bool((set(old) & set(row)) - {*COMMON}))
