"""Time that a device spends in the forward passes of some modules."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

# An event of the device, or a time of the host's clock in seconds.
Mark = Any


@dataclass
class _Pass:
    """One forward pass: the number of positions, and begin and end of each module's part."""

    positions: int
    marks: list[tuple[Mark, Mark]] = field(default_factory=list)


class ForwardTimer:
    """Times modules between their inputs and their outputs, in the last forward passes that were asked for.

    On CUDA these are events in the stream of the computation: nothing waits for the device until `totals`. The hooks
    run inside those of FSDP2 and of tensor parallelism, which gather weights before a module and sum activations after
    it.

    Args:
        modules: Modules that do not contain each other.
        device: Where they compute.
        passes: Number of passes that are kept.
    """

    def __init__(self, modules: Sequence[nn.Module], device: torch.device, passes: int) -> None:
        self._on_cuda = device.type == "cuda"
        self._kept: deque[_Pass] = deque(maxlen=passes)
        self._current: _Pass | None = None
        self._begin: Mark = None
        self._hooks = [module.register_forward_pre_hook(self._enter) for module in modules]
        # Before the hooks that are there already, one of which may wait for other ranks.
        self._hooks += [module.register_forward_hook(self._leave, prepend=True) for module in modules]

    def __len__(self) -> int:
        return len(self._kept)

    def start(self, positions: int) -> None:
        """Time what follows, a forward pass over so many positions, until `stop`."""
        self._current = _Pass(positions)
        self._kept.append(self._current)

    def stop(self) -> None:
        """Stop; the backward pass may compute modules again."""
        self._current = None

    def totals(self) -> tuple[float, int]:
        """Seconds and positions of the passes that are kept; waits for the device."""
        seconds = sum(self._seconds(*marks) for kept in self._kept for marks in kept.marks)
        return seconds, sum(kept.positions for kept in self._kept)

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if self._current is not None:
            self._begin = self._mark()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._current is not None:
            self._current.marks.append((self._begin, self._mark()))

    def _mark(self) -> Mark:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call, unused-ignore]  # untyped upstream
        event.record()
        return event

    def _seconds(self, begin: Mark, end: Mark) -> float:
        if not self._on_cuda:
            return float(end - begin)
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000
