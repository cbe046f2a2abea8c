"""Iterates over the micro-batches of the plan, starting at the trainer's position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
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
    """Log-probabilities of the scored tokens of a dataset, for example `reference.cache.ReferenceCache`."""

    def read(self, numbers: Sequence[int]) -> Tensor:
        """Log-probabilities of the given pairs, in the flat order of `PreferenceBatch`, shape (N,)."""


@dataclass(frozen=True)
class PairsToScore:
    """One rank's view of a dataset in which every pair is scored once.

    Args:
        pairs: All tokenized pairs, over all ranks.
        answers: Number of each pair's answers, equal for answers that batches share, shape (pairs, 2) or (pairs, 1).
        lengths: Number of scored tokens of each answer, shape as `answers`.
        collate: Turns a micro-batch of the plan into a `PreferenceBatch`.
        plan: This rank's micro-batches.
    """

    pairs: ArrowDataset
    answers: NDArray[np.int64]
    lengths: NDArray[np.int64]
    collate: Callable[[MicroBatch], PreferenceBatch]
    plan: list[MicroBatch]


class MicroBatches(Dataset["PreferenceBatch"]):
    """Dataset that collates the pairs of a micro-batch of the plan.

    Args:
        pairs: Tokenized pairs, see `prepare`.
        layout: Layout of the batches.
        pad_id: Token id for padding.
        with_rejected: Whether the loss reads rejected answers; otherwise they are omitted.
        share: Whether pairs with the same prompt share it and their equal answers.
        reference: Mapping that holds the cached reference log-probabilities under `name`; it may be filled later.
        name: Stage of the pairs: ``train``, ``val``, ...
        list_rest: `Chains.rest` of the pairs, for a loss that needs whole ranked lists.
    """

    def __init__(
        self,
        pairs: ArrowDataset,
        *,
        layout: Literal["packed", "padded"],
        pad_id: int,
        with_rejected: bool,
        share: bool = True,
        reference: Mapping[str, CachedLogps] | None = None,
        name: str = "",
        list_rest: NDArray[np.int64] | None = None,
    ) -> None:
        names = [
            "prompt_ids",
            "chosen_ids",
            "rejected_ids",
            "chosen_mask",
            "rejected_mask",
            "weight",
            "margin",
            "row",
            "chosen_index",
            "rejected_index",
        ]
        self.pairs = pairs.select_columns(names).rename_column("row", "row_id")
        self.layout: Literal["packed", "padded"] = layout
        self.pad_id = pad_id
        self.with_rejected = with_rejected
        self.share = share
        # Not `or`: an empty mapping may be filled later.
        self.reference = {} if reference is None else reference
        self.name = name
        self.list_rest = list_rest

    def __len__(self) -> int:
        return len(self.pairs)

    def pair(self, number: int) -> EncodedPair:
        """The pair at an index."""
        values = self.pairs[number]
        return EncodedPair(**(values if self.with_rejected else values | {"rejected_ids": [], "rejected_mask": []}))

    def __getitem__(self, batch: MicroBatch) -> PreferenceBatch:
        """Collate a micro-batch."""
        collated = collate(
            [self.pair(number) for number in batch.rows],
            layout=self.layout,
            pad_id=self.pad_id,
            step_pairs=batch.step_pairs,
            step_chosen_tokens=batch.step_chosen_tokens,
            filler=batch.filler,
            share=self.share,
        )
        cache = self.reference.get(self.name)
        if cache is not None:
            collated.ref_logps = cache.read(batch.rows)
        if self.list_rest is not None:
            collated.list_rest = torch.from_numpy(self.list_rest[list(batch.rows)])
        return collated


class PlanLoader:
    """One rank's micro-batches of an epoch.

    It wraps a `DataLoader` instead of being one, so that Lightning does not replace the plan by its own distributed
    sampler: the plan already distributes the pairs over ranks.

    Args:
        batches: Collates micro-batches.
        plan: Maps (epoch, start) to this rank's micro-batches of the epoch, beginning at micro-batch `start`.
        length: Number of micro-batches in a full epoch.
        position: Returns (epoch, start). Called only for the first batch of an epoch, because Lightning creates its
            first iterator before it restores the progress of a checkpoint.
        options: Options of the `DataLoader`: workers and pinned memory.
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
        """The remaining micro-batches of the epoch."""
        order: Any = self.plan(*self._position())
        yield from DataLoader(self.batches, sampler=order, batch_size=None, **self._options)

    def state_dict(self) -> dict[str, int]:
        """The current position; Lightning treats a loader with this method as resumable."""
        epoch, start = self._position()
        return {"epoch": epoch, "micro_batch": start}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Do nothing: the position is the trainer's progress, which its checkpoints already contain."""
