"""A lock on a directory for the life of a process: two runs never write to the same place."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from adadpo_lightning.errors import UserError

LOCK = ".lock"
OWNER = ".lock.json"


@contextmanager
def claim(folder: Path, field: str) -> Iterator[None]:
    """Hold the lock of a directory, which is made if it does not exist.

    The operating system releases the lock when the process ends, by SIGKILL too. On a network file
    system it holds as far as that implements ``flock``.

    Args:
        folder: The directory.
        field: Name of the option that chose it, for the error.

    Raises:
        UserError: If another process holds it; the error names its host and process id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner, lock = folder / OWNER, FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            field, f"{folder} is in use by {_read_owner(owner)}", "wait until it ends, or choose another directory"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise UserError(field, f"{folder} cannot be locked: {error}", "choose a directory on another disk") from error
    try:
        owner.write_text(json.dumps({"host": platform.node(), "pid": os.getpid()}), encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _read_owner(path: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        owner = json.loads(path.read_text(encoding="utf-8"))
        return f"process {owner['pid']} on host {owner['host']}"
    return "another process"
