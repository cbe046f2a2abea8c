"""Where things lie in a packed row ``[prompt | chosen | rejected | prompt | ...]``, for attention in it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class AttentionRule(NamedTuple):
    """How a layer attends.

    Args:
        scale: Factor on the logits.
        window: Positions that a query sees, its own included; None for all up to its own.
        softcap: Bound of the logits, ``softcap * tanh(logits / softcap)``; None for no bound.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None


class Run(NamedTuple):
    """Queries that lie together, and their keys: the queries are the last of the keys, and attention is causal.

    Args:
        queries: Where the queries lie in the row.
        keys: Where the keys lie, in one piece or in two (a prompt, and the rejected answer to it).
    """

    queries: slice
    keys: tuple[slice, ...]

    def gather(self, x: Tensor) -> Tensor:
        """The keys' part of `x`, (..., T, d), without a copy where they lie together."""
        return x[..., self.keys[0], :] if len(self.keys) == 1 else torch.cat([x[..., k, :] for k in self.keys], dim=-2)

    @property
    def lengths(self) -> tuple[int, int]:
        """Number of queries and of keys."""
        return _length(self.queries), sum(map(_length, self.keys))


def _length(part: slice) -> int:
    length: int = part.stop - part.start
    return length


class PackedLayout:
    """Where the pairs of one micro-batch lie in their row, and what its layers share.

    Args:
        segments: ``(prompt, chosen, rejected)`` token counts of each pair.
        backend: Which function computes attention.
        device: Where index tensors are wanted.

    Example:
        >>> layout = PackedLayout([(3, 2, 1)], "segments", torch.device("cpu"))
        >>> [run.lengths for run in layout.runs]
        [(5, 5), (1, 4)]
    """

    def __init__(self, segments: tuple[tuple[int, int, int], ...], backend: str, device: torch.device) -> None:
        self.segments = segments
        self.backend = backend
        self.device = device
        self._made: dict[Hashable, Any] = {}

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Per pair: prompt with chosen answer, then the rejected answer if there is one; in the row's order."""
        runs = []
        start = 0
        for prompt, chosen, rejected in self.segments:
            middle, end = start + prompt + chosen, start + prompt + chosen + rejected
            runs.append(Run(slice(start, middle), (slice(start, middle),)))
            if rejected:
                runs.append(Run(slice(middle, end), (slice(start, start + prompt), slice(middle, end))))
            start = end
        return tuple(runs)

    @cached_property
    def longest(self) -> int:
        """Most keys that a run has."""
        return max(run.lengths[1] for run in self.runs)

    def once(self, name: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made when the first layer asks for it."""
        if name not in self._made:
            self._made[name] = make()
        made: T = self._made[name]
        return made

    def to_device(self, host: Tensor) -> Tensor:
        """The tensor where it is wanted; on its way to a GPU nothing waits for what that is doing."""
        return host.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else host
