"""The output directory of a run: never written over, and known to be writable before training starts."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from adadpo_lightning.errors import UserError
from adadpo_lightning.runs.output import check_name


def check_output_dir(output_dir: str, *, resuming: bool) -> None:
    """Refuse to write a new run over an older one.

    Raises:
        UserError: If the directory holds a run and this one does not resume it, or it cannot be written.
    """
    check_name(output_dir, "output_dir")
    path = Path(output_dir)
    if path.exists() and not path.is_dir():
        raise UserError("output_dir", f"expected a directory, {output_dir} is a file", "choose another path")
    if not resuming and (path / "config.yaml").exists():
        raise UserError(
            "output_dir",
            f"{output_dir} already holds a run",
            "resume it with --ckpt_path last, or choose another directory",
        )
    _check_writable(path)


def _check_writable(path: Path) -> None:
    """Create the directory, write a byte, and remove what did not exist before."""
    from lightning.pytorch.utilities import rank_zero_only

    if getattr(rank_zero_only, "rank", 0):  # ranks on one machine would remove each other's directory
        return
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path) as file:
            file.write(b"0")
    except OSError as error:
        raise UserError("output_dir", f"{path} cannot be written: {error.strerror}", "choose another path") from error
    finally:
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()
