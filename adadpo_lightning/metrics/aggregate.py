"""Many running means in one torchmetrics state, so that logging needs one collective and one host synchronization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from adadpo_lightning.ranks import data_group, total


class WeightedMeans(Metric):
    """Named means ``sum / weight`` over everything seen since the last reset, on all ranks.

    Sums and weights are additive over any split of the data, so uneven micro-batches and ranks do not bias the means.

    Example:
        >>> means = WeightedMeans()
        >>> means.update({"accuracy": (torch.tensor(3.0), 4)})
        >>> means.update({"accuracy": (torch.tensor(0.0), 1)})
        >>> round(means.compute()["accuracy"], 2)
        0.6
    """

    full_state_update = False
    sums: Tensor
    weights: Tensor

    def __init__(self) -> None:
        super().__init__(process_group=data_group())
        self.names: tuple[str, ...] = ()
        self._allocate(0)

    def _allocate(self, size: int) -> None:
        # float64: a long validation set must not lose small terms.
        self.add_state("sums", torch.zeros(size, dtype=torch.float64, device=self.device), dist_reduce_fx="sum")
        self.add_state("weights", torch.zeros(size, dtype=torch.float64, device=self.device), dist_reduce_fx="sum")

    def update(self, statistics: Mapping[str, tuple[Tensor, Tensor | float]]) -> None:
        """Add one micro-batch.

        Args:
            statistics: For each name the weighted sum (a scalar tensor) and its weight. The first call fixes the names,
                which must be the same on all ranks.

        Raises:
            ValueError: If the names differ from those of the first call.
        """
        if not self.names:
            self.names = tuple(statistics)
            self._allocate(len(self.names))
        if tuple(statistics) != self.names:
            raise ValueError(f"expected the statistics {self.names}, got {tuple(statistics)}")
        self.sums = self.sums + self._stacked([total for total, _ in statistics.values()])
        self.weights = self.weights + self._stacked([weight for _, weight in statistics.values()])

    def _stacked(self, values: list[Tensor | float]) -> Tensor:
        # `full` fills on the device and avoids a synchronizing copy from the host.
        tensors = [
            v.detach().double() if isinstance(v, Tensor) else torch.full((), v, dtype=torch.float64, device=self.device)
            for v in values
        ]
        return torch.stack(tensors)

    def snapshot(self) -> dict[str, Any]:
        """This rank's sums and weights, not affected by later updates."""
        return {"names": list(self.names), "sums": self.sums, "weights": self.weights}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Restore a `snapshot`; ``sums`` and ``weights`` of 0 restore only its names."""
        self.names = tuple(snapshot["names"])
        self._allocate(len(self.names))
        self.sums = self.sums + snapshot["sums"]
        self.weights = self.weights + snapshot["weights"]

    def compute(self) -> dict[str, float]:
        """The means by name, as numbers on the host; names without any weight are omitted."""
        weights, sums = self.weights.tolist(), self.sums.tolist()
        return {name: s / w for name, s, w in zip(self.names, sums, weights, strict=True) if w > 0}


def summed_over_ranks(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    """A `WeightedMeans.snapshot` summed over all ranks, on the host; every rank must call this."""
    if not snapshot:
        return {}
    sums, weights = total(torch.stack([snapshot["sums"], snapshot["weights"]])).cpu()
    return {"names": snapshot["names"], "sums": sums, "weights": weights}
