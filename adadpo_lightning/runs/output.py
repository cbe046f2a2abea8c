"""Whether a file or directory can be written, asked before any time is spent on its content."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from adadpo_lightning.errors import UserError, first_line


def check_output(path: str | Path, field: str, *, directory: bool = False) -> None:
    """Stop at a path that cannot be written; directories that are missing are made later.

    Args:
        path: What will be written.
        field: The option that named it, for errors.
        directory: Whether it is a directory, otherwise a file.

    Raises:
        UserError: If it is of the other kind, lies below a file, or may not be written.
    """
    check_name(path, field)
    target = Path(path)
    kinds = ("directory", "file") if directory else ("file", "directory")
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            target.stat()  # which raises for a loop of links
        of_the_other_kind = target.is_file() if directory else target.is_dir()
        found = next(folder for folder in (target, *target.absolute().parents) if folder.exists())
    except (OSError, ValueError) as error:  # a loop of links, a name that is too long or has a NUL
        raise UserError(field, f"{path} cannot be written: {first_line(error)}", "choose another path") from error
    if of_the_other_kind:
        raise UserError(field, f"expected a {kinds[0]}, got {path}, a {kinds[1]}", "choose another path")
    if found != target and not found.is_dir():
        raise UserError(field, f"{path} cannot be written: {found} is not a directory", "choose another path")
    if not os.access(found, os.W_OK):
        raise UserError(field, f"{path} cannot be written: {found} is read-only", "choose another path")


def check_name(path: str | Path, field: str) -> None:
    """Stop at a path that no file can have, or whose name cannot be written into configs and logs.

    Raises:
        UserError: If it is empty, or has a NUL or half of a surrogate pair (a byte that is not UTF-8).
    """
    name = str(path)
    if not name or "\0" in name or name != name.encode("utf-8", "ignore").decode("utf-8"):
        raise UserError(field, f"expected the name of a file or directory, got {name!r}", "choose another path")
