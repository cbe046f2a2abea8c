"""GGUF files in place of Hugging Face directories: how a path names one, and where it lies on disk."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from adadpo_lightning import hub
from adadpo_lightning.errors import UserError, first_line

SUFFIX = ".gguf"
PACKAGES = ("gguf", "accelerate")


def split(path: str) -> tuple[str, str | None]:
    """Split a path that ends in ``.gguf`` into directory or hub id, and file; other paths have no file.

    Example:
        >>> split("models/smol.gguf"), split("owner/repo/smol.Q4_1.gguf"), split("owner/repo")
        (('models', 'smol.gguf'), ('owner/repo', 'smol.Q4_1.gguf'), ('owner/repo', None))
    """
    if not path.endswith(SUFFIX):
        return path, None
    return str(Path(path).parent), Path(path).name


def locate(folder: str, file: str, *, revision: str | None = None, field: str = "model.policy.gguf_file") -> Path:
    """Where a GGUF file lies on disk, downloaded for a hub id.

    Args:
        folder: Directory or hub id.
        file: Name of the file in it.
        revision: Revision of the hub id.
        field: The option that names the file, for errors.

    Raises:
        UserError: If the file is not found, or the packages that read it are not installed.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(
            field,
            f"{file} needs the package{'s' if len(missing) > 1 else ''} {' and '.join(missing)}, not installed",
            "pip install 'adadpo-lightning[gguf]'",
        )
    path = Path(folder) / file
    if path.is_file():
        return path
    if Path(folder).is_dir():
        others = ", ".join(sorted(found.name for found in Path(folder).glob(f"*{SUFFIX}"))) or "none"
        raise UserError(field, f"{path} not found", f"GGUF files in that directory: {others}")
    from transformers.utils import cached_file

    try:
        with hub.loading(folder):
            return Path(str(cached_file(folder, file, revision=revision)))
    except (OSError, ValueError) as error:
        raise UserError(
            field,
            f"{path} not found: no such file, and {folder!r} cannot be reached as a hub id: {first_line(error)}",
            "give an existing file, or an accessible hub id",
        ) from error
