"""Where rows come from: local files, `save_to_disk` directories and hub datasets."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadpo_lightning.data.schema import FORMATS, BadRow
from adadpo_lightning.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

FILE_TYPES = (".jsonl", ".json", ".parquet", ".csv", ".arrow")


@dataclass
class SourceConfig:
    """One source of preference pairs.

    Args:
        path: Local file (.jsonl, .json, .parquet, .csv, .arrow), directory (of `save_to_disk`, or of data files), or
            hub id.
        subset: Configuration of a hub dataset.
        split: Split of a hub dataset or of a directory that holds several, such as ``train`` or ``train[:10%]``.
        revision: Revision of a hub dataset.
        weight: Passes over this source in an epoch: 1 takes each pair once, 2 twice, 0.5 a half drawn with the data's
            seed (the same half in every epoch), 1.5 each once and a half of them twice.
        columns: From this package's names (prompt, chosen, rejected, system, tools, messages, weight, margin) to the
            dataset's.
        format: Shape of the rows, one of `schema.FORMATS`; null detects it.
    """

    path: str
    subset: str | None = None
    split: str | None = None
    revision: str | None = None
    weight: float = 1.0
    columns: dict[str, str] | None = None
    format: str | None = None

    def __post_init__(self) -> None:
        """Check what needs no reading."""
        if self.weight <= 0:
            raise UserError(f"{self.path}: weight", f"expected a number above 0, got {self.weight}")
        if self.format is not None and self.format not in FORMATS:
            raise UserError(
                f"{self.path}: format", f"unknown format {self.format!r}", did_you_mean(self.format, FORMATS)
            )


@dataclass(frozen=True)
class Rows:
    """The rows of a source as they lie on disk.

    Args:
        table: Memory-mapped; for JSON the text of each row, so that rows need not have the same types.
        path: For error messages.
        lines: Whether row i is line i + 1 of a text file.
        is_json: Whether the table holds JSON text.
    """

    table: Dataset
    path: str
    lines: bool = False
    is_json: bool = False

    def where(self, row: int) -> str:
        """Where a row stands, counted from 1: ``file:line`` for lines, else ``file, row n``."""
        return f"{self.path}:{row + 1}" if self.lines else f"{self.path}, row {row + 1}"

    def head(self, count: int) -> Iterator[dict[str, Any]]:
        """The first rows that can be read."""
        return self._decoded(range(min(count, len(self.table))))

    def sample(self, count: int) -> Iterator[dict[str, Any]]:
        """Rows at equal distances over the whole source that can be read, about `count` of them."""
        return self._decoded(range(0, len(self.table), max(1, len(self.table) // count)))

    def _decoded(self, numbers: range) -> Iterator[dict[str, Any]]:
        for values in self.table.select(numbers):
            try:
                row = decode(values, is_json=self.is_json)
            except BadRow:
                continue
            if row is not None:
                yield row


def decode(values: dict[str, Any], *, is_json: bool) -> dict[str, Any] | None:
    """A row from what the table holds of it; None for a blank line.

    Raises:
        BadRow: If it is no JSON object.
    """
    if not is_json:
        return values
    text = values["text"].lstrip("\ufeff")
    if not text.strip():
        return None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow("malformed JSON", _first_line(error)) from error
    if not isinstance(row, dict):
        raise BadRow("malformed JSON", f"expected an object, got {type(row).__name__}")
    return row


def load_rows(source: SourceConfig) -> Rows:
    """Load the rows of a source.

    Raises:
        UserError: If it is missing, empty, of an unknown kind or malformed.
    """
    path = Path(source.path).expanduser()
    if path.is_file():
        rows = _load_file(path, source)
    elif path.is_dir():
        rows = Rows(_load_directory(path, source), source.path)
    elif _looks_local(source.path):
        raise UserError(source.path, "there is no such file or directory", "check the path")
    else:
        rows = Rows(_load_hub(source), source.path)
    if not len(rows.table):
        raise UserError(source.path, "holds no rows", "give a source with at least one")
    return rows


def _looks_local(path: str) -> bool:
    return Path(path).suffix in FILE_TYPES or path.startswith(("/", ".", "~")) or path.count("/") > 1


def _load_file(path: Path, source: SourceConfig) -> Rows:
    from datasets import Dataset, load_dataset
    from datasets.exceptions import DatasetGenerationError

    for name in ("subset", "split", "revision"):
        if getattr(source, name) is not None:
            raise UserError(f"{path}: {name}", "is for hub datasets and directories, this is a file", "leave it out")
    if path.suffix not in FILE_TYPES:
        raise UserError(str(path), f"unknown file type {path.suffix!r}", f"use one of {', '.join(FILE_TYPES)}")
    if path.stat().st_size == 0:
        raise UserError(str(path), "the file is empty", "give a file with at least one row")
    if path.suffix == ".json" and (listed := _json_array(path)) is not None:
        return Rows(Dataset.from_dict({"text": [json.dumps(row) for row in listed]}), str(path), is_json=True)
    try:
        if path.suffix in (".json", ".jsonl"):
            _check_json_lines(path)
            table = load_dataset("text", data_files=str(path), split="train")
            return Rows(table, str(path), lines=True, is_json=True)
        if path.suffix == ".arrow":
            return Rows(Dataset.from_file(str(path)), str(path))
        options = _csv_as_text(path) if path.suffix == ".csv" else {}
        return Rows(load_dataset(path.suffix[1:], data_files=str(path), split="train", **options), str(path))
    except UserError:
        raise
    except (DatasetGenerationError, ValueError, OSError) as error:
        cause = _first_line(error.__cause__ or error)
        raise UserError(str(path), f"cannot be read as {path.suffix[1:]}: {cause}", "mend the file") from error


def _csv_as_text(path: Path) -> dict[str, Any]:
    """Options under which no cell is read as a number or as missing."""
    from datasets import Features, Value

    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        names = next(rows, [])
        if next(rows, None) is None:
            raise UserError(str(path), "holds no rows", "give a file with at least one row")
    return {"features": Features({name: Value("string") for name in names}), "keep_default_na": False}


def _json_array(path: Path) -> list[Any] | None:
    """The rows of a file that is one JSON array; None for one that looks like JSON lines.

    Raises:
        UserError: If it is an array but malformed, or holds no row.
    """
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if not text.lstrip().startswith("["):
        return None
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise UserError(str(path), f"malformed JSON: {error}", "mend the file") from error
    if not rows:
        raise UserError(str(path), "holds no rows", "give a file with at least one row")
    return list(rows)


def _check_json_lines(path: Path) -> None:
    """Check every line before anything is built from them.

    Raises:
        UserError: With file and line of the first that is no JSON object.
    """
    rows = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                rows += decode({"text": line.decode("utf-8")}, is_json=True) is not None
            except (BadRow, UnicodeDecodeError) as error:
                raise UserError(f"{path}:{number}", str(error), "write one JSON object a line, in UTF-8") from error
    if not rows:
        raise UserError(str(path), "holds no rows", "give a file with at least one row")


def _load_directory(path: Path, source: SourceConfig) -> Dataset:
    from datasets import Dataset, load_from_disk

    if not any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
        return _load_hub(source)
    try:
        loaded = load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"cannot be read: {_first_line(error)}", "save it again") from error
    if not isinstance(loaded, Dataset):
        return loaded[_split(source, list(loaded))]
    if source.split is not None:
        raise UserError(f"{path}: split", "this directory holds a dataset without splits", "leave it out")
    return loaded


def _load_hub(source: SourceConfig) -> Dataset:
    """Also for local directories of data files, which `load_dataset` treats alike."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        # A split is chosen by `load_dataset` itself, which knows slices.
        loaded = load_dataset(source.path, source.subset, revision=source.revision, split=source.split)
    except (OSError, ValueError, ConnectionError, DatasetGenerationError) as error:
        local = Path(source.path).expanduser().is_dir()
        raise UserError(
            source.path,
            ("cannot be read: " if local else "is no local path, and the hub has no answer: ") + _first_line(error),
            "check subset and split" if local else "check the spelling, subset, split, network and your access",
        ) from error
    return loaded if source.split is not None else loaded[_split(source, list(loaded))]


def _split(source: SourceConfig, names: list[str]) -> str:
    if source.split in names:
        return source.split
    if source.split is None and len(names) == 1:
        return names[0]
    problem = f"there are several: {', '.join(names)}" if source.split is None else f"there is no {source.split!r}"
    raise UserError(f"{source.path}: split", problem, f"name one of {', '.join(names)}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
