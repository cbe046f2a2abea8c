"""Which pairs go into which micro-batch of which optimizer step on which rank: a pure function of a few numbers.

Every length is known beforehand. So each micro-batch carries the counts of its whole optimizer step (the loss is
normalised by these, whatever the split), pairs are dealt out so that token counts are even, and a resumed run
recomputes the plan and goes on at its step: nothing is replayed and nothing is stored.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
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


@dataclass(frozen=True, eq=False)
class StepPlan:
    """The optimizer steps of an epoch, and how each is shared out over ranks and micro-batches.

    Which pairs form a step depends on the seed, the epoch and the global batch alone.

    Args:
        lengths: Tokens of each pair (prompt, chosen and rejected), shape (pairs,).
        chosen_lengths: Scored chosen tokens of each pair, shape (pairs,).
        global_batch_size: Pairs an optimizer step.
        micro_batch_size: Pairs a forward pass on one rank; not used with `max_tokens`.
        max_tokens: Most tokens of a forward pass on one rank: as many pairs as fit, in place of a fixed number.
        ranks: Data-parallel processes.
        seed: Seed of the order.
        shuffle: Draw a new order in each epoch; else the dataset's own.
        drop_last: Leave out the last step if it is not full.
        epochs: Epochs that `max_tokens` has to hold for, because the micro-batches of a step are one number for a run.

    Raises:
        UserError: If the sizes do not divide, a pair is longer than `max_tokens`, or no step comes of it.

    Example:
        >>> plan = StepPlan(np.array([9, 2, 3, 8, 5]), np.array([1, 1, 1, 1, 1]), 4, shuffle=False)
        >>> [batch.rows for batch in plan.rank_batches(epoch=0, rank=0)]
        [(0,), (3,), (2,), (1,), (4,)]
    """

    lengths: NDArray[np.int64]
    chosen_lengths: NDArray[np.int64]
    global_batch_size: int
    micro_batch_size: int = 1
    max_tokens: int | None = None
    ranks: int = 1
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    epochs: int = 1

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name in ("global_batch_size", "micro_batch_size", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"data.{name}", f"expected at least 1, got {value}")
        if self.max_tokens is None:
            self._check_divisible()
        elif len(self.lengths) and self.lengths.max() > self.max_tokens:
            pair = int(self.lengths.argmax())
            raise UserError(
                "data.max_tokens",
                f"pair {pair} alone has {self.lengths[pair]} tokens (prompt and both answers), more than "
                f"{self.max_tokens}",
                "raise max_tokens or lower max_length",
            )
        if not self.steps:
            raise UserError(
                "data.global_batch_size",
                f"{len(self.lengths)} pairs make no step of {self.global_batch_size} (drop_last={self.drop_last})",
                "lower it or set data.drop_last to false",
            )

    def _check_divisible(self) -> None:
        share = self.ranks * self.micro_batch_size
        if self.global_batch_size % share:
            raise UserError(
                "data.global_batch_size",
                f"{self.global_batch_size} pairs a step cannot be shared out evenly over {self.ranks} ranks x "
                f"{self.micro_batch_size} pairs a micro-batch (micro_batch_size)",
                f"take a multiple of {share} or another micro_batch_size",
            )

    @property
    def full_steps(self) -> int:
        """Steps of exactly `global_batch_size` pairs an epoch."""
        return len(self.lengths) // self.global_batch_size

    @property
    def steps(self) -> int:
        """Optimizer steps an epoch."""
        rest = len(self.lengths) % self.global_batch_size
        return self.full_steps + (1 if rest and not self.drop_last else 0)

    @cached_property
    def accumulate(self) -> int:
        """Micro-batches a rank takes for each full step; Lightning's ``accumulate_grad_batches``."""
        if self.max_tokens is None:
            return self.global_batch_size // (self.ranks * self.micro_batch_size)
        return max(self._least_that_fits(range(self.full_steps)), self.last_accumulate)

    @cached_property
    def last_accumulate(self) -> int:
        """Micro-batches a rank takes for the last step if that is not full, else 0."""
        if self.steps == self.full_steps:
            return 0
        if self.max_tokens is None:
            rest = len(self.lengths) % self.global_batch_size
            return math.ceil(rest / (self.ranks * self.micro_batch_size))
        return self._least_that_fits(range(self.full_steps, self.steps))

    def _least_that_fits(self, steps: range) -> int:
        needed = 1
        for epoch in range(self.epochs):
            order = self.order(epoch)
            for step in steps:
                lengths = self.lengths[self.step_rows(order, step)]
                while not _fits(lengths, self.ranks * needed, self.max_tokens or 0):
                    needed += 1
        return needed

    def order(self, epoch: int) -> NDArray[np.int64]:
        """All pairs in the order of the epoch."""
        if not self.shuffle:
            return np.arange(len(self.lengths))
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths))

    def step_rows(self, order: NDArray[np.int64], step: int) -> NDArray[np.int64]:
        """The pairs of one step, given the `order` of its epoch."""
        return order[step * self.global_batch_size : (step + 1) * self.global_batch_size]

    def step_batches(self, order: NDArray[np.int64], step: int) -> list[list[MicroBatch]]:
        """The micro-batches of one step, for each rank; every rank has equally many."""
        rows = self.step_rows(order, step)
        per_rank = self.accumulate if step < self.full_steps else self.last_accumulate
        most = self.micro_batch_size if self.max_tokens is None else None
        shares = [rows[share] for share in deal(self.lengths[rows], self.ranks * per_rank, most) if share]
        counts: dict[str, Any] = {
            "step": step,
            "step_pairs": len(rows),
            "step_chosen_tokens": int(self.chosen_lengths[rows].sum()),
        }
        batches = [MicroBatch(tuple(share.tolist()), **counts) for share in shares]
        shortest = (int(rows[self.lengths[rows].argmin()]),)
        batches += [MicroBatch(shortest, **counts, filler=True)] * (self.ranks * per_rank - len(batches))
        loads = [int(self.lengths[list(batch.rows)].sum()) for batch in batches]
        return [[batches[i] for i in share] for share in deal(loads, self.ranks, per_rank)]

    def rank_batches(self, rank: int, epoch: int, start: int = 0) -> Iterator[MicroBatch]:
        """One rank's micro-batches of an epoch from number `start` on, in the order in which it takes them."""
        order = self.order(epoch)
        first, skipped = divmod(start, self.accumulate)
        for step in range(first, self.steps):
            batches = self.step_batches(order, step)[rank]
            yield from batches[skipped:] if step == first else batches

    def identity(self) -> dict[str, Any]:
        """What the micro-batches of an epoch depend on; two plans with the same are the same."""
        lengths = hashlib.sha256(self.lengths.tobytes() + self.chosen_lengths.tobytes()).hexdigest()[:16]
        return {
            "pairs": len(self.lengths),
            "lengths": lengths,
            "global_batch_size": self.global_batch_size,
            "accumulate_grad_batches": self.accumulate,
            "ranks": self.ranks,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }

    def __len__(self) -> int:
        """Micro-batches that each rank takes in an epoch."""
        return self.full_steps * self.accumulate + self.last_accumulate


def deal(lengths: Sequence[int] | NDArray[np.int64], bins: int, most: int | None = None) -> list[list[int]]:
    """Deal items out so that the sums of their lengths are even: longest first, into the lightest bin with room.

    Args:
        lengths: Length of each item, above 0.
        bins: Number of bins.
        most: Items a bin holds at most; None for no bound.

    Returns:
        For each bin the positions of its items, longest first. The sums of any two full bins (of any two bins, without
        `most`) differ by the longest item at most. A bin stays empty only where there are fewer items than bins.

    Source:
        Graham 1969, "Bounds on multiprocessing timing anomalies" (longest processing time first).

    Example:
        >>> deal([5, 4, 3, 2], 2)
        [[0, 3], [1, 2]]
        >>> deal([5, 1, 1, 1], 2, most=2)
        [[0, 3], [1, 2]]
    """
    sizes = np.asarray(lengths)
    shares: list[list[int]] = [[] for _ in range(bins)]
    # Ties go to the bin with fewer items, then to the first.
    open_bins = [(0, 0, b) for b in range(bins)]
    for item in np.argsort(-sizes, kind="stable").tolist():
        load, count, lightest = heapq.heappop(open_bins)
        shares[lightest].append(item)
        if count + 1 != most:
            heapq.heappush(open_bins, (load + int(sizes[item]), count + 1, lightest))
    return shares


def _fits(lengths: NDArray[np.int64], bins: int, max_tokens: int) -> bool:
    total, longest = int(lengths.sum()), int(lengths.max())
    if total > bins * max_tokens:
        return False
    # Graham's bound spares most steps the dealing.
    if total + (bins - 1) * longest <= bins * max_tokens:
        return True
    return all(int(lengths[share].sum()) <= max_tokens for share in deal(lengths, bins) if share)


def eval_plan(
    lengths: NDArray[np.int64], chosen_lengths: NDArray[np.int64], *, micro_batch_size: int, ranks: int = 1
) -> list[list[MicroBatch]]:
    """Each pair once, in the dataset's order, for each rank; equally many micro-batches on every rank.

    The counts they carry are those of the whole set, so that the shares of the loss sum to its mean.

    Example:
        >>> lengths = np.array([3, 4, 5])
        >>> [[batch.rows for batch in rank] for rank in eval_plan(lengths, lengths, micro_batch_size=1, ranks=2)]
        [[(0,), (2,)], [(1,), (0,)]]
    """
    total = len(lengths)
    counts: dict[str, Any] = {"step": 0, "step_pairs": total, "step_chosen_tokens": int(chosen_lengths.sum())}
    batches = [
        MicroBatch(tuple(range(start, min(start + micro_batch_size, total))), **counts)
        for start in range(0, total, micro_batch_size)
    ]
    batches += [MicroBatch((0,), **counts, filler=True)] * (-len(batches) % ranks)
    return [batches[rank::ranks] for rank in range(ranks)]
