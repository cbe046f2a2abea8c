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
        shards: Number of ranks over which FSDP2 shards each weight, or each part of it; 1 if it is not sharded.
        tensor: Number of ranks of a tensor-parallel group, which have the same micro-batches.
        reference: One of the modes of `adadpo_lightning.reference.modes`; a ``path`` counts as a copy of the policy.
        autocast: Whether float32 weights compute in half precision, as with ``bf16-mixed``.
        gathered_dtype: Dtype of gathered shards (``param_dtype`` of FSDP2); None is that of the weights.
        reduced_dtype: Dtype in which gradients are summed over shards (``reduce_dtype``); None is `gathered_dtype`.
        accumulation: Micro-batches per optimizer step on each rank.
        micro_batches: Micro-batches per optimizer step of the whole run; None means as many as the ranks compute.
        ddp: Whether DDP holds gradient buckets in addition to the gradients.
        cpu_offload: Whether shards, gradients and optimizer state are in CPU memory.
    """

    policy: PolicyConfig
    lengths: Lengths
    ranks: int = 1
    shards: int = 1
    tensor: int = 1
    reference: str = "none"
    autocast: bool = False
    gathered_dtype: torch.dtype | None = None
    reduced_dtype: torch.dtype | None = None
    accumulation: int = 1
    micro_batches: int | None = None
    ddp: bool = False
    cpu_offload: bool = False

    @property
    def sharded(self) -> bool:
        """Whether weights are gathered before they are used; tensor parallelism always comes with FSDP2."""
        return self.shards > 1 or self.tensor > 1

    @property
    def groups(self) -> int:
        """Number of ranks, or of tensor-parallel groups, that have micro-batches of their own."""
        return self.ranks // self.tensor

    @property
    def second_model(self) -> bool:
        """Whether the reference is a second model."""
        return self.reference in ("frozen", "path", "synced")

    def widths(self, stored: float) -> tuple[float, float]:
        """Bytes of a gathered weight, and of its gradient as it is reduced, over the bytes `stored` of a stored one."""
        gathered = 1.0 if self.gathered_dtype is None else self.gathered_dtype.itemsize / stored
        return gathered, gathered if self.reduced_dtype is None else self.reduced_dtype.itemsize / stored

    @property
    def quantized(self) -> bool:
        """Whether the base model is stored in 4 bits, which are gathered as they are."""
        return self.policy.lora is not None and self.policy.lora.quantize is not None


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


def measured(run: RunShape) -> Measured:
    """Sizes of the run's model and of its largest micro-batch; of the ranks only `RunShape.tensor` changes them.

    Raises:
        UserError: If the model cannot be built from its config, or not be split over `RunShape.tensor` ranks.
    """
    return measure(run.policy, run.lengths, run.autocast, run.gathered_dtype if run.sharded else None, run.tensor)


def estimate(run: RunShape, sizes: Measured | None = None) -> Estimate:
    """Peak memory of a training step on each rank, after the first optimizer step.

    The peak is at the beginning of the backward pass, when all activations exist, at its end, when all gradients
    exist, or, with shards, in the reference's forward pass. Allocator fragmentation, the CUDA context and NCCL buffers
    are not included.

    Args:
        run: The run's shape.
        sizes: `measured` of a run that differs only in ranks and shards, if there is one.
    """
    m = sizes or measured(run)
    state = {"weights": (m.weights - m.replicated) / run.shards + m.replicated, "optimizer": 2 * m.trained / run.shards}
    if run.second_model:
        state["reference"] = state["weights"]
    host = set(OFFLOADED if run.cpu_offload else ()) | ({"activations"} if run.policy.offload_activations else set())
    everything = max(
        ({**state, **moment} for moment in (_sharded(m, run) if run.sharded else [_whole(m, run)])),
        key=lambda sizes: sum(size for name, size in sizes.items() if name not in host),
    )
    tokens = sum(map(sum, run.lengths))
    passes = 3 + (run.reference not in ("none", "cached")) + bool(run.policy.gradient_checkpointing)
    return Estimate(
        gib={name: size / GIB for name, size in everything.items() if size and name not in host},
        host_gib=sum(everything.get(name, 0.0) for name in host) / GIB,
        parameters=m.parameters,
        trainable=m.trainable,
        tokens=tokens,
        step_flops=passes * m.flops * run.accumulation * run.groups,
    )


# Share of a block's activations that selective checkpointing keeps: 0.26 to 0.28 in Llama-like and GPT-2-like blocks.
SELECTIVE_SHARE = 0.27
OFFLOADED = ("weights", "optimizer", "gradients", "reference")


def _saved(m: Measured, run: RunShape) -> tuple[float, float]:
    """Bytes that the forward pass keeps for the backward pass, and those that a block recomputes there."""
    if not run.policy.gradient_checkpointing:
        return m.other_activations + m.blocks * m.block_activations, 0.0
    kept = SELECTIVE_SHARE * m.block_activations if run.policy.gradient_checkpointing == "selective" else 0.0
    return m.other_activations + m.blocks * (m.block_input + kept), m.block_activations


def _whole(m: Measured, run: RunShape) -> dict[str, float]:
    """The peak of a rank with whole weights: the head's backward pass, or the end when all gradients exist."""
    activations = sum(_saved(m, run))
    # Autocast keeps half-precision copies of float32 weights during the forward pass, and until the backward pass
    # if that needs them.
    copies = m.weights // 2 if run.autocast else 0
    gradients = m.trained * (2 if run.ddp else 1)
    # Gradients of earlier micro-batches exist from the start; in the first, they grow as activations are freed.
    rest = gradients if run.accumulation > 1 else max(0.0, gradients - activations - copies - m.head)
    return {"gradients": rest, "activations": activations, "autocast copies": copies, "head": m.head}


def _sharded(m: Measured, run: RunShape) -> list[dict[str, float]]:
    """What a rank holds under FSDP2 at the moments that may be its peak, beside what it always holds.

    While a block is computed, its weights and those of the next one are whole. Embedding, norm and head stay whole from
    their forward pass to the end. What is received is copied into place, and freed when the next block has been.
    Gradients are whole in the dtype of the computation until they are reduced, for which they are copied in that of the
    reduction.
    """
    gathered, reduced = run.widths(m.stored)
    root, block = m.outside * gathered, (m.weights - m.outside) / m.blocks * (1.0 if run.quantized else gathered)
    trained = m.trained / m.weights  # with adapters gradients are few
    copies = 1 + reduced / gathered
    (kept, recomputed), gradients = _saved(m, run), m.trained / run.shards
    activations = kept + recomputed
    earlier = gradients if run.accumulation > 1 or run.cpu_offload else 0.0
    moments = [
        # The first block of the forward pass, where gradients of the step before still are.
        {"gradients": gradients, "gathered weights": 2 * (root + block)},
        # The backward pass of the head, when the last block is already on its way.
        {"gradients": earlier, "activations": activations, "head": m.head, "gathered weights": root + block},
        # That of the last block; the gradient of the head is still whole.
        {
            "gradients": earlier,
            "activations": activations,
            "gathered weights": root + 2 * block,
            "whole gradients": trained * (root / 2 + copies * block),
        },
        # The end, when everything outside of the blocks is reduced.
        {"gradients": gradients, "gathered weights": root, "whole gradients": trained * copies * root},
    ]
    if run.second_model:
        # The same of the reference, which follows the policy's and its last logits.
        moments.append(
            {
                "gradients": gradients,
                "activations": kept,
                "head": m.logits,
                "gathered weights": root + 2 * (root + block),
            }
        )
    return moments
