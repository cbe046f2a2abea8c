"""Where rows come from: local files, `save_to_disk` directories and hub datasets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadpo_lightning.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".arrow": "arrow"}


@dataclass
class SourceConfig:
    """One source of preference pairs.

    Args:
        path: Local file (.jsonl, .json, .parquet, .csv, .arrow), directory of `save_to_disk`, or hub id.
        subset: Configuration of a hub dataset.
        split: Split of a hub dataset or of a directory that holds several.
        revision: Revision of a hub dataset.
        weight: Copies of each row in an epoch: 2 takes every row twice, 0.5 a random half, drawn with the data's seed.
        columns: From our names (prompt, chosen, rejected, system, tools, weight, margin) to the dataset's.
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
        from adadpo_lightning.data.schema import FORMATS

        if self.weight <= 0:
            raise UserError("data.weight", f"expected a number above 0, got {self.weight}")
        if self.format is not None and self.format not in FORMATS:
            raise UserError("data.format", f"unknown format {self.format!r}", did_you_mean(self.format, FORMATS))

    def location(self, row: int) -> str:
        """Where a row stands, for error messages; `row` counts from 0."""
        return f"{self.path}:{row + 1}" if self.path.endswith(".jsonl") else f"{self.path}, row {row + 1}"


def load_rows(source: SourceConfig) -> Dataset:
    """Load the rows of a source.

    Raises:
        UserError: If it is missing, empty, of an unknown kind or malformed.
    """
    path = Path(source.path).expanduser()
    if path.is_file():
        rows = _load_file(path)
    elif path.is_dir():
        rows = _load_directory(path, source)
    elif _looks_local(source.path):
        raise UserError(source.path, "there is no such file or directory", "check the path")
    else:
        rows = _load_hub(source)
    if len(rows) == 0:
        raise UserError(source.path, "holds no rows", "give a file with at least one pair")
    return rows


def _looks_local(path: str) -> bool:
    return Path(path).suffix in LOADERS or path.startswith(("/", ".", "~")) or path.count("/") > 1


def _load_file(path: Path) -> Dataset:
    from datasets import Dataset, load_dataset
    from datasets.exceptions import DatasetGenerationError

    loader = LOADERS.get(path.suffix)
    if loader is None:
        raise UserError(str(path), f"unknown file type {path.suffix!r}", f"use one of {', '.join(LOADERS)}")
    if path.stat().st_size == 0:
        raise UserError(str(path), "the file is empty", "give a file with at least one pair")
    if path.suffix == ".jsonl":
        check_json_lines(path)
    try:
        if loader == "arrow":
            return Dataset.from_file(str(path))
        return load_dataset(loader, data_files=str(path), split="train")
    except (DatasetGenerationError, ValueError, OSError) as error:
        cause = error.__cause__ or error
        raise UserError(str(path), f"cannot be read as {loader}: {_first_line(cause)}", "mend the file") from error


def check_json_lines(path: Path) -> None:
    """Check that every line is a JSON object.

    Raises:
        UserError: With file and line of the first that is not.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}:{number}"
            try:
                value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise UserError(where, f"is not UTF-8: {error.reason}", "convert the file to UTF-8") from error
            except ValueError as error:
                raise UserError(where, f"is no JSON: {_first_line(error)}", "one JSON object a line") from error
            if not isinstance(value, dict):
                raise UserError(where, f"expected a JSON object, got {type(value).__name__}", "one JSON object a line")


def _load_directory(path: Path, source: SourceConfig) -> Dataset:
    from datasets import DatasetDict, load_dataset, load_from_disk

    is_saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
    try:
        loaded = load_from_disk(str(path)) if is_saved else load_dataset(str(path), source.subset)
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"holds no dataset: {_first_line(error)}", "give a dataset's directory") from error
    return _split(loaded, source) if isinstance(loaded, DatasetDict) else loaded


def _load_hub(source: SourceConfig) -> Dataset:
    from datasets import load_dataset

    try:
        loaded = load_dataset(source.path, source.subset, revision=source.revision)
    except (OSError, ValueError, ConnectionError) as error:
        raise UserError(
            source.path,
            f"is no local file and could not be loaded from the hub: {_first_line(error)}",
            "check the spelling, the network and your access",
        ) from error
    return _split(loaded, source)


def _split(loaded: Any, source: SourceConfig) -> Dataset:
    names = list(loaded)
    if source.split is None and len(names) > 1 and "train" not in names:
        raise UserError(f"{source.path}: split", f"there are several: {names}", "name one with `split`")
    name = source.split or ("train" if "train" in names else names[0])
    if name not in names:
        raise UserError(f"{source.path}: split", f"there is no split {name!r}", did_you_mean(name, names))
    return loaded[name]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
