"""A CSV file of metrics that a kill cannot shorten: rows are appended one by one, and replaced only as a whole file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
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
        self._old: list[
            Row
        ] = []  # those of the earlier run that this one has not written again; its own stay on the disk
        self._first = True
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if not continued:
                raise FileExistsError(path)
            self._open()

    def _open(self) -> None:
        """Read what is there, without an incomplete last row."""
        self.columns, self._old = self._read()
        if not self.path.read_bytes().endswith(b"\n"):
            self._rewrite(self._old)

    def _read(self) -> tuple[list[str], list[Row]]:
        """The columns and the complete rows of the file."""
        text = self.path.read_text(encoding="utf-8")
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        columns = list(reader.fieldnames or ())
        return columns, [{name: value for name, value in row.items() if value} for row in reader]

    def append(self, step: int, values: Mapping[str, Any]) -> int:
        """Write one row.

        Args:
            step: Optimizer step.
            values: Metrics by name.

        Returns:
            Number of rows of the earlier run that were moved to ``replaced.csv``.
        """
        row = {name: str(value) for name, value in ({"step": step} | dict(values)).items()}
        moved = self._move([old for old in self._old if _is_repeated(old, step, row, later=self._first)])
        if self._first:
            # A resumed run does not go back behind its first row; validation and training count steps one apart.
            self._old = [old for old in self._old if int(old.get("step", -1)) >= step - 1]
            self._first = False
        missing = sorted(set(row) - set(self.columns))
        if missing or moved:
            there = self._read()[1] if self.path.exists() else []
            self.columns += missing
            self._rewrite([*(old for old in there if _key(old) not in moved), row])
        else:
            with self.path.open("ab", buffering=0) as file:
                file.write(self._text([row]))
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
            with partial.open("wb") as file:
                header = dict(zip(self.columns, self.columns, strict=True))
                file.write(self._text([header, *rows]))
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


def _key(row: Row) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(row.items()))


def _is_repeated(old: Row, step: int, row: Row, *, later: bool) -> bool:
    there = int(old.get("step", -1))
    return (later and there > step) or (there == step and bool((set(old) & set(row)) - {*COMMON}))
