"""Sizes and FLOP of an architecture, from a forward pass over tensors without memory."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from adadpo_lightning import hub
from adadpo_lightning.compat import storage_key, without_memory
from adadpo_lightning.data.collate import collate
from adadpo_lightning.errors import UserError
from adadpo_lightning.estimate.tensor import Exchanged, exchanged, of_all_blocks, part, split, tensor_group
from adadpo_lightning.types import EncodedPair

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from adadpo_lightning.models.loading import PolicyConfig
    from adadpo_lightning.models.policy import PolicyModel
    from adadpo_lightning.types import PreferenceBatch

Lengths = Sequence[tuple[int, int, int]]
# Of a weight in nf4 with double quantization: 4 bits, 8 bits for each 64 weights, 32 bits for each 256 of those
# (arXiv 2305.14314, section 3).
SCALE_BYTES = 1 / 64 + 4 / (64 * 256)
NF4_BYTES = 0.5 + SCALE_BYTES


@dataclass(frozen=True)
class Measured:
    """Sizes and FLOP of an architecture; bytes are those of one rank of a tensor-parallel group.

    Args:
        weights: Bytes of all weights.
        outside: Bytes of the weights outside the decoder blocks.
        trained: Bytes of the weights that are trained.
        stored: Bytes of a weight.
        parameters: Number of weights, of all ranks of a group together.
        trainable: Number of those trained.
        blocks: Number of decoder blocks.
        block_activations: Bytes that one block saves for the backward pass.
        other_activations: Bytes that the rest of the model saves.
        block_input: Bytes of the hidden states that enter a block.
        head: Peak bytes of the head: logits of a chunk and the gradient of its weight.
        logits: Bytes of a chunk's logits, of which the last are kept from the forward to the backward pass.
        flops: Floating-point operations of a forward pass, of all ranks of a group together.
        replicated: Bytes of the weights that each rank holds whole: the scales of weights in 4 bits.
        forward: Bytes of the collectives of a tensor-parallel group in a forward pass, by kind.
        both: The same in a forward and a backward pass.
    """

    weights: int
    outside: int
    trained: int
    stored: float
    parameters: int
    trainable: int
    blocks: int
    block_activations: int
    other_activations: int
    block_input: int
    head: int
    logits: int
    flops: float
    replicated: int = 0
    forward: Mapping[str, int] = field(default_factory=dict)
    both: Mapping[str, int] = field(default_factory=dict)


def measure(
    policy: PolicyConfig, lengths: Lengths, autocast: bool, compute: torch.dtype | None = None, tensor: int = 1
) -> Measured:
    """Run one and two blocks of the architecture over tensors without memory.

    Args:
        policy: The model, of which only the config is read.
        lengths: Pairs of the micro-batch.
        autocast: Whether to compute in bfloat16 over float32 weights.
        compute: Dtype of the computation, if it differs from that of the weights.
        tensor: Ranks of a tensor-parallel group; the process must not have a process group if it is above 1.

    Raises:
        UserError: If the architecture cannot be built from its config, or not be split over `tensor` ranks.
    """
    config = _architecture(policy)
    rows = pairs_of(lengths)
    whole = _model(policy, config)
    scored = sum(chosen + rejected for _, chosen, rejected in lengths)
    flops = _forward_flops(whole, config, lengths, scored)
    vocabulary = -(-config.vocab_size // tensor)  # rank 0 has most
    cut = [_model(policy, config, layers, compute) for layers in (1, 2)]
    sent: list[Exchanged] = []
    with tensor_group(tensor) as mesh:
        split(whole, policy, mesh)
        with without_memory():
            one, two = (_activations(model, policy, rows, mesh, autocast=autocast) for model in cut)
        if mesh is not None:
            kept = policy.gradient_checkpointing
            cut = [_model(policy, config, layers, compute, checkpointing=kept) for layers in (1, 2)]
            with without_memory(), _half(autocast):
                sent = [exchanged(*_placed(model, policy, rows, mesh)) for model in cut]
    blocks = config.num_hidden_layers
    forward, both = (of_all_blocks(passes, blocks) for passes in zip(*sent, strict=True)) if sent else ({}, {})
    half = autocast or (compute or _weights_dtype(whole)).itemsize == 2
    return Measured(
        **_sizes(whole, policy),
        blocks=blocks,
        block_activations=two.saved - one.saved,
        other_activations=2 * one.saved - two.saved,
        block_input=one.hidden_bytes,
        head=_head_bytes(policy, config, vocabulary, scored, trained=_trains_head(whole), half=half),
        logits=4 * min(policy.head_chunk_size, scored) * vocabulary,
        flops=flops,
        forward=forward,
        both=both,
    )


def pairs_of(lengths: Lengths) -> list[EncodedPair]:
    """Pairs of these lengths, of token 0."""
    return [
        EncodedPair([0] * prompt, [0] * chosen, [0] * rejected, i)
        for i, (prompt, chosen, rejected) in enumerate(lengths)
    ]


def pair_flops(policy: PolicyConfig, lengths: Lengths) -> list[float]:
    """Floating-point operations of the forward pass of each pair.

    Args:
        policy: The model, of which only the config is read.
        lengths: ``(prompt, chosen, rejected)`` tokens of each pair.
    """
    config = _architecture(policy)
    model = _model(policy, config)
    return [_forward_flops(model, config, [pair], pair[1] + pair[2]) for pair in lengths]


@dataclass(frozen=True)
class _Saved:
    saved: int
    hidden_bytes: int


def _placed(
    model: Any, policy: PolicyConfig, rows: list[EncodedPair], mesh: DeviceMesh | None
) -> tuple[PolicyModel, PreferenceBatch]:
    """The policy with weights on a device, split if there is a mesh, and a micro-batch; without memory."""
    from adadpo_lightning.models.meta import replace_parameters
    from adadpo_lightning.models.policy import PolicyModel

    replace_parameters(model, lambda p: True, lambda p: torch.empty(p.shape, dtype=p.dtype))
    wrapped = PolicyModel(model, replace(policy, compile=False, offload_activations=False))
    split(model, policy, mesh)
    return wrapped, collate(rows, layout=wrapped.layout, pad_id=0, step_pairs=1, step_chosen_tokens=1)


def _half(autocast: bool) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()


def _activations(
    model: Any, policy: PolicyConfig, rows: list[EncodedPair], mesh: DeviceMesh | None, *, autocast: bool
) -> _Saved:
    """Bytes that a forward pass saves for the backward pass, without weights."""
    wrapped, batch = _placed(model, policy, rows, mesh)
    kept: dict[Hashable, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[storage_key(part(tensor))] = part(tensor)
        return tensor

    with _half(autocast), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = _scored_states(wrapped, batch)
    weights = [part(p) for p in wrapped.parameters()]
    own = {storage_key(p) for p in weights}
    # Autocast copies of weights are counted separately.
    shapes = {tuple(p.shape) for p in weights if p.dim() == 2} if autocast else set()
    shapes |= {shape[::-1] for shape in shapes}
    saved = sum(
        t.untyped_storage().nbytes() for key, t in kept.items() if key not in own and tuple(t.shape) not in shapes
    )
    row = batch.input_ids.numel() * hidden.shape[-1]
    return _Saved(saved + hidden.numel() * hidden.element_size(), row * hidden.element_size())


def _scored_states(policy: Any, batch: PreferenceBatch) -> torch.Tensor:
    states: torch.Tensor = policy.hidden_states(batch).flatten(0, 1).index_select(0, batch.predict)
    return states


def _head_bytes(policy: PolicyConfig, config: Any, vocabulary: int, scored: int, *, trained: bool, half: bool) -> int:
    """Logits of a chunk in float32, their copy in half precision, and the gradient of the head's weight in float32.

    In half precision a chunk's part of the gradient is a tensor of its own before it is added, when the logits in
    float32 are gone.
    """
    logits: int = min(policy.head_chunk_size, scored) * vocabulary
    gradient: int = vocabulary * config.hidden_size * 4 if trained else 0
    return gradient + (max(6 * logits, 2 * logits + gradient) if half else 4 * logits)


def _trains_head(model: Any) -> bool:
    """Whether the head's whole matrix is trained: without adapters, or with a copy of it in ``modules_to_save``."""
    from adadpo_lightning.models.adapters import in_use

    base = model.get_base_model() if hasattr(model, "peft_config") else model
    weight = getattr(in_use(base.get_output_embeddings()), "weight", None)
    return weight is not None and bool(weight.requires_grad)


def _forward_flops(model: nn.Module, config: Any, lengths: Lengths, scored: int) -> float:
    """FLOP of matrix products: blocks on all tokens, head on scored tokens, attention on visible tokens."""
    from adadpo_lightning.models.sharding import decoder_blocks

    tokens = sum(map(sum, lengths))
    matrices = sum(p.numel() for block in decoder_blocks(model) for p in block.parameters() if p.dim() == 2)
    seen = sum((p + c) ** 2 / 2 + r * p + r * r / 2 for p, c, r in lengths)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention: float = 4 * seen * config.num_attention_heads * width * config.num_hidden_layers
    head: float = 2.0 * scored * config.vocab_size * config.hidden_size
    return 2.0 * matrices * tokens + head + attention


def _sizes(model: Any, policy: PolicyConfig) -> dict[str, Any]:
    from adadpo_lightning.models.sharding import decoder_blocks

    quantized = _quantized(model) if policy.lora is not None and policy.lora.quantize is not None else set()
    inside = {id(p) for block in decoder_blocks(model) for p in block.parameters()}
    parameters = list(model.parameters())

    def size(p: torch.Tensor) -> int:
        return round(p.numel() * NF4_BYTES) if id(p) in quantized else part(p).numel() * p.element_size()

    numbers = sum(p.numel() for p in parameters)
    return {
        "weights": sum(map(size, parameters)),
        "replicated": round(SCALE_BYTES * sum(p.numel() for p in parameters if id(p) in quantized)),
        "outside": sum(size(p) for p in parameters if id(p) not in inside),
        "trained": sum(size(p) for p in parameters if p.requires_grad),
        "stored": sum(p.numel() * p.element_size() for p in parameters) / numbers,
        "parameters": numbers,
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
    }


def _quantized(model: Any) -> set[int]:
    """Matrices that bitsandbytes stores in 4 bits: those of linear layers, except the head and what is trained."""
    base = model.get_base_model()
    head = base.get_output_embeddings()
    layers = [m for m in base.modules() if type(m) is torch.nn.Linear and m is not head]
    ends = {id(p) for end in (head, base.get_input_embeddings()) for p in end.parameters()}
    return {id(m.weight) for m in layers if not m.weight.requires_grad and id(m.weight) not in ends}


def _weights_dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _architecture(policy: PolicyConfig) -> Any:
    """The Hugging Face config of the policy."""
    from transformers import AutoConfig

    from adadpo_lightning.models.weights import read_architecture

    if isinstance(policy.config, dict):
        return AutoConfig.for_model(**policy.config)
    source = str(policy.where or policy.config)
    try:
        if policy.path is not None:
            return read_architecture(policy)
        with hub.loading(source):
            return AutoConfig.from_pretrained(source, trust_remote_code=policy.trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(
            "model.policy.path",
            f"no config could be read from {source!r}: {str(error).splitlines()[0]}",
            "give a directory with config.json (weights are not needed here), or a hub id that can be reached",
        ) from error


def as_random(policy: PolicyConfig) -> PolicyConfig:
    """The same policy with random weights: its architecture, dtype and adapters, and no file of weights."""
    return _random(policy, _architecture(policy))


def _random(policy: PolicyConfig, config: Any, layers: int | None = None, compute: Any = None) -> PolicyConfig:
    values = config.to_dict()
    if layers is not None:
        values["num_hidden_layers"] = layers
        if values.get("layer_types"):
            values["layer_types"] = values["layer_types"][:layers]
    dtype = compute or (config.dtype if policy.dtype == "auto" else getattr(torch, policy.dtype))
    lora = policy.lora and replace(policy.lora, adapter=None, quantize=None)
    name: Any = str(dtype or torch.float32).removeprefix("torch.")
    return replace(policy, path=None, gguf_file=None, config=values, dtype=name, lora=lora)


def _model(
    policy: PolicyConfig,
    config: Any,
    layers: int | None = None,
    compute: torch.dtype | None = None,
    *,
    checkpointing: bool | Literal["selective"] = False,
) -> Any:
    """The architecture on the meta device, with `layers` blocks if given."""
    from adadpo_lightning.models.loading import load_model
    from adadpo_lightning.models.meta import parameters_on_meta

    random = replace(_random(policy, config, layers, compute), gradient_checkpointing=checkpointing)
    with parameters_on_meta():
        return load_model(random)
