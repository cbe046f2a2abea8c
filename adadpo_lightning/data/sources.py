"""Sources of rows: local files, file patterns, `save_to_disk` directories and hub datasets."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from adadpo_lightning import fingerprint, hub
from adadpo_lightning.compat import fingerprint_of
from adadpo_lightning.data.cache import cache_folder, cached_table, writing
from adadpo_lightning.data.directories import choose_split, slice_of, splits_of
from adadpo_lightning.data.files import (
    FILE_TYPES,
    JSON_TYPES,
    NO_ROWS,
    decode,
    is_json_array,
    read_csv,
    read_json_array,
    read_json_lines,
    read_parquet,
)
from adadpo_lightning.data.formats import check_format
from adadpo_lightning.data.schema import BadRow
from adadpo_lightning.errors import UserError, first_line, one_line

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["FILE_TYPES", "Rows", "SourceConfig", "decode", "load_rows"]

# Raised by hand when the cached tables of files change.
TABLE_VERSION = 1


@dataclass
class SourceConfig:
    """One source of preference pairs.

    Args:
        path: Local file (.jsonl, .json, .parquet, .csv, .arrow), pattern of such files (``pairs-*.jsonl``;
            existing names are never treated as patterns), directory (of `save_to_disk` or data files), or hub id.
        subset: Configuration of a hub dataset.
        split: Split of a hub dataset or of a directory with several splits, for example ``train`` or ``train[:10%]``.
        revision: Revision of a hub dataset.
        weight: Number of passes over this source per epoch: 1 uses each pair once, 2 twice, 0.5 a random half (the same
            half in every epoch), 1.5 each pair once and a random half twice.
        columns: Maps this package's names (prompt, chosen, rejected, system, tools, messages, weight, margin,
            chat_template_kwargs) to the dataset's column names.
        format: Format of the rows, one of `formats.FORMATS`; null detects it.
    """

    path: str
    subset: str | None = None
    split: str | None = None
    revision: str | None = None
    weight: float = 1.0
    columns: dict[str, str] | None = None
    format: str | None = None

    def __post_init__(self) -> None:
        """Validate the options that do not require reading the source."""
        if not 0 < self.weight < math.inf:
            raise UserError(f"{self.path}: weight", f"expected a number above 0, got {self.weight}")
        if self.format is not None:
            check_format(self.format, f"{self.path}: format")


class Part(NamedTuple):
    """A file's share of the rows: number of its first row, its path, and whether row i is line i + 1."""

    first: int
    path: str
    lines: bool = False


@dataclass(frozen=True)
class Rows:
    """The unprocessed rows of a source.

    Args:
        table: Memory-mapped; for JSON the text of each row, so that rows need not have the same types.
        parts: The files that the rows come from.
        key: Hash of the content.
        is_json: Whether the table holds JSON text.
        skipped: Rows of the parts before the table's first, for a slice of a split.
    """

    table: Dataset
    parts: tuple[Part, ...]
    key: str
    is_json: bool = False
    skipped: int = 0

    def where(self, row: int) -> str:
        """Location of a row, counted from 1: ``file:line`` for lines, otherwise ``file, row n``."""
        number = row + self.skipped
        part = [part for part in self.parts if part.first <= number][-1]
        number += 1 - part.first
        return f"{part.path}:{number}" if part.lines else f"{part.path}, row {number}"

    def head(self, count: int) -> Iterator[dict[str, Any]]:
        """The first readable rows."""
        return self._decoded(range(min(count, len(self.table))))

    def sample(self, count: int) -> Iterator[dict[str, Any]]:
        """About `count` readable rows, evenly spaced over the source."""
        return self._decoded(range(0, len(self.table), max(1, len(self.table) // count)))

    def _decoded(self, numbers: range) -> Iterator[dict[str, Any]]:
        for values in self.table.select(numbers):
            try:
                row = decode(values, is_json=self.is_json)
            except BadRow:
                continue
            if row is not None:
                yield row


def load_rows(source: SourceConfig) -> Rows:
    """Load the rows of a source.

    Raises:
        UserError: If it is missing, empty, of an unknown kind or malformed.
    """
    path = Path(source.path).expanduser()
    if path.is_file():
        rows = _load_files([path], source)
    elif path.is_dir():
        rows = _load_directory(path, source)
    elif glob.has_magic(source.path):
        found = sorted(name for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not found:
            raise UserError(source.path, "no file matches this pattern", "check the path")
        rows = _load_files([Path(name) for name in found], source)
    elif _looks_local(source.path):
        raise UserError(source.path, "no such file or directory", "check the path")
    else:
        rows = _load_hub(source)
    if not len(rows.table):
        raise UserError(source.path, *NO_ROWS)
    return rows


def _looks_local(path: str) -> bool:
    return Path(path).suffix in FILE_TYPES or path.startswith(("/", ".", "~")) or path.count("/") > 1


def _load_files(paths: Sequence[Path], source: SourceConfig) -> Rows:
    for name in ("subset", "split", "revision"):
        if getattr(source, name) is not None:
            raise UserError(
                f"{source.path}: {name}", "is for hub datasets and directories, this is a file", "leave it out"
            )
    kinds = {path.suffix for path in paths}
    if unknown := sorted(kinds - set(FILE_TYPES)):
        raise UserError(source.path, f"unknown file type {unknown[0]!r}", f"use one of {', '.join(FILE_TYPES)}")
    if len(kinds) > 1:
        raise UserError(source.path, f"matches files of several types: {', '.join(sorted(kinds))}", "give one type")
    return _joined([_load_file(path) for path in paths], source.path)


def _load_file(path: Path) -> Rows:
    from datasets import Dataset

    if path.stat().st_size == 0:
        raise UserError(str(path), "the file is empty", "give a file with at least one row")
    kind = path.suffix
    lines = kind == ".jsonl" or (kind == ".json" and not is_json_array(path))
    reader = read_json_lines if lines else {".csv": read_csv, ".parquet": read_parquet}.get(kind, read_json_array)
    try:
        key = fingerprint.of_data([TABLE_VERSION, kind, lines, fingerprint.of_file(path)])
        table = Dataset.from_file(str(path)) if kind == ".arrow" else cached_table(key, lambda: reader(path))
    except UserError:
        raise
    except (ValueError, OSError, MemoryError) as error:  # Arrow's errors are among them
        raise UserError(str(path), f"cannot be read as {kind[1:]}: {first_line(error)}", "correct the file") from error
    return Rows(table, (Part(0, str(path), lines),), key, is_json=kind in JSON_TYPES)


def _joined(rows: list[Rows], path: str) -> Rows:
    """The concatenated rows of several files."""
    from datasets import concatenate_datasets

    if len(rows) == 1:
        return rows[0]
    columns = [sorted(part.table.column_names) for part in rows]
    other = next((i for i, names in enumerate(columns) if names != columns[0]), None)
    if other is not None:
        first, second = rows[0].parts[0].path, rows[other].parts[0].path
        raise UserError(path, f"{first} and {second} have different columns", "give files of one shape")
    try:
        table = concatenate_datasets([part.table for part in rows])
    except ValueError as error:
        raise UserError(path, f"the files have different types: {first_line(error)}", "make them the same") from error
    parts, first_row = [], 0
    for part in rows:
        parts.append(part.parts[0]._replace(first=first_row))
        first_row += len(part.table)
    return Rows(table, tuple(parts), fingerprint.of_data([part.key for part in rows]), rows[0].is_json)


def _load_directory(path: Path, source: SourceConfig) -> Rows:
    from datasets import Dataset, load_from_disk

    key = fingerprint.of_data([fingerprint.of_file(file) for file in sorted(path.rglob("*")) if file.is_file()])
    if not any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
        splits = None if source.subset is not None else splits_of(path)
        return _load_hub(source, key) if splits is None else _load_split(splits, source)
    try:
        loaded = load_from_disk(str(path))
    except Exception as error:  # what `datasets` raises depends on which of its files is odd
        raise UserError(str(path), f"cannot be read: {one_line(error)}", "save it again") from error
    if not isinstance(loaded, Dataset):
        split = choose_split(source.path, source.split, list(loaded))
        return Rows(loaded[split], (Part(0, source.path),), fingerprint.of_data([key, split]))
    if source.split is not None:
        raise UserError(f"{path}: split", "this directory holds a dataset without splits", "leave it out")
    return Rows(loaded, (Part(0, source.path),), key)


def _load_split(splits: dict[str, list[Path]], source: SourceConfig) -> Rows:
    asked = source.split.partition("[")[0] if source.split is not None else None
    name = choose_split(source.path, asked, list(splits))
    rows = _joined([_load_file(file) for file in splits[name]], source.path)
    if source.split in (None, name):
        return rows
    _, numbers = slice_of(source.path, str(source.split), len(rows.table))
    key = fingerprint.of_data([rows.key, numbers.start, numbers.stop])
    return Rows(rows.table.select(numbers), rows.parts, key, rows.is_json, skipped=numbers.start)


def _load_hub(source: SourceConfig, key: str | None = None) -> Rows:
    """Load a hub dataset, or a local directory that only `load_dataset` can read; `key` is then its content hash."""
    from datasets import load_dataset

    # The cache of `datasets` depends on path and time; a folder per content hash avoids stale rows.
    folder = None if key is None else str(cache_folder() / key)
    try:
        with writing(), hub.loading(source.path):
            # A split is chosen by `load_dataset` itself, which knows slices.
            loaded = load_dataset(
                source.path, source.subset, revision=source.revision, split=source.split, cache_dir=folder
            )
    except UserError:
        raise
    except Exception as error:  # cards, data and networks make `datasets` raise errors of many types
        raise UserError(
            source.path,
            ("cannot be read: " if key else "is no local path, and the hub has no answer: ") + one_line(error),
            "check subset and split" if key else "check the spelling, subset, split, network and your access",
        ) from error
    table = loaded if source.split is not None else loaded[choose_split(source.path, None, list(loaded))]
    return Rows(table, (Part(0, source.path),), fingerprint_of(table))
