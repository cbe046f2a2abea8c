"""Reference log-probabilities on disk: computed once, reused by every run over the same weights and the same pairs.

A cache is a folder named by a hash of everything that its numbers depend on: the reference's weights, config, layout
and attention, the precision, the device, library versions, and every token id of every pair (and so the tokenizer, the
template and the truncation). What does not match has another name and is never found. Inside, ``values`` holds one
number per scored token, ``done`` one flag per pair, and ``complete.json`` is written last: a killed run resumes where
its flags end.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from adadpo_lightning.data.plan import MicroBatch
    from adadpo_lightning.reference.live import Reference
    from adadpo_lightning.types import PreferenceBatch


def default_folder() -> Path:
    """Where caches live unless the config says otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "adadpo_lightning" / "reference"


class ReferenceCache:
    """Log-probabilities of every scored token of a dataset.

    Args:
        folder: The cache's own folder; made if it is missing.
        chosen: Scored tokens of each chosen answer, shape (pairs,).
        rejected: Scored tokens of each rejected answer, shape (pairs,).
        dtype: Type of the numbers, float32 or float64.
    """

    def __init__(
        self, folder: Path, chosen: NDArray[np.int64], rejected: NDArray[np.int64], dtype: torch.dtype
    ) -> None:
        self.folder = folder
        self.chosen, self.rejected = chosen, rejected
        self.dtype = np.dtype("float64" if dtype == torch.float64 else "float32")
        self._starts = np.concatenate([[0], np.cumsum(chosen + rejected)])
        self._files: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without open files: a worker process opens its own."""
        return self.__dict__ | {"_files": {}}

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.chosen)

    def create(self) -> None:
        """Make the folder and its files where they are missing or of another size."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sizes = {"values": int(self._starts[-1]) * self.dtype.itemsize, "done": len(self)}
        for name, size in sizes.items():
            path = self.folder / name
            if not path.exists() or path.stat().st_size != size:
                with path.open("wb") as file:
                    file.truncate(size)

    def missing(self) -> NDArray[np.int64]:
        """Numbers of the pairs that are not computed yet."""
        return np.flatnonzero(np.asarray(self._file("done", np.dtype("uint8"))) == 0)

    def write(self, numbers: Sequence[int], logps: Tensor) -> None:
        """Store the pairs of a micro-batch.

        Args:
            numbers: Their numbers in the dataset.
            logps: Log-probabilities in a batch's flat order (chosen answers first), shape (N,).
        """
        flat = logps.detach().cpu().numpy().astype(self.dtype, copy=False)
        values, done = self._file("values", self.dtype), self._file("done", np.dtype("uint8"))
        for target, part in zip(self._slices(numbers), self._split(numbers, flat), strict=True):
            values[target] = part
        # The numbers must be on disk before the flag that vouches for them.
        values.flush()
        done[list(numbers)] = 1
        done.flush()

    def read(self, numbers: Sequence[int]) -> Tensor:
        """The pairs of a micro-batch, in its flat order, shape (N,)."""
        values = self._file("values", self.dtype)
        return torch.from_numpy(np.concatenate([values[part] for part in self._slices(numbers)]))

    def finish(self) -> None:
        """Declare the cache complete."""
        partial = self.folder / f"complete.{os.getpid()}"
        partial.write_text(json.dumps({"checksum": self._checksum()}), encoding="utf-8")
        partial.replace(self.folder / "complete.json")

    def is_complete(self) -> bool:
        """Whether all of it is there.

        Raises:
            UserError: If its numbers are not the ones that were stored.
        """
        path = self.folder / "complete.json"
        if not path.exists():
            return False
        if json.loads(path.read_text(encoding="utf-8"))["checksum"] != self._checksum():
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
        """Where the answers of a micro-batch are stored: those of a pair side by side, chosen first."""
        for n in numbers:
            yield slice(self._starts[n], self._starts[n] + self.chosen[n])
        for n in numbers:
            yield slice(self._starts[n] + self.chosen[n], self._starts[n + 1])

    def _split(self, numbers: Sequence[int], flat: NDArray[Any]) -> list[NDArray[Any]]:
        picked = list(numbers)
        lengths = np.concatenate([self.chosen[picked], self.rejected[picked]])
        return np.split(flat, np.cumsum(lengths)[:-1])


def fill(
    cache: ReferenceCache,
    plan: Sequence[MicroBatch],
    collate: Any,
    reference: Reference,
    device: torch.device,
    progress: Any = None,
    in_step: Callable[[list[bool]], list[bool]] | None = None,
) -> None:
    """Compute the micro-batches of a plan that the cache lacks.

    Args:
        cache: Where to put them.
        plan: This rank's micro-batches. Those of the first epoch make cached numbers those of a live reference to the
            last bit: how rows are batched shows in the rounding.
        collate: From a micro-batch of the plan to a `PreferenceBatch`.
        reference: The live reference.
        device: Where it computes.
        progress: Called with the number of pairs just done.
        in_step: For a sharded reference, which all ranks have to run together: from which of its micro-batches this
            rank lacks to which any rank lacks.
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
    """One run at a time fills a cache; others wait and then find it."""
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        yield
