"""What a strategy can do: the only place that asks which strategy a run has."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from adadpo_lightning.errors import UserError
from adadpo_lightning.models.sharding import Sharding


def shards_parameters(strategy: Any) -> bool:
    """Whether parameters are DTensors whose shards only the backward pass's hooks fill (FSDP2)."""
    return isinstance(strategy, ModelParallelStrategy)


def hides_gradients(strategy: Any) -> bool:
    """Whether no rank can see the whole gradient (Lightning's FSDP1 strategy)."""
    return isinstance(strategy, FSDPStrategy)


def shows_gradients(strategy: Any) -> bool:
    """Whether every rank can read each parameter's gradient, whole or as its shard."""
    return isinstance(strategy, (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy))


def shards_weights(name: str) -> bool:
    """Whether a strategy that a config names shards weights, before there is a strategy to ask.

    Example:
        >>> shards_weights("adadpo_lightning.strategies.FSDP2"), shards_weights("ddp")
        (True, False)
    """
    return name.rpartition(".")[2].lower() in ("fsdp2", "fsdp", "fsdpstrategy", "modelparallelstrategy")


def sharding_of(strategy: Any, reference_mode: str = "none") -> Sharding | None:
    """What a strategy wants of the model; None for strategies that keep it whole or wrap it by themselves.

    Raises:
        UserError: For tensor parallelism, and for a frozen reference under FSDP1.
    """
    if isinstance(strategy, FSDPStrategy) and reference_mode == "frozen":
        raise UserError(
            "model.reference",
            "Lightning's FSDPStrategy shards the policy alone, and each rank would hold a whole frozen reference",
            "set it to cached, or take configs/strategy/fsdp2.yaml, which shards both",
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
            "ModelParallelStrategy splits tensors over the ranks of a node by default, which no model here is written "
            "for",
            "set its data_parallel_size to the number of ranks and tensor_parallel_size to 1, or take "
            "adadpo_lightning.strategies.FSDP2",
        )
    return Sharding(mesh["data_parallel"], strategy.root_device)
