"""Capabilities of strategies: the only module that checks which strategy a run uses."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from adadpo_lightning.errors import UserError
from adadpo_lightning.models.sharding import Sharding


def shards_parameters(strategy: Any) -> bool:
    """Whether parameters are DTensors whose gradients only the hooks of the backward pass write (FSDP2)."""
    return isinstance(strategy, ModelParallelStrategy)


def hides_gradients(strategy: Any) -> bool:
    """Whether no rank has access to the full gradient (Lightning's FSDP1 strategy)."""
    return isinstance(strategy, FSDPStrategy)


def shows_gradients(strategy: Any) -> bool:
    """Whether every rank can read the gradient of each parameter, in full or its shard."""
    return isinstance(strategy, (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy))


def splits_matrices(strategy: Any) -> bool:
    """Whether a matrix is split over ranks while it is used (tensor parallelism), for use before ranks connect."""
    return bool(getattr(strategy, "tensor_parallel_size", 1) > 1)


def first_of_its_data(strategy: Any) -> bool:
    """Whether this rank is the first of those that compute the same from the same data (tensor parallelism)."""
    if not isinstance(strategy, ModelParallelStrategy):
        return True
    return bool(strategy.device_mesh["tensor_parallel"].get_local_rank() == 0)


def shards_weights(name: str) -> bool:
    """Whether the strategy named in a config shards weights, for use before the strategy exists.

    Example:
        >>> shards_weights("adadpo_lightning.strategies.FSDP2"), shards_weights("ddp")
        (True, False)
    """
    return name.rpartition(".")[2].lower() in ("fsdp2", "fsdp", "fsdpstrategy", "modelparallelstrategy")


def sharding_of(strategy: Any, reference_mode: str = "none") -> Sharding | None:
    """How a strategy shards the model; None for strategies that replicate it or wrap it on their own.

    Raises:
        UserError: For tensor parallelism by Lightning's own strategy, and for a frozen reference under FSDP1.
    """
    if isinstance(strategy, FSDPStrategy) and reference_mode == "frozen":
        raise UserError(
            "model.reference",
            "Lightning's FSDPStrategy shards only the policy, and each rank would hold a full frozen reference",
            "set it to cached, or use configs/strategy/fsdp2.yaml, which shards both",
        )
    if not isinstance(strategy, ModelParallelStrategy):
        return None
    own: Sharding | None = getattr(strategy, "sharding", None)
    if own is not None:
        return own
    mesh = strategy.device_mesh
    if mesh["tensor_parallel"].size() > 1:
        raise UserError(
            "trainer.strategy",
            "Lightning's ModelParallelStrategy uses tensor parallelism over the ranks of a node by default, and would "
            "count metrics once for each of them",
            "use adadpo_lightning.strategies.FSDP2, with its tensor_parallel_size if you want that",
        )
    return Sharding(mesh["data_parallel"], strategy.root_device)
