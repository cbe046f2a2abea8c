"""Reference log-probabilities on disk, computed once and reused by every run with the same reference and pairs.

A cache is a folder named by a hash of everything that its values depend on: weights, config, layout and attention of
the reference, the precision, the device, library versions, and all token ids of all pairs (which reflect tokenizer,
template and truncation). A stale cache therefore has a different name and is never used. In the folder, ``values``
contains one number per scored token and ``done`` one flag per answer; an answer that several pairs share is stored
once. ``complete.json`` is written last; an interrupted run resumes with the pairs whose flags are not set.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch

from adadpo_lightning.errors import UserError, first_line
from adadpo_lightning.runs.output import check_output

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from adadpo_lightning.data.plan import MicroBatch
    from adadpo_lightning.reference.live import Reference
    from adadpo_lightning.types import PreferenceBatch


def default_folder() -> Path:
    """Default folder of reference caches."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "adadpo_lightning" / "reference"


def _reserve(file: IO[bytes], size: int) -> None:
    """Give a file its size on the disk: written through a memory map, a sparse file on a full disk ends the process.

    Raises:
        UserError: If the disk has no room for it.
    """
    try:
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    except OSError as error:
        Path(file.name).unlink(missing_ok=True)
        raise UserError(
            "model.reference_cache",
            f"no room for {size / 2**20:,.1f} MiB in {file.name}: {error.strerror}",
            "free some space, or set it to a folder on another disk",
        ) from error


class ReferenceCache:
    """Log-probabilities of every scored token of a dataset.

    Args:
        folder: Folder of this cache; created if missing.
        answers: Number of each pair's chosen and rejected answer, equal for answers that are stored once, shape
            (pairs, 2), or (pairs, 1) without rejected answers.
        lengths: Number of scored tokens of each answer, shape as `answers`.
        dtype: Data type of the values, float32 or float64.
    """

    def __init__(
        self, folder: Path, answers: NDArray[np.int64], lengths: NDArray[np.int64], dtype: torch.dtype
    ) -> None:
        self.folder = folder
        self.answers = answers
        self.dtype = np.dtype("float64" if dtype == torch.float64 else "float32")
        sizes = np.zeros(int(answers.max(initial=-1)) + 1, dtype=np.int64)
        sizes[answers.ravel()] = lengths.ravel()
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._files: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Drop open files, which worker processes open themselves."""
        return self.__dict__ | {"_files": {}}

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.answers)

    def create(self) -> None:
        """Create the folder and files that are missing or have the wrong size."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sizes = {"values": int(self._starts[-1]) * self.dtype.itemsize, "done": len(self._starts) - 1}
        for name, size in sizes.items():
            path = self.folder / name
            if not path.exists() or path.stat().st_size != size:
                with path.open("wb") as file:
                    _reserve(file, size)

    def missing(self) -> NDArray[np.int64]:
        """Indices of the pairs that are not computed yet."""
        done = np.asarray(self._file("done", np.dtype("uint8"))) > 0
        return np.flatnonzero(~done[self.answers].all(1))

    def write(self, numbers: Sequence[int], logps: Tensor) -> None:
        """Store the pairs of a micro-batch.

        Args:
            numbers: Indices of the pairs in the dataset.
            logps: Log-probabilities in the flat order of a `PreferenceBatch`, shape (N,).
        """
        flat = logps.detach().cpu().numpy().astype(self.dtype, copy=False)
        values, done = self._file("values", self.dtype), self._file("done", np.dtype("uint8"))
        start = 0
        for target in self._slices(numbers):
            stop = start + target.stop - target.start
            values[target] = flat[start:stop]
            start = stop
        # The values must be on disk before the flags that mark them as valid.
        values.flush()
        done[self.answers[list(numbers)]] = 1
        done.flush()

    def read(self, numbers: Sequence[int]) -> Tensor:
        """Log-probabilities of a micro-batch, in its flat order, shape (N,)."""
        values = self._file("values", self.dtype)
        return torch.from_numpy(np.concatenate([values[part] for part in self._slices(numbers)]))

    def finish(self) -> None:
        """Mark the cache as complete."""
        partial = self.folder / f"complete.{os.getpid()}"
        partial.write_text(json.dumps({"checksum": self._checksum()}), encoding="utf-8")
        partial.replace(self.folder / "complete.json")

    def is_complete(self) -> bool:
        """Whether the cache is complete.

        Raises:
            UserError: If its checksum does not match or cannot be read.
        """
        path = self.folder / "complete.json"
        if not path.exists():
            return False
        try:
            expected = json.loads(path.read_text(encoding="utf-8"))["checksum"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            problem = f"{path} cannot be read: {type(error).__name__}: {first_line(error)}"
            raise UserError("model.reference_cache", problem, f"delete {self.folder}") from error
        if expected != self._checksum():
            raise UserError(
                "model.reference_cache", f"{self.folder} is damaged: its checksum does not match", "delete that folder"
            )
        return True

    def _checksum(self) -> str:
        return hashlib.blake2b((self.folder / "values").read_bytes(), digest_size=16).hexdigest()

    def _file(self, name: str, dtype: np.dtype[Any]) -> Any:
        if name not in self._files:
            self._files[name] = np.memmap(self.folder / name, dtype=dtype, mode="r+")
        return self._files[name]

    def _slices(self, numbers: Sequence[int]) -> Iterator[slice]:
        """Slices of the answers of a micro-batch, in the flat order of its batch: each distinct one once."""
        for answer in dict.fromkeys(self.answers[list(numbers)].T.ravel().tolist()):
            yield slice(self._starts[answer], self._starts[answer + 1])


def fill(
    cache: ReferenceCache,
    plan: Sequence[MicroBatch],
    collate: Any,
    reference: Reference,
    device: torch.device,
    progress: Any = None,
    in_step: Callable[[list[bool]], list[bool]] | None = None,
) -> None:
    """Compute the micro-batches of a plan that are missing in the cache.

    Args:
        cache: Cache to fill.
        plan: This rank's micro-batches. With those of the first epoch, cached values equal those of a live reference
            bit by bit, because batching affects rounding.
        collate: Turns a micro-batch of the plan into a `PreferenceBatch`.
        reference: The live reference.
        device: Device of the reference.
        progress: Called with the number of pairs just computed.
        in_step: For a sharded reference, which all ranks must run together: maps the flags of micro-batches missing on
            this rank to the flags of those missing on any rank.
    """
    missing = set(cache.missing().tolist())
    lacking = [not micro_batch.filler and not missing.isdisjoint(micro_batch.rows) for micro_batch in plan]
    for micro_batch, wanted in zip(plan, lacking if in_step is None else in_step(lacking), strict=True):
        if wanted:
            batch: PreferenceBatch = collate(micro_batch).to(device)
            logps = reference(batch)
            if not micro_batch.filler:
                cache.write(micro_batch.rows, logps)
        if progress is not None:
            progress(0 if micro_batch.filler else len(micro_batch.rows))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a cache folder; other runs wait.

    Raises:
        UserError: If the folder cannot be written.
    """
    from filelock import FileLock

    check_output(folder.parent, "model.reference_cache", directory=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        yield
