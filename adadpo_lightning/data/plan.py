"""The step plan: assigns pairs to optimizer steps, ranks and micro-batches, as a pure function of a few numbers.

All lengths are known in advance. Each micro-batch therefore carries the counts of its full optimizer step, which
normalize the loss independently of the split. Pairs are distributed so that token counts are even. A resumed run
recomputes the plan and continues at its step, without replaying or storing anything.
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

from adadpo_lightning.data.groups import Groups, deal_groups, split_groups
from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class MicroBatch:
    """The pairs of one forward pass on one rank.

    Args:
        rows: Indices of the pairs in the dataset.
        step: Index of the optimizer step in the epoch.
        step_pairs: Number of pairs of that step over all ranks and micro-batches.
        step_chosen_tokens: Number of scored chosen tokens of that step.
        filler: Whether it only keeps the ranks in sync and contributes nothing to loss and metrics.
    """

    rows: tuple[int, ...]
    step: int
    step_pairs: int
    step_chosen_tokens: int
    filler: bool = False


@dataclass(frozen=True, eq=False)
class StepPlan:
    """The optimizer steps of an epoch, and how each is split into micro-batches over the ranks.

    The pairs of a step depend only on the seed, the epoch and the global batch size. With `groups`, pairs that share a
    prompt follow each other in the order of the epoch and are in one micro-batch where its size permits: a group is
    split only at the end of a step, or where a micro-batch has no room for all of it.

    Args:
        lengths: Number of tokens of each pair (prompt, chosen and rejected), shape (pairs,).
        chosen_lengths: Number of scored chosen tokens of each pair, shape (pairs,).
        global_batch_size: Number of pairs per optimizer step.
        micro_batch_size: Number of pairs per forward pass on one rank; not used with `max_tokens`.
        max_tokens: Maximum number of tokens per forward pass on one rank. It replaces the fixed number of pairs.
        ranks: Number of data-parallel processes.
        seed: Seed of the order.
        shuffle: Shuffle in each epoch; otherwise keep the dataset's order.
        drop_last: Drop the last step if it is incomplete.
        epochs: Number of epochs in which `max_tokens` must hold, because a run has a fixed number of micro-batches per
            step.
        groups: The pairs by prompt, to compute shared prompts and answers once; None computes pair by pair.
        members: The pairs of each ranked list, for a loss that needs whole lists. Lengths, batch sizes and order are
            then of lists, so that no list is ever split; `groups` must be None.

    Raises:
        UserError: If the sizes are not divisible, a pair is longer than `max_tokens`, or there are too few pairs for
            a step.

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
    groups: Groups | None = None
    members: Sequence[NDArray[np.int64]] | None = None

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
                f"{len(self.lengths)} {self._items} are too few for {self.global_batch_size} per step "
                f"(drop_last={self.drop_last})",
                "lower it or set data.drop_last to false",
            )

    def _check_divisible(self) -> None:
        share = self.ranks * self.micro_batch_size
        if self.global_batch_size % share:
            raise UserError(
                "data.global_batch_size",
                f"{self.global_batch_size} {self._items} per step cannot be split evenly over {self.ranks} ranks x "
                f"{self.micro_batch_size} {self._items} per micro-batch (micro_batch_size)",
                f"set it to a multiple of {share}, or change micro_batch_size",
            )

    @property
    def _items(self) -> str:
        return "pairs" if self.members is None else "ranked lists"

    @property
    def full_steps(self) -> int:
        """Number of steps per epoch with exactly `global_batch_size` pairs."""
        return len(self.lengths) // self.global_batch_size

    @property
    def steps(self) -> int:
        """Number of optimizer steps per epoch."""
        rest = len(self.lengths) % self.global_batch_size
        return self.full_steps + (1 if rest and not self.drop_last else 0)

    @cached_property
    def accumulate(self) -> int:
        """Number of micro-batches per rank in each full step; Lightning's ``accumulate_grad_batches``."""
        if self.max_tokens is None:
            return self.global_batch_size // (self.ranks * self.micro_batch_size)
        return max(self._least_that_fits(range(self.full_steps)), self.last_accumulate)

    @cached_property
    def last_accumulate(self) -> int:
        """Number of micro-batches per rank in the last step if it is incomplete, otherwise 0."""
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
                rows = self.step_rows(order, step)
                while not self._fit(rows, self.ranks * needed):
                    needed += 1
        return needed

    def order(self, epoch: int) -> NDArray[np.int64]:
        """All pairs in the order of the epoch."""
        if not self.shuffle:
            return np.arange(len(self.lengths))
        rng = np.random.default_rng([self.seed, epoch])
        if self.groups is None:
            return rng.permutation(len(self.lengths))
        place = rng.permutation(int(self.groups.group.max()) + 1)
        return np.argsort(place[self.groups.group], kind="stable")

    def step_rows(self, order: NDArray[np.int64], step: int) -> NDArray[np.int64]:
        """The pairs of one step, given the `order` of its epoch."""
        return order[step * self.global_batch_size : (step + 1) * self.global_batch_size]

    def step_batches(self, order: NDArray[np.int64], step: int) -> list[list[MicroBatch]]:
        """The micro-batches of one step for each rank; all ranks have the same number."""
        rows = self.step_rows(order, step)
        per_rank = self.accumulate if step < self.full_steps else self.last_accumulate
        shares = self._shares(rows, self.ranks * per_rank)
        counts: dict[str, Any] = {
            "step": step,
            "step_pairs": len(pairs_of(rows, self.members)),
            "step_chosen_tokens": int(self.chosen_lengths[rows].sum()),
        }
        shortest = rows[[self.lengths[rows].argmin()]]
        fillers = self.ranks * per_rank - len(shares)
        batches = [MicroBatch(pairs_of(share, self.members), **counts) for share in shares]
        batches += [MicroBatch(pairs_of(shortest, self.members), **counts, filler=True)] * fillers
        loads = [self.tokens(share) for share in [*shares, *[shortest] * fillers]]
        return [[batches[i] for i in share] for share in deal(loads, self.ranks, per_rank)]

    def tokens(self, rows: NDArray[np.int64]) -> int:
        """Number of tokens in the forward pass of a micro-batch with these pairs."""
        return int(self.lengths[rows].sum()) if self.groups is None else self.groups.tokens(rows)

    def _shares(self, rows: NDArray[np.int64], bins: int) -> list[NDArray[np.int64]]:
        """The pairs of a step, split into at most `bins` micro-batches with even numbers of tokens."""
        most = self.micro_batch_size if self.max_tokens is None else None
        if self.groups is None:
            return [rows[share] for share in deal(self.lengths[rows], bins, most) if share]
        if most is not None:
            return deal_groups(self.groups, rows, bins, most)
        pieces = split_groups(self.groups, rows, bins, self.max_tokens)
        shares = deal([self.groups.tokens(piece) for piece in pieces], bins)
        return [np.concatenate([pieces[i] for i in share]) for share in shares if share]

    def _fit(self, rows: NDArray[np.int64], bins: int) -> bool:
        """Whether the pairs of a step fit into `bins` micro-batches of `max_tokens`."""
        most = self.max_tokens or 0
        if self.groups is None:
            return _fits(self.lengths[rows], bins, most)
        pieces = split_groups(self.groups, rows, bins, most)
        return _fits(np.array([self.groups.tokens(piece) for piece in pieces]), bins, most)

    def rank_batches(self, rank: int, epoch: int, start: int = 0) -> Iterator[MicroBatch]:
        """One rank's micro-batches of an epoch in order, starting at micro-batch `start`."""
        order = self.order(epoch)
        first, skipped = divmod(start, self.accumulate)
        for step in range(first, self.steps):
            batches = self.step_batches(order, step)[rank]
            yield from batches[skipped:] if step == first else batches

    def identity(self) -> dict[str, Any]:
        """Everything that determines the micro-batches; plans with equal identities are equal."""
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
            "grouped": self.groups is not None,
        }

    def __len__(self) -> int:
        """Number of micro-batches per rank and epoch."""
        return self.full_steps * self.accumulate + self.last_accumulate


def pairs_of(items: NDArray[np.int64], members: Sequence[NDArray[np.int64]] | None) -> tuple[int, ...]:
    """The pairs of ranked lists, list after list; without `members` the items are pairs."""
    return tuple((items if members is None else np.concatenate([members[item] for item in items])).tolist())


def deal(lengths: Sequence[int] | NDArray[np.int64], bins: int, most: int | None = None) -> list[list[int]]:
    """Distribute items over bins with even total lengths: longest first, into the lightest bin that has room.

    Args:
        lengths: Length of each item, above 0.
        bins: Number of bins.
        most: Maximum number of items per bin; None for no limit.

    Returns:
        Positions of the items in each bin, longest first. The sums of any two full bins (of any two bins without
        `most`) differ by at most the longest item. A bin stays empty only if there are fewer items than bins.

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
    # Ties: prefer the bin with fewer items, then the first one.
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
    # Graham's bound avoids distributing the pairs of most steps.
    if total + (bins - 1) * longest <= bins * max_tokens:
        return True
    return all(int(lengths[share].sum()) <= max_tokens for share in deal(lengths, bins) if share)
