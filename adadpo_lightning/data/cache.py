"""Arrow files in the cache of `datasets`, named by a hash of their inputs.

Nothing is written next to the user's data. A file whose content changed is read again, even if its time did not change.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def cache_folder() -> Path:
    """Folder of this package's cached tables; created if missing."""
    from datasets import config

    folder = Path(config.HF_DATASETS_CACHE) / "adadpo_lightning"
    with writing():
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def cached_table(key: str, build: Callable[[], tuple[pa.Schema, Iterator[pa.RecordBatch]]]) -> Dataset:
    """A memory-mapped table from the cache, built if missing.

    Args:
        key: Hash of the inputs; part of the file name.
        build: Returns the schema and an iterator over batches.

    Raises:
        UserError: If the cache cannot be written.
    """
    from datasets import Dataset

    path = cache_folder() / f"{key}.arrow"
    if not path.exists():
        schema, batches = build()
        _write(path, schema, batches)
    return Dataset.from_file(str(path))


def _write(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    """Write a file atomically, even if several processes write the same one."""
    import pyarrow as pa

    with writing(), tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".tmp", delete=False) as file:
        try:
            with pa.ipc.new_stream(file, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            file.flush()
            Path(file.name).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(file.name).unlink()
            raise


@contextmanager
def writing() -> Iterator[None]:
    """Turn a full or read-only disk into an error that names the cache."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        from datasets import config

        raise UserError(
            str(config.HF_DATASETS_CACHE),
            f"the cache of tokenized data cannot be written: {error.strerror}",
            "free some space, or set HF_DATASETS_CACHE to another directory",
        ) from error
