"""A CSV file of metrics that a kill cannot shorten: rows are appended one by one, and replaced only as a whole file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
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
        # Of the earlier run, what this one may write again; the rest of the file is never held in memory.
        self._old: list[Row] = []
        self._first = True
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if not continued:
                raise FileExistsError(path)
            self._open()

    def _open(self) -> None:
        """Read the columns of what is there; cut off an incomplete last row."""
        there = self.path.read_bytes()
        complete = there.rfind(b"\n") + 1
        if complete < len(there):
            os.truncate(self.path, complete)
        with self.path.open(encoding="utf-8", newline="") as file:
            self.columns = list(csv.DictReader(file).fieldnames or ())

    def _rows(self) -> Iterator[Row]:
        """The rows of the file, one at a time."""
        if self.path.exists():
            with self.path.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    yield {name: value for name, value in row.items() if value}

    def append(self, step: int, values: Mapping[str, Any]) -> int:
        """Write one row.

        Args:
            step: Optimizer step.
            values: Metrics by name.

        Returns:
            Number of rows of the earlier run that were moved to ``replaced.csv``.
        """
        row = {name: str(value) for name, value in ({"step": step} | dict(values)).items()}
        if self._first:
            # A resumed run does not go back behind its first row; validation and training count steps one apart.
            self._old = [old for old in self._rows() if _step(old) >= step - 1]
        moved = self._move([old for old in self._old if _is_repeated(old, step, row, later=self._first)])
        self._first = False
        missing = sorted(set(row) - set(self.columns))
        if missing or moved:
            self.columns += missing
            self._rewrite(chain((old for old in self._rows() if _key(old) not in moved), [row]))
        else:
            with self.path.open("ab", buffering=0) as file:
                file.write(self._text(row))
        return len(moved)

    def sync(self) -> None:
        """Wait until all rows are on the disk, so that power loss cannot take them either."""
        with self.path.open("ab") as file:
            os.fsync(file.fileno())

    def _move(self, gone: Sequence[Row]) -> set[tuple[tuple[str, str], ...]]:
        """Move rows of the earlier run to ``replaced.csv``; returns their keys."""
        if not gone:
            return set()
        with self.path.with_name("replaced.csv").open("a", encoding="utf-8", newline="") as file:
            for row in gone:
                csv.writer(file).writerows((row["step"], name, row[name]) for name in row if name != "step")
        moved = {_key(row) for row in gone}
        self._old = [row for row in self._old if _key(row) not in moved]
        return moved

    def _rewrite(self, rows: Iterable[Row]) -> None:
        partial = self.path.with_name(f".{self.path.name}.partial")
        try:
            with partial.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, self.columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    def _text(self, row: Row) -> bytes:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self.columns, lineterminator="\n").writerow(row)
        return text.getvalue().encode()


def _key(row: Row) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(row.items()))


def _step(row: Row) -> int:
    return int(row.get("step", -1))


def _is_repeated(old: Row, step: int, row: Row, *, later: bool) -> bool:
    there = _step(old)
    return (later and there > step) or (there == step and bool((set(old) & set(row)) - {*COMMON}))
