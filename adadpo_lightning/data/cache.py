"""Arrow files in the cache of `datasets`, named after the content that they were made of.

Nothing is ever written beside the user's data, and a file that changed without changing its time is read anew.
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
    """A memory-mapped table from the cache, built if it is not there.

    Args:
        key: Says what the table is made of; part of its file name.
        build: Yields the table in batches.

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
    """Write a whole file or none, also where several processes write the same one."""
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
    """Turn a full or read-only disk into an error that says where the cache is."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        from datasets import config

        raise UserError(
            str(config.HF_DATASETS_CACHE),
            f"the cache of tokenised data cannot be written: {error.strerror}",
            "free some space, or set HF_DATASETS_CACHE to another directory",
        ) from error
