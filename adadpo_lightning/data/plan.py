"""Which pairs go into which micro-batch of which optimizer step on which rank: a pure function of a few numbers.

Every length is known beforehand. So each micro-batch carries the counts of its whole optimizer step (the loss is
normalised by these, whatever the split), pairs are dealt out so that token counts are even, and a resumed run
recomputes the plan and goes on at its step: nothing is replayed and nothing is stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class MicroBatch:
    """The pairs of one forward pass on one rank.

    Args:
        rows: Numbers of the pairs in the dataset.
        step: Optimizer step of the epoch.
        step_pairs: Pairs of that step over all ranks and micro-batches.
        step_chosen_tokens: Scored chosen tokens of that step.
        filler: True if it only keeps the ranks in step and must count nothing.
    """

    rows: tuple[int, ...]
    step: int
    step_pairs: int
    step_chosen_tokens: int
    filler: bool = False


@dataclass(frozen=True)
class StepPlan:
    """The steps of an epoch.

    Which pairs form a step depends on seed, epoch and the global batch alone; ranks and micro-batches only share them
    out.

    Args:
        lengths: Tokens of each pair (prompt, chosen and rejected), shape (pairs,).
        chosen_lengths: Scored chosen tokens of each pair, shape (pairs,).
        global_batch_size: Pairs an optimizer step.
        micro_batch_size: Pairs a forward pass on one rank, at most.
        ranks: Data-parallel processes.
        max_tokens: Tokens a forward pass at most; then `micro_batch_size` follows from it.
        seed: Seed of the order.
        shuffle: Draw a new order in each epoch; else the dataset's own.
        drop_last: Leave out the last step if it is not full.

    Raises:
        UserError: If the sizes do not divide, or a pair is longer than `max_tokens`.
    """

    lengths: NDArray[np.int64]
    chosen_lengths: NDArray[np.int64]
    global_batch_size: int
    micro_batch_size: int = 1
    ranks: int = 1
    max_tokens: int | None = None
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name in ("global_batch_size", "micro_batch_size", "ranks"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name}", f"expected at least 1, got {getattr(self, name)}")
        if self.max_tokens is None:
            share = self.ranks * self.micro_batch_size
            if self.global_batch_size % share:
                raise UserError(
                    "data.global_batch_size",
                    f"{self.global_batch_size} pairs a step cannot be shared out evenly over {self.ranks} ranks x "
                    f"{self.micro_batch_size} pairs a micro-batch (micro_batch_size)",
                    f"take a multiple of {share}, or another micro_batch_size",
                )
        elif len(self.lengths) and self.lengths.max() > self.max_tokens:
            row = int(self.lengths.argmax())
            raise UserError(
                "data.max_tokens",
                f"pair {row} alone has {self.lengths[row]} tokens, more than {self.max_tokens}",
                "raise max_tokens or lower max_length",
            )
        if self.drop_last and len(self.lengths) < self.global_batch_size:
            raise UserError(
                "data.drop_last",
                f"{len(self.lengths)} pairs do not fill one step of {self.global_batch_size}",
                "set it to false or lower data.global_batch_size",
            )

    @property
    def steps(self) -> int:
        """Optimizer steps an epoch."""
        full, rest = divmod(len(self.lengths), self.global_batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """All pairs in the order of the epoch."""
        if not self.shuffle:
            return np.arange(len(self.lengths))
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths))

    def accumulate(self, epochs: int = 1) -> int:
        """Micro-batches a rank takes to a full step.

        With `max_tokens` it is the least number that keeps every micro-batch of every step of `epochs` within it,
        because Lightning wants one number for the whole run.
        """
        if self.max_tokens is None:
            return self.global_batch_size // (self.ranks * self.micro_batch_size)
        needed = 1
        for epoch in range(epochs):
            order = self.order(epoch)
            for step in range(self.steps):
                rows = order[step * self.global_batch_size :][: self.global_batch_size]
                while not self._fits(rows, needed):
                    needed += 1
        return needed

    def _fits(self, rows: NDArray[np.int64], micro_batches: int) -> bool:
        if self.max_tokens is None:
            return True
        bins = self.ranks * micro_batches
        if self.lengths[rows].sum() > bins * self.max_tokens:
            return False
        shares = deal(self.lengths[rows], bins)
        return all(self.lengths[rows[share]].sum() <= self.max_tokens for share in shares)

    def step_batches(self, order: NDArray[np.int64], step: int, accumulate: int) -> list[list[MicroBatch]]:
        """The micro-batches of one step, for each rank; every rank has equally many."""
        rows = order[step * self.global_batch_size :][: self.global_batch_size]
        # The last step may be small: no more micro-batches than it takes, so that few are filler.
        per_rank = min(accumulate, math.ceil(len(rows) / (self.ranks * self.micro_batch_size)))
        if self.max_tokens is not None:
            per_rank = accumulate
        counts: dict[str, Any] = {"step_pairs": len(rows), "step_chosen_tokens": int(self.chosen_lengths[rows].sum())}
        most = self.micro_batch_size if self.max_tokens is None else None
        shares = deal(self.lengths[rows], self.ranks * per_rank, most=most)
        batches = [
            MicroBatch(tuple(rows[sorted(share)].tolist()), step, **counts)
            if share
            else MicroBatch((int(rows[self.lengths[rows].argmin()]),), step, **counts, filler=True)
            for share in shares
        ]
        return [batches[rank :: self.ranks] for rank in range(self.ranks)]

    def rank_batches(self, epoch: int, rank: int, accumulate: int, start: int = 0) -> Iterator[MicroBatch]:
        """One rank's micro-batches of an epoch from number `start` on, in the order in which it takes them."""
        order = self.order(epoch)
        first_step, skipped = divmod(start, accumulate)
        for step in range(first_step, self.steps):
            batches = self.step_batches(order, step, accumulate)[rank]
            yield from batches[skipped:] if step == first_step else batches

    def rank_length(self, accumulate: int) -> int:
        """Micro-batches a rank takes in an epoch."""
        if not self.steps:
            return 0
        last = len(self.step_batches(self.order(0), self.steps - 1, accumulate)[0])
        return (self.steps - 1) * accumulate + last


def deal(lengths: Sequence[int] | NDArray[np.int64], bins: int, most: int | None = None) -> list[list[int]]:
    """Deal items out so that the sums of their lengths are even: longest first, into the lightest bin with room.

    Args:
        lengths: Length of each item.
        bins: Number of bins.
        most: Items a bin holds at most; None for no bound.

    Returns:
        For each bin the positions of its items; a bin is empty only where there are fewer items than bins.

    Example:
        >>> deal([5, 4, 3, 2], 2)
        [[0, 3], [1, 2]]
    """
    shares: list[list[int]] = [[] for _ in range(bins)]
    loads = [0] * bins
    for item in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        room = [b for b in range(bins) if most is None or len(shares[b]) < most]
        # An empty bin first, so that no rank idles; ties go to the bin with fewer items, then to the first.
        lightest = min(room, key=lambda b: (loads[b], len(shares[b]), b))
        shares[lightest].append(item)
        loads[lightest] += int(lengths[item])
    return shares


def eval_plan(chosen_lengths: NDArray[np.int64], *, micro_batch_size: int, ranks: int = 1) -> list[list[MicroBatch]]:
    """Each pair once, in the dataset's order, for each rank; equally many micro-batches on every rank.

    The counts they carry are those of the whole set, so that the shares of the loss sum to its mean.
    """
    counts: dict[str, Any] = {"step_pairs": len(chosen_lengths), "step_chosen_tokens": int(chosen_lengths.sum())}
    batches = [
        MicroBatch(tuple(range(start, min(start + micro_batch_size, len(chosen_lengths)))), 0, **counts)
        for start in range(0, len(chosen_lengths), micro_batch_size)
    ]
    batches += [MicroBatch((0,), 0, **counts, filler=True)] * (-len(batches) % ranks)
    return [batches[rank::ranks] for rank in range(ranks)]
