"""Checkpoints that are written completely or not at all, and how a damaged one is detected."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from adadpo_lightning.checkpoints.parts import mapped
from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

MANIFEST = "manifest.json"
PARTIAL = ".partial"
CHUNK = 1 << 22


class WholeFileIO(TorchCheckpointIO):
    """Writes to a temporary file, syncs it to disk, and renames it: a file with the final name is complete.

    A kill, a full disk or a lost machine leaves the previous file. The zip archive that ``torch.save`` writes has a
    CRC-32 of every record, so that `damage` needs no other file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: If the disk is full or cannot be written; the previous file is unchanged.
        """
        if "://" in str(path):  # object stores show a file only once it is complete
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        partial = target.with_name(f".{target.name}{PARTIAL}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
            sync_folder(target.parent)
        except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
            partial.unlink(missing_ok=True)
            raise UserError(
                str(target),
                f"the checkpoint could not be written: {_first_line(error)}",
                "earlier checkpoints are intact; free some disk space and resume with --ckpt_path last",
            ) from error

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None) -> Any:
        """Read a checkpoint to the CPU.

        By the device's name: Lightning passes a function, by which torch cannot rebuild subclasses of tensors, such as
        the 8-bit moments of torchao.
        """
        return super().load_checkpoint(path, map_location=map_location, weights_only=weights_only)


def _first_line(error: BaseException) -> str:
    while isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        error = error.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def sync_folder(folder: Path) -> None:
    """Wait until a rename in `folder` is on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: Path) -> list[int]:
    """Size and CRC-32 of a file."""
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]


def write_manifest(folder: Path, digests: dict[str, list[int]]) -> None:
    """List the files of a sharded checkpoint; written last, so that a checkpoint without it is incomplete.

    Args:
        folder: The checkpoint.
        digests: `digest` of each of its files by name.
    """
    partial = folder / f".{MANIFEST}{PARTIAL}"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(digests, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / MANIFEST)
    sync_folder(folder)


def shard_digests(folder: Path, rank: int) -> dict[str, list[int]]:
    """Digests of the files that one rank wrote; files that belong to no rank count as rank zero's."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file())
    return {path.name: digest(path) for path in files if _writer(path.name) == rank}


def _writer(name: str) -> int:
    """The rank that wrote a file, which torch.distributed.checkpoint names ``__<rank>_<number>.distcp``."""
    head = name.removeprefix("__").partition("_")[0]
    return int(head) if name.startswith("__") and head.isdigit() else 0


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint.

    Args:
        path: A file, or a directory of shards.

    Returns:
        None if it is valid, else the reason in a few words.
    """
    try:
        return _damage_of_shards(path) if path.is_dir() else _damage_of_file(path)
    except OSError as error:
        return str(error)


def _damage_of_file(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, RuntimeError, zlib.error) as error:
        return f"it is cut short or overwritten ({error})"
    if broken is not None:
        return f"the checksum of {broken} does not match"
    try:
        # The checksums cover the records; this checks the structure around them. Mapped, so that no weights are read.
        mapped(path)
    except UserError:
        raise
    except Exception as error:  # torch's reader raises many kinds
        return f"it cannot be read ({str(error).splitlines()[0]})"
    return None


def _damage_of_shards(path: Path) -> str | None:
    manifest = path / MANIFEST
    if not manifest.is_file():
        return f"it has no {MANIFEST}, so writing it was not finished"
    try:
        expected: dict[str, list[int]] = json.loads(manifest.read_text(encoding="utf-8"))
        names: Iterable[str] = list(expected)
    except (ValueError, AttributeError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    for name in names:
        if not (path / name).is_file():
            return f"{name} is missing"
        if digest(path / name) != expected[name]:
            return f"the checksum of {name} does not match"
    return None


def step_of(path: Path) -> int:
    """The optimizer step at which a valid checkpoint was saved."""
    file = path / "meta.pt" if path.is_dir() else path
    # Mapped, not read: the step is a few bytes of what may be gigabytes.
    return int(mapped(file)["global_step"])
