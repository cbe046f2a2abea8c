"""Layout of a packed row ``[prompt | answer | answer | ... | prompt | ...]``, for attention."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class AttentionRule(NamedTuple):
    """Attention options of a layer.

    Args:
        scale: Factor on the logits.
        window: Number of positions visible to a query, including its own; None for all up to its own.
        softcap: Bound on the logits, ``softcap * tanh(logits / softcap)``; None for no bound.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None


class Run(NamedTuple):
    """Contiguous queries and their keys. The queries are the last of the keys, and attention is causal.

    Args:
        queries: Slice of the queries in the row.
        keys: Slices of the keys in the row: one, or two (a prompt and one of its further answers).
    """

    queries: slice
    keys: tuple[slice, ...]

    def gather(self, x: Tensor) -> Tensor:
        """Select the keys from `x`, (..., T, d), without a copy if they are contiguous."""
        return x[..., self.keys[0], :] if len(self.keys) == 1 else torch.cat([x[..., k, :] for k in self.keys], dim=-2)

    @property
    def lengths(self) -> tuple[int, int]:
        """Number of queries and of keys."""
        return _length(self.queries), sum(map(_length, self.keys))


def _length(part: slice) -> int:
    length: int = part.stop - part.start
    return length


class PackedLayout:
    """Layout of the groups of a micro-batch in their row, and values shared by all layers.

    Args:
        segments: ``(prompt, answer, answer, ...)`` token counts of each group; a pair is a group of two answers.
        backend: Name of the attention backend.
        device: Device of index tensors.

    Example:
        >>> layout = PackedLayout([(3, 2, 1)], "segments", torch.device("cpu"))
        >>> [run.lengths for run in layout.runs]
        [(5, 5), (1, 4)]
    """

    def __init__(self, segments: Sequence[Sequence[int]], backend: str, device: torch.device) -> None:
        self.segments = segments
        self.backend = backend
        self.device = device
        self._made: dict[Hashable, Any] = {}

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """For each group, in row order: the prompt with its first answer, then each further answer."""
        runs = []
        start = 0
        for prompt, *answers in self.segments:
            end = start + prompt + answers[0]
            runs.append(Run(slice(start, end), (slice(start, end),)))
            for answer in answers[1:]:
                if answer:
                    own = slice(end, end + answer)
                    runs.append(Run(own, (slice(start, start + prompt), own)))
                    end = own.stop
            start = end
        return tuple(runs)

    @property
    def length(self) -> int:
        """Number of tokens in the row, T."""
        return sum(map(sum, self.segments))

    @cached_property
    def longest(self) -> int:
        """Largest number of keys of a run."""
        return max(run.lengths[1] for run in self.runs)

    def once(self, name: Hashable, make: Callable[[], T]) -> T:
        """The result of `make`, computed on first use and shared by all layers."""
        if name not in self._made:
            self._made[name] = make()
        made: T = self._made[name]
        return made

    def to_device(self, host: Tensor) -> Tensor:
        """Move a tensor to the device, without synchronizing with a GPU."""
        return host.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else host
