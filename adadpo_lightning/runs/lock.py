"""One writer at a time for a directory or a file: a lock that lasts as long as its process, and says who holds it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from adadpo_lightning import log
from adadpo_lightning.errors import UserError, first_line

LOCK = ".lock"
UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_held: set[tuple[int, int]] = set()


@contextmanager
def lock_directory(directory: str | Path, field: str) -> Iterator[None]:
    """Hold the lock of a directory, which is created if it does not exist.

    It is a POSIX record lock on ``.lock``: the system releases it when the process ends, also by SIGKILL; processes
    that the holder forks do not keep it; NFS passes it to the server. The file itself stays, because removing it would
    let two processes lock two files of one name. On a file system without locks the run continues with a warning.

    Args:
        directory: The directory that will be written to.
        field: The option that named it, for the error.

    Raises:
        UserError: If another process, or this one, holds the lock, named by host and process, or the directory cannot
            be written.
    """
    with _locked(Path(directory) / LOCK, str(directory), field):
        yield


def wait_for_lock(directory: str | Path, seconds: float) -> None:
    """Wait until no process holds the lock of a directory.

    Args:
        directory: The directory; it may not exist.
        seconds: Time to wait for at most; whoever locks it then raises.
    """
    last = time.monotonic() + seconds
    while time.monotonic() < last:
        with suppress(UserError), lock_directory(directory, "directory"):
            return
        time.sleep(min(0.5, seconds))


@contextmanager
def lock_output(output: Path, field: str) -> Iterator[None]:
    """Hold the lock of one output file, on ``.<name>.lock`` beside it; everything else as `lock_directory`."""
    with _locked(output.with_name(f".{output.name}.lock"), str(output), field):
        yield


@contextmanager
def _locked(path: Path, locked: str, field: str) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except (OSError, ValueError) as error:  # a ValueError for a name with a NUL
        raise UserError(field, f"{locked} cannot be written: {first_line(error)}", "choose another path") from error
    # Closing any handle of the file would release a lock that this process already holds.
    mine = (os.fstat(handle).st_dev, os.fstat(handle).st_ino)
    if mine in _held:
        raise _taken(handle, locked, field)  # the handle stays open until the process ends
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise _taken(handle, locked, field) from error
            log.warn(f"{locked} is on a file system without locks: take care that no second run writes to it.")
        _held.add(mine)
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(_this_process()).encode(), 0)
        yield
    finally:
        _held.discard(mine)
        with suppress(OSError):
            os.close(handle)


def _this_process() -> dict[str, str | int]:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "process": os.getpid(), "since": now}


def _taken(handle: int, locked: str, field: str) -> UserError:
    by = "another process"
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(os.pread(handle, 4096, 0))
        by = f"process {found['process']} on {found['host']} since {found['since']}"
    return UserError(
        field,
        f"{locked} is being written by {by}",
        "wait for it to end, or choose another path",
    )
