"""Micro-batches for evaluation: each pair once, in full forward passes, with shared prompts and answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from adadpo_lightning.data.plan import MicroBatch, pairs_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adadpo_lightning.data.groups import Groups


def eval_plan(
    groups: Groups,
    chosen_lengths: NDArray[np.int64],
    *,
    micro_batch_size: int = 1,
    max_tokens: int | None = None,
    ranks: int = 1,
    in_order: bool = False,
    members: Sequence[NDArray[np.int64]] | None = None,
) -> list[list[MicroBatch]]:
    """Micro-batches with each pair once for each rank; all ranks have the same number.

    Pairs of a group follow each other, the groups in the order of their first pairs. Their counts are those of the full
    set, so that the contributions to the loss sum to its mean.

    Args:
        groups: The pairs by prompt.
        chosen_lengths: Number of scored chosen tokens of each pair, shape (pairs,).
        micro_batch_size: Number of pairs per forward pass on one rank; not used with `max_tokens`.
        max_tokens: Maximum number of tokens per forward pass on one rank. A pair that is longer is alone in its own.
        ranks: Number of data-parallel processes.
        in_order: Keep the dataset's order, also where it separates the pairs of a group.
        members: The pairs of each ranked list; `groups`, lengths and `micro_batch_size` are then of whole lists, see
            `StepPlan`.

    Example:
        >>> from adadpo_lightning.data.groups import alone
        >>> groups = alone(np.array([1, 1, 1]), np.array([[1, 1], [1, 2], [2, 2]]))
        >>> [[batch.rows for batch in rank] for rank in eval_plan(groups, np.array([1, 1, 2]), ranks=2)]
        [[(0,), (2,)], [(1,), (0,)]]
        >>> [batch.rows for batch in eval_plan(groups, np.array([1, 1, 2]), max_tokens=7)[0]]
        [(0, 1), (2,)]
    """
    total = len(chosen_lengths)
    pairs = total if members is None else sum(map(len, members))
    counts: dict[str, Any] = {"step": 0, "step_pairs": pairs, "step_chosen_tokens": int(chosen_lengths.sum())}
    order = np.arange(total) if in_order else np.argsort(groups.group, kind="stable")
    if max_tokens is None:
        shares: Iterable[list[int]] = (
            order[start : start + micro_batch_size].tolist() for start in range(0, total, micro_batch_size)
        )
    else:
        shares = fill(groups, order, max_tokens)
    batches = [MicroBatch(pairs_of(np.array(share), members), **counts) for share in shares]
    shortest = pairs_of(np.array([groups.pair_tokens.argmin()]), members)
    batches += [MicroBatch(shortest, **counts, filler=True)] * (-len(batches) % ranks)
    return [batches[rank::ranks] for rank in range(ranks)]


def fill(groups: Groups, order: NDArray[np.int64], max_tokens: int) -> Iterator[list[int]]:
    """Fill micro-batches one after the other, in the given order of the pairs.

    A run of pairs of one group that a micro-batch can hold is not split; a longer one is, pair by pair.

    Args:
        groups: The pairs by prompt.
        order: Indices of the pairs.
        max_tokens: Maximum number of tokens per micro-batch. A pair that is longer is alone in its own.
    """
    batch: list[int] = []
    load = 0
    for run in np.split(order, np.flatnonzero(np.diff(groups.group[order])) + 1):
        whole = groups.tokens(run) if len(run) > 1 else int(groups.pair_tokens[run[0]])
        if batch and load + whole > max_tokens:
            yield batch
            batch, load = [], 0
        if load + whole <= max_tokens:
            batch += run.tolist()
            load += whole
            continue
        start = 0
        for stop in range(1, len(run) + 1):
            if stop - start > 1 and groups.tokens(run[start:stop]) > max_tokens:
                yield run[start : stop - 1].tolist()
                start = stop - 1
        batch, load = run[start:].tolist(), groups.tokens(run[start:])
    if batch:
        yield batch
