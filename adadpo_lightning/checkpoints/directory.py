"""Directories that are written completely or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adadpo_lightning.errors import UserError, first_line


@contextmanager
def new_directory(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A directory to fill, which becomes `target` once it is complete, and is removed if filling it fails.

    Args:
        target: The directory to create.
        replace: Put it in the place of an existing directory, which is removed last.

    Raises:
        UserError: If it cannot be written, such as on a full disk; what was there before is then unchanged.
    """
    from safetensors import SafetensorError

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # In the target's directory, so that the last step is a rename and not a copy that could stop half-way.
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise _unwritable(target, error) from error
    old = partial.with_name(f"{partial.name}.old")
    try:
        yield partial
        partial.chmod(0o755)
        if replace and target.is_dir():
            target.rename(old)
        elif target.exists():
            target.rmdir()
        partial.rename(target)
    except (OSError, SafetensorError) as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def _unwritable(target: Path, error: Exception) -> UserError:
    problem = f"{target} could not be written: {first_line(error)}"
    return UserError("output", problem, "free some disk space, or choose another directory")


def check_free(target: Path) -> None:
    """Never write into a directory that holds something.

    Raises:
        UserError: If `target` is a file, a symbolic link, or a directory that is not empty.
    """
    if target.is_symlink():
        raise UserError("output", f"{target} is a symbolic link, got no directory", "give the directory itself")
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError("output", f"{target} exists and is not empty", "choose another directory")
