"""Which pairs are one ranked list: a list ``a > b > c`` is the pairs (a, b) and (b, c)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Chains:
    """The pairs of a dataset by ranked list. A row that is a pair is a list of two answers.

    Args:
        starts: First pair of each list, shape (lists,); the others follow it.
        rest: Number of pairs that follow each pair in its list, shape (pairs,).
        split: Number of rows whose pairs are more than one list.
    """

    starts: NDArray[np.int64]
    rest: NDArray[np.int64]
    split: int

    @property
    def members(self) -> list[NDArray[np.int64]]:
        """The pairs of each list, the best answer first."""
        return np.split(np.arange(len(self.rest)), self.starts[1:])

    @property
    def of_two(self) -> int:
        """Number of lists of two answers."""
        return int((self.rest[self.starts] == 0).sum())

    @property
    def longer(self) -> int:
        """Number of lists of more answers."""
        return len(self.starts) - self.of_two

    def total(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sum numbers of the pairs over each list, shape (lists,)."""
        sums: NDArray[np.int64] = np.add.reduceat(values, self.starts)
        return sums


def find_chains(row: NDArray[np.int64], answer: NDArray[np.int64]) -> Chains:
    """Find the pairs of which each compares the rejected answer of the pair before it.

    Args:
        row: Row of each pair in its dataset, shape (pairs,).
        answer: Number of each pair's answers, equal for equal answers to the same prompt, shape (pairs, 2).

    Example:
        >>> chains = find_chains(np.array([0, 0, 1, 1]), np.array([[0, 1], [1, 2], [3, 4], [5, 6]]))
        >>> chains.starts.tolist(), chains.rest.tolist(), chains.split
        ([0, 2, 3], [1, 0, 0, 0], 1)
    """
    same_row = row[1:] == row[:-1]
    linked = same_row & (answer[1:, 0] == answer[:-1, 1])
    starts = np.flatnonzero(np.concatenate([[True], ~linked]))
    ends = np.append(starts[1:], len(row))
    rest = np.repeat(ends, ends - starts) - np.arange(len(row)) - 1
    return Chains(starts, rest, len(np.unique(row[1:][same_row & ~linked])))
