"""Which pairs share a prompt, and which of their answers are the same: what is computed once for all of them."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from pyarrow import ChunkedArray

# Columns that make a prompt or an answer what it is.
_COLUMNS = {
    "prompt": ("prompt_ids",),
    "chosen": ("chosen_ids", "chosen_mask"),
    "rejected": ("rejected_ids", "rejected_mask"),
}
_CHUNK = 10_000  # rows


@dataclass(frozen=True, eq=False)
class Groups:
    """The pairs of a dataset by prompt, and their answers by content.

    Args:
        group: Number of each pair's group, shape (pairs,). Pairs with one prompt are a group. Where a pair is repeated,
            as a source's weight does, each repetition is in another group.
        answer: Number of each pair's answers, equal for equal answers to the same prompt, shape (pairs, 2), or
            (pairs, 1) without rejected answers.
        prompt_len: Number of tokens of each pair's prompt, shape (pairs,).
        answer_len: Number of tokens of each answer, shape as `answer`.

    Example:
        >>> groups = Groups(np.array([0, 0]), np.array([[0, 1], [0, 2]]), np.array([5, 5]), np.array([[3, 4], [3, 2]]))
        >>> groups.tokens(np.array([0])), groups.tokens(np.array([0, 1]))
        (12, 14)
    """

    group: NDArray[np.int64]
    answer: NDArray[np.int64]
    prompt_len: NDArray[np.int64]
    answer_len: NDArray[np.int64]

    @property
    def shared(self) -> bool:
        """Whether any two pairs are in one group."""
        return len(self.group) > 0 and int(self.group.max()) + 1 < len(self.group)

    @property
    def largest(self) -> int:
        """Number of pairs of the largest group."""
        return int(np.bincount(self.group).max())

    @cached_property
    def pair_tokens(self) -> NDArray[np.int64]:
        """Number of tokens of each pair alone, shape (pairs,)."""
        lengths: NDArray[np.int64] = self.prompt_len + self.answer_len.sum(axis=1)
        return lengths

    def tokens(self, rows: NDArray[np.int64]) -> int:
        """Number of tokens in a forward pass of these pairs: each prompt and each distinct answer once."""
        _, prompts = np.unique(self.group[rows], return_index=True)
        _, answers = np.unique(self.answer[rows], return_index=True)
        return int(self.prompt_len[rows][prompts].sum() + self.answer_len[rows].ravel()[answers].sum())

    def pieces(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Split pairs by group, in the order in which the groups first appear."""
        numbers, first, inverse = np.unique(self.group[rows], return_index=True, return_inverse=True)
        order = np.argsort(np.argsort(first))[inverse]
        sorted_rows = rows[np.argsort(order, kind="stable")]
        return np.split(sorted_rows, np.cumsum(np.bincount(order, minlength=len(numbers)))[:-1])


def alone(prompt_len: NDArray[np.int64], answer_len: NDArray[np.int64]) -> Groups:
    """Every pair as a group of its own, which shares nothing."""
    count = len(prompt_len)
    answer = np.arange(answer_len.size).reshape(answer_len.shape)
    return Groups(np.arange(count), answer, prompt_len, answer_len)


def group_pairs(pairs: Dataset, *, with_rejected: bool = True) -> Groups:
    """Find the pairs that share a prompt, and equal answers.

    Args:
        pairs: Tokenized pairs, see `prepare`. Prompts and answers are compared by their tokens and scored positions.
        with_rejected: Whether rejected answers are computed.
    """
    sides = ("prompt", "chosen", "rejected") if with_rejected else ("prompt", "chosen")
    prompts: dict[bytes, int] = {}
    answers: dict[bytes, int] = {}
    groups: dict[tuple[int, int], int] = {}
    seen: Counter[tuple[int, ...]] = Counter()
    group, answer = [], []
    lengths: list[list[int]] = [[] for _ in sides]
    for batch in pairs.with_format("arrow").iter(_CHUNK):
        digests = []
        for side, counts in zip(sides, lengths, strict=True):
            columns = [_lists(batch[name]) for name in _COLUMNS[side]]
            digests.append([_digest(parts) for parts in zip(*columns, strict=True)])
            counts += [len(ids) for ids in columns[0]]
        for prompt_digest, *rest in zip(*digests, strict=True):
            prompt = prompts.setdefault(prompt_digest, len(prompts))
            own = [answers.setdefault(prompt_digest + digest, len(answers)) for digest in rest]
            pair = (prompt, *own)
            group.append(groups.setdefault((prompt, seen[pair]), len(groups)))
            answer.append(own)
            seen[pair] += 1
    sizes = np.array(lengths, dtype=np.int64)
    return Groups(
        np.array(group, dtype=np.int64),
        np.array(answer, dtype=np.int64).reshape(len(group), len(sides) - 1),
        sizes[0],
        np.ascontiguousarray(sizes[1:].T),
    )


def split_groups(
    groups: Groups, rows: NDArray[np.int64], least: int, max_tokens: int | None = None
) -> list[NDArray[np.int64]]:
    """Split the pairs of a step into pieces of groups: whole groups, unless they are too few or too long.

    Args:
        groups: The groups of the dataset.
        rows: Indices of the pairs.
        least: Number of pieces to make if there are that many pairs, because each micro-batch needs one.
        max_tokens: Maximum number of tokens per piece; one pair must fit.
    """
    pieces = groups.pieces(rows)
    # Longest first; pieces of one pair cannot be split. The number breaks ties.
    heap = [(-groups.tokens(piece), i, piece) for i, piece in enumerate(pieces) if len(piece) > 1]
    done = [piece for piece in pieces if len(piece) == 1]
    heapq.heapify(heap)
    number = len(pieces)
    while heap and (len(heap) + len(done) < least or (max_tokens is not None and -heap[0][0] > max_tokens)):
        _, _, piece = heapq.heappop(heap)
        for half in (piece[: len(piece) // 2], piece[len(piece) // 2 :]):
            if len(half) == 1:
                done.append(half)
            else:
                heapq.heappush(heap, (-groups.tokens(half), number, half))
            number += 1
    return [piece for _, _, piece in sorted(heap, key=lambda entry: entry[1])] + done


def deal_groups(groups: Groups, rows: NDArray[np.int64], bins: int, most: int) -> list[NDArray[np.int64]]:
    """Distribute the pairs of a step over bins of at most `most` pairs with even numbers of tokens.

    The longest piece of a group goes to the lightest bin that has room for all of its pairs. Where none has, the bin
    with the most room takes as many pairs of it as it can.

    Args:
        groups: The groups of the dataset.
        rows: Indices of the pairs, at most ``bins * most``.
        bins: Number of bins.
        most: Maximum number of pairs per bin.

    Returns:
        The pairs of each bin that has any.
    """
    pieces = [part for piece in groups.pieces(rows) for part in np.split(piece, range(most, len(piece), most))]
    heap = [(-groups.tokens(piece), i, piece) for i, piece in enumerate(pieces)]
    heapq.heapify(heap)
    number = len(heap)
    load, room = np.zeros(bins, dtype=np.int64), np.full(bins, most)
    shares: list[list[NDArray[np.int64]]] = [[] for _ in range(bins)]
    while heap:
        tokens, _, piece = heapq.heappop(heap)
        fits = np.flatnonzero(room >= len(piece))
        if len(fits):
            # Ties: the bin with more room, then the first.
            bin_ = int(fits[np.lexsort((-room[fits], load[fits]))[0]])
        else:
            bin_ = int(room.argmax())
            piece, rest = piece[: room[bin_]], piece[room[bin_] :]
            heapq.heappush(heap, (-groups.tokens(rest), number, rest))
            number, tokens = number + 1, -groups.tokens(piece)
        shares[bin_].append(piece)
        load[bin_] -= tokens
        room[bin_] -= len(piece)
    return [np.concatenate(share) for share in shares if share]


def _lists(column: ChunkedArray) -> list[NDArray[Any]]:
    """The rows of a column of lists, without a copy."""
    array = column.combine_chunks()
    values = array.flatten().to_numpy(zero_copy_only=False)
    return np.split(values, np.cumsum(array.value_lengths().to_numpy())[:-1])


def _digest(parts: tuple[NDArray[Any], ...]) -> bytes:
    content = hashlib.blake2b(digest_size=16)
    for part in parts:
        content.update(len(part).to_bytes(8, "little") + part.tobytes())
    return content.digest()
