"""The plan's micro-batches as an iterable that continues from the trainer's position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch.utils.data import DataLoader, Dataset

from adadpo_lightning.data.collate import collate
from adadpo_lightning.types import EncodedPair

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset as ArrowDataset
    from numpy.typing import NDArray
    from torch import Tensor

    from adadpo_lightning.data.plan import MicroBatch
    from adadpo_lightning.types import PreferenceBatch


class CachedLogps(Protocol):
    """Log-probabilities of the scored tokens of a dataset, such as `reference.cache.ReferenceCache`."""

    def read(self, numbers: Sequence[int]) -> Tensor:
        """Those of a micro-batch in the flat order of `PreferenceBatch`, shape (N,), by the pairs' numbers."""


@dataclass(frozen=True)
class PairsToScore:
    """A dataset in which every pair is scored once, as one rank sees it.

    Args:
        pairs: All tokenised pairs, over all ranks.
        chosen: Scored tokens of each chosen answer, shape (pairs,).
        rejected: Scored tokens of each rejected answer, shape (pairs,).
        collate: From a micro-batch of the plan to a `PreferenceBatch`.
        plan: This rank's micro-batches.
    """

    pairs: ArrowDataset
    chosen: NDArray[np.int64]
    rejected: NDArray[np.int64]
    collate: Callable[[MicroBatch], PreferenceBatch]
    plan: list[MicroBatch]


class MicroBatches(Dataset["PreferenceBatch"]):
    """Collates the pairs that a micro-batch of the plan names.

    Args:
        pairs: Tokenised pairs, see `prepare`.
        layout: Layout of the batches.
        pad_id: Token id of padding.
        with_rejected: Whether the loss reads the rejected answers; else they are left out.
        reference: Holds the cached reference log-probabilities of these pairs under `name`, once there are any.
        name: What the pairs are for: ``train``, ``val``, ...
    """

    def __init__(
        self,
        pairs: ArrowDataset,
        *,
        layout: Literal["packed", "padded"],
        pad_id: int,
        with_rejected: bool,
        reference: Mapping[str, CachedLogps] | None = None,
        name: str = "",
    ) -> None:
        names = ["prompt_ids", "chosen_ids", "rejected_ids", "weight", "margin", "row"]
        self.pairs = pairs.select_columns(names).rename_column("row", "row_id")
        self.layout: Literal["packed", "padded"] = layout
        self.pad_id = pad_id
        self.with_rejected = with_rejected
        # Not `or`: an empty mapping may be filled after this.
        self.reference = {} if reference is None else reference
        self.name = name

    def __len__(self) -> int:
        return len(self.pairs)

    def pair(self, number: int) -> EncodedPair:
        """One pair."""
        values = self.pairs[number]
        return EncodedPair(**(values if self.with_rejected else values | {"rejected_ids": []}))

    def __getitem__(self, batch: MicroBatch) -> PreferenceBatch:
        """The micro-batch, collated."""
        collated = collate(
            [self.pair(number) for number in batch.rows],
            layout=self.layout,
            pad_id=self.pad_id,
            step_pairs=batch.step_pairs,
            step_chosen_tokens=batch.step_chosen_tokens,
            filler=batch.filler,
        )
        cache = self.reference.get(self.name)
        if cache is not None:
            collated.ref_logps = cache.read(batch.rows)
        return collated


class PlanLoader:
    """One rank's micro-batches of an epoch.

    Not a `DataLoader` itself (it runs one inside), so that Lightning never puts a sampler of its own in the plan's
    place: the plan shares the pairs out over ranks already.

    Args:
        batches: Collates micro-batches.
        plan: From (epoch, start) to this rank's micro-batches of the epoch from number `start` on.
        length: Micro-batches of a whole epoch.
        position: Says (epoch, start). Asked for with the first batch of an epoch and not before, because Lightning
            makes its first iterator before it restores a checkpoint's progress.
        options: For the `DataLoader`: workers and pinned memory.
    """

    def __init__(
        self,
        batches: MicroBatches,
        plan: Callable[[int, int], Iterator[MicroBatch]],
        length: int,
        position: Callable[[], tuple[int, int]] = lambda: (0, 0),
        **options: Any,
    ) -> None:
        self.batches = batches
        self.plan = plan
        self._length = length
        self._position = position
        self._options = options

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[PreferenceBatch]:
        """The micro-batches that are left of the epoch."""
        order: Any = self.plan(*self._position())
        yield from DataLoader(self.batches, sampler=order, batch_size=None, **self._options)

    def state_dict(self) -> dict[str, int]:
        """The current position; having this method tells Lightning that the loader can resume."""
        epoch, start = self._position()
        return {"epoch": epoch, "micro_batch": start}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Do nothing: the trainer's own progress, which its checkpoints hold, is the position."""
