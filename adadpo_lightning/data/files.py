"""Readers of data files: JSON lines and arrays yield the text of each row, CSV yields text cells."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadpo_lightning.data.schema import BadRow
from adadpo_lightning.errors import UserError, first_line

if TYPE_CHECKING:
    import pyarrow as pa

JSON_TYPES = (".jsonl", ".json")
FILE_TYPES = (*JSON_TYPES, ".parquet", ".csv", ".arrow")
ROWS_PER_BATCH = 1000
BLANK_BYTES = b" \t\r\n"
BOM = b"\xef\xbb\xbf"
NO_ROWS = ("contains no rows", "give a source with at least one")

Batches = tuple["pa.Schema", Iterator["pa.RecordBatch"]]


def decode(values: dict[str, Any], *, is_json: bool) -> dict[str, Any] | None:
    """Decode a row of a table; None for a blank line.

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
    except RecursionError as error:
        raise BadRow("malformed JSON", "nested too deep") from error
    except ValueError as error:
        raise BadRow("malformed JSON", first_line(error)) from error
    if not isinstance(row, dict):
        raise BadRow("malformed JSON", f"expected an object, got {type(row).__name__}")
    return row


def is_json_array(path: Path) -> bool:
    """Whether the first character of a file opens a list, ignoring BOM and whitespace."""
    with path.open("rb") as file:
        start = file.read(len(BOM))
        start = b"" if start == BOM else start
        while not start.lstrip(BLANK_BYTES) and (more := file.read(4096)):
            start = more
    return start.lstrip(BLANK_BYTES).startswith(b"[")


def read_json_lines(path: Path) -> Batches:
    """Column ``text`` with the lines of a file; each is checked before anything is trained on.

    Raises:
        UserError: With file and line of the first that is no JSON object.
    """

    def lines() -> Iterator[str]:
        rows = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    text = line.decode("utf-8")
                    rows += decode({"text": text}, is_json=True) is not None
                except (BadRow, UnicodeDecodeError) as error:
                    raise UserError(
                        f"{path}:{number}", str(error), "write one JSON object per line, in UTF-8"
                    ) from error
                yield text.rstrip("\r\n")
        if not rows:
            raise UserError(str(path), *NO_ROWS)

    return _texts(lines())


def read_json_array(path: Path) -> Batches:
    """Column ``text`` with the elements of a file that is one JSON array.

    Raises:
        UserError: If it is no UTF-8, malformed or empty.
    """
    content = path.read_bytes()
    try:
        rows = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        # Without the BOM, `error.start` counts from behind it.
        at = error.start + len(BOM) * content.startswith(BOM)
        row = _elements(content[:at].decode("utf-8-sig")) + 1
        raise _not_utf8(path, content, at, f"row {row}") from error
    except RecursionError as error:
        raise UserError(str(path), "malformed JSON: nested too deep", "correct the file") from error
    except ValueError as error:
        raise UserError(str(path), f"malformed JSON: {error}", "correct the file") from error
    if not rows:
        raise UserError(str(path), *NO_ROWS)
    return _texts(json.dumps(row) for row in rows)


def _elements(text: str) -> int:
    """Complete elements at the start of a truncated JSON array."""
    decoder, at, count = json.JSONDecoder(), text.find("[") + 1, 0
    while True:
        at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n,"))
        try:
            _, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return count
        count += 1


def _not_utf8(path: Path, content: bytes, at: int, where: str) -> UserError:
    return UserError(
        f"{path}, {where}",
        f"is not UTF-8: byte 0x{content[at]:02x} at offset {at:,} cannot be decoded",
        "convert the file to UTF-8",
    )


def _texts(texts: Iterator[str]) -> Batches:
    import pyarrow as pa

    schema = pa.schema({"text": pa.string()})
    return schema, (pa.record_batch([pa.array(part, pa.string())], schema=schema) for part in _parts(texts))


def _parts(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while part := list(islice(iterator, ROWS_PER_BATCH)):
        yield part


def read_csv(path: Path) -> Batches:
    """The cells of a CSV file as text; none are parsed as numbers or missing values.

    Raises:
        UserError: With the row of the first that is malformed or has more cells than the header.
    """
    import pyarrow as pa

    rows = _csv_rows(path)
    names = next(rows, [])
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise UserError(str(path), f"duplicate column {repeated[0]!r} in the header", "rename one of them")
    first = next(rows, None)
    if first is None:
        raise UserError(str(path), *NO_ROWS)
    schema = pa.schema({name: pa.string() for name in names})

    def batches() -> Iterator[pa.RecordBatch]:
        for part in _parts(_chain(first, rows)):
            columns = [[row[i] if i < len(row) else None for row in part] for i in range(len(names))]
            yield pa.record_batch([pa.array(column, pa.string()) for column in columns], schema=schema)

    return schema, batches()


def _chain(first: list[str], rest: Iterator[list[str]]) -> Iterator[list[str]]:
    yield first
    yield from rest


def _csv_rows(path: Path) -> Iterator[list[str]]:
    """Header and rows; blank lines are skipped."""
    number, width = -1, None
    # The limit is the module's own, for all readers: raised for this file, whose cells are whole answers.
    before = csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for cells in csv.reader(file, strict=True):
                if not cells:
                    continue
                number += 1
                width = len(cells) if width is None else width
                if len(cells) > width:
                    raise UserError(
                        f"{path}, row {number}",
                        f"has {len(cells)} cells, and the header has {width} columns",
                        "quote cells that contain commas",
                    )
                yield cells
    except csv.Error as error:
        raise UserError(f"{path}, row {number + 1}", f"malformed CSV: {error}", "correct the file") from error
    except UnicodeDecodeError as error:
        content = path.read_bytes()
        try:
            content.decode("utf-8")
        except UnicodeDecodeError as whole:
            raise _not_utf8(path, content, whole.start, f"after row {max(number, 0)}") from error
        raise
    finally:
        csv.field_size_limit(before)


def read_parquet(path: Path) -> Batches:
    """The rows of a Parquet file with their stored types."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    return file.schema_arrow, file.iter_batches(batch_size=ROWS_PER_BATCH)
