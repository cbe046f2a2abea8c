"""Memory and FLOP of a run from its config: nothing is allocated and no weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadpo_lightning.estimate.architecture import measure

if TYPE_CHECKING:
    import torch

    from adadpo_lightning.estimate.architecture import Lengths, Measured
    from adadpo_lightning.models.loading import PolicyConfig

GIB = 2**30


@dataclass(frozen=True)
class RunShape:
    """Properties of a run that determine its memory.

    Args:
        policy: The model.
        lengths: ``(prompt, chosen, rejected)`` tokens of each pair of the largest micro-batch on a rank.
        ranks: Processes, one device each.
        shards: Number of ranks that share one copy of the weights; 1 if each has its own.
        reference: One of the modes of `adadpo_lightning.reference.modes`; a ``path`` counts as a copy of the policy.
        autocast: Whether float32 weights compute in half precision, as with ``bf16-mixed``.
        gathered_dtype: Dtype of gathered shards (``param_dtype`` of FSDP2); None is that of the weights.
        accumulation: Micro-batches per optimizer step on each rank.
        ddp: Whether DDP holds gradient buckets in addition to the gradients.
        cpu_offload: Whether shards, gradients and optimizer state are in CPU memory.
    """

    policy: PolicyConfig
    lengths: Lengths
    ranks: int = 1
    shards: int = 1
    reference: str = "none"
    autocast: bool = False
    gathered_dtype: torch.dtype | None = None
    accumulation: int = 1
    ddp: bool = False
    cpu_offload: bool = False


@dataclass(frozen=True)
class Estimate:
    """Peak memory of a rank by purpose, and FLOP of a step.

    Args:
        gib: GiB on the device, by name.
        host_gib: GiB in CPU memory, with offload.
        parameters: Number of weights.
        trainable: Number of those trained.
        tokens: Tokens of the largest micro-batch.
        step_flops: Floating-point operations of an optimizer step over all ranks, including the reference, if all
            micro-batches are as large as the largest.
    """

    gib: dict[str, float]
    host_gib: float
    parameters: int
    trainable: int
    tokens: int
    step_flops: float

    @property
    def total(self) -> float:
        """Sum of `gib`."""
        return sum(self.gib.values())


def estimate(run: RunShape) -> Estimate:
    """Peak memory of a training step on each rank, after the first optimizer step.

    The peak is at the beginning of the backward pass, when all activations exist, or at its end, when all gradients
    exist. Allocator fragmentation, the CUDA context and NCCL buffers are not included.

    Args:
        run: The run's shape.
    """
    m = measure(run.policy, run.lengths, run.autocast, run.gathered_dtype if run.shards > 1 else None)
    shard = 1 / run.shards
    gathered = _gathered(m, run) if run.shards > 1 else 0
    reference = m.weights * shard if run.reference in SECOND_MODEL else 0
    if run.policy.gradient_checkpointing:
        kept = SELECTIVE_SHARE * m.block_activations if run.policy.gradient_checkpointing == "selective" else 0.0
        activations = m.other_activations + m.blocks * (m.block_input + kept) + m.block_activations
    else:
        activations = m.other_activations + m.blocks * m.block_activations
    # Autocast keeps half-precision copies of float32 weights during the forward pass, and until the backward pass
    # if that needs them.
    copies = m.weights // 2 if run.autocast else 0
    gradients = m.trained * shard * (2 if run.ddp else 1)
    # Gradients of earlier micro-batches exist from the start; in the first, they grow as activations are freed.
    begin, end = activations + copies + m.head, (0.0 if run.accumulation > 1 else gradients)
    state = {"weights": m.weights * shard, "optimizer": 2 * m.trained * shard}
    step = {
        "gradients": gradients if run.accumulation > 1 or run.cpu_offload else max(0.0, end - begin),
        "activations": activations,
        "autocast copies": copies,
        "head": m.head,
        "gathered weights": gathered,
    }
    host = set(OFFLOADED if run.cpu_offload else ()) | ({"activations"} if run.policy.offload_activations else set())
    everything = state | step | {"reference": reference}
    sizes = {name: size for name, size in everything.items() if name not in host}
    tokens = sum(map(sum, run.lengths))
    passes = 3 + (run.reference not in ("none", "cached")) + bool(run.policy.gradient_checkpointing)
    return Estimate(
        gib={name: size / GIB for name, size in sizes.items() if size},
        host_gib=sum(everything[name] for name in host) / GIB,
        parameters=m.parameters,
        trainable=m.trainable,
        tokens=tokens,
        step_flops=passes * m.flops * run.accumulation * run.ranks,
    )


# Share of a block's activations that selective checkpointing keeps: 0.26 to 0.28 in Llama-like and GPT-2-like blocks.
SELECTIVE_SHARE = 0.27
SECOND_MODEL = ("frozen", "path", "synced")
OFFLOADED = ("weights", "optimizer", "gradients", "reference")


def _gathered(m: Measured, run: RunShape) -> float:
    """Full weights of the root and two blocks (one prefetched), and full gradients of the root and one block."""
    block = (m.weights - m.outside) / m.blocks
    size = 1.0
    if run.gathered_dtype is not None:
        stored = m.weights / m.parameters
        size = run.gathered_dtype.itemsize / stored
    share = m.trained / m.weights
    return (m.outside + 2 * block) * size + (m.outside + block) * share
