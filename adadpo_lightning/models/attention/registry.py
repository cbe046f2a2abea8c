"""Attention of the packed layout: ``[prompt | chosen | rejected]`` per pair in one row, each prompt computed once.

A prompt attends to itself, and an answer to its prompt and itself. Nothing attends to another pair or the other answer.
This is registered as an attention implementation of transformers, so that no architecture is patched; the layout is
passed as a keyword argument of the model. All backends compute the same result:

- ``segments``: scaled-dot-product attention per run; any device and dtype, windows and soft-capping;
- ``tree``: the CPU flash kernel on blocks of queries, one autograd node for the full row;
- ``varlen``: one variable-length flash call on CUDA, in half precision;
- ``flex``: compiled block-sparse attention on CUDA, also for soft-capped logits, which flash does not support.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

from adadpo_lightning.errors import UserError
from adadpo_lightning.models.attention.cpu import tree
from adadpo_lightning.models.attention.cuda import flex, varlen
from adadpo_lightning.models.attention.layout import AttentionRule, PackedLayout

if TYPE_CHECKING:
    from torch import Tensor, nn

IMPLEMENTATION = "adadpo_packed"
# Architectures whose packed forward pass is tested against transformers. Others may need unsupported kinds of attention
# (ALiBi, recurrence, attention sinks, chunks) and run in the padded layout.
# fmt: off
SERVED = frozenset({
    "cohere", "cohere2", "exaone4", "gemma", "gemma2", "gemma3_text", "glm4", "gpt2", "gpt_neox", "granite",
    "helium", "llama", "ministral", "mistral", "mixtral", "olmo2", "olmo3", "opt", "phi", "phi3", "qwen2", "qwen3",
    "qwen3_moe", "seed_oss", "smollm3", "starcoder2",
})
# fmt: on
HALVES = (torch.float16, torch.bfloat16)


def register(*, opaque: bool = False) -> None:
    """Register the implementation in transformers, without a mask function: no [T, T] mask is built.

    Args:
        opaque: Exclude it from compilation, permanently: the loops over pairs would be recompiled for each row.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if opaque:
        hidden: Any = torch.compiler.disable(packed_attention)  # type: ignore[no-untyped-call]  # untyped in torch
        ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, hidden)
    elif IMPLEMENTATION not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, packed_attention)


def unserved_reason(model: Any) -> str | None:
    """Why a model cannot run in the packed layout; None if it can."""
    kind = getattr(model.config, "model_type", type(model).__name__)
    if kind not in SERVED:
        return f"the packed layout is not tested for {kind!r} (tested: {', '.join(sorted(SERVED))})"
    if getattr(model.config, "use_bidirectional_attention", None):
        return "the model uses bidirectional attention (use_bidirectional_attention)"
    return None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed: PackedLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function with the signature that transformers expects.

    Args:
        module: The calling layer.
        query: (1, heads, T, d).
        key: (1, key heads, T, d).
        value: As `key`.
        attention_mask: Must be None: the layout determines visibility.
        scaling: Factor on the logits; None for ``d ** -0.5``.
        sliding_window: Number of positions visible to a query, including its own; None for all up to its own.
        softcap: Bound on the logits; None for no bound.
        packed: Layout of the batch.
        **kwargs: Arguments of other implementations, ignored; dropout is 0 (`disable_dropout`).

    Returns:
        The output, (1, T, heads, d), and None for the attention weights.
    """
    if packed is None or attention_mask is not None:
        raise RuntimeError("packed attention needs a layout and no mask: call the model through PolicyModel")
    device = query.device.type
    if torch.is_autocast_enabled(device) and query.dtype == torch.float32:
        # Rotary embeddings upcast to float32, and autocast does not cover custom kernels.
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    if sliding_window is not None and sliding_window >= packed.longest:
        sliding_window = None  # no effect in this row
    rule = AttentionRule(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    backend = choose_backend(packed.backend, device, query.dtype, capped=softcap is not None)
    return BACKENDS[backend](query, key, value, packed, rule).transpose(1, 2).contiguous(), None


def choose_backend(asked: str, device: str, dtype: torch.dtype, *, capped: bool) -> str:
    """Choose the backend.

    Args:
        asked: Name of a backend, or ``auto`` for the fastest supported one.
        device: Device type of the row: ``cpu``, ``cuda``, ...
        dtype: Data type of the row.
        capped: Whether the layer soft-caps its logits.

    Raises:
        UserError: If the requested backend is not supported.

    Example:
        >>> choose_backend("auto", "cuda", torch.bfloat16, capped=False)
        'varlen'
    """
    serves = {
        "tree": device == "cpu" and not capped,
        "varlen": device == "cuda" and dtype in HALVES and not capped,
        "flex": device == "cuda",
        "segments": True,
    }
    if asked == "auto":
        # Compiling flex attention pays off if flash is not supported, but not in float32.
        fast = ("tree", "varlen", "flex") if dtype in HALVES else ("tree",)
        return next((name for name in fast if serves[name]), "segments")
    if not serves[asked]:
        row = f"{dtype} on {device}" + (" with soft-capped logits" if capped else "")
        raise UserError("model.policy.packed_attention", f"{asked} does not support {row}", "set it to auto")
    return asked


def segments(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, rule: AttentionRule) -> Tensor:
    """Attention of a packed row, with one scaled-dot-product call per run of queries.

    Args:
        query: (1, heads, T, d).
        key: (1, key heads, T, d).
        value: As `key`.
        layout: Layout of the row.
        rule: Scale, window and soft-capping.

    Returns:
        The output, (1, heads, T, d).
    """
    outputs = [
        _attend(query[:, :, run.queries], run.gather(key), run.gather(value), layout, rule) for run in layout.runs
    ]
    return torch.cat(outputs, dim=2)


def _attend(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, rule: AttentionRule) -> Tensor:
    """Causal attention with the queries aligned to the last keys."""
    queries, keys = query.shape[2], key.shape[2]
    window = None if rule.window is None or rule.window >= keys else rule.window
    options: dict[str, Any] = {"scale": rule.scale, "enable_gqa": query.shape[1] != key.shape[1]}
    if rule.softcap is None and window is None:
        if queries == keys:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, **options)
        if query.is_cuda:  # CUDA kernels support this bias without a materialized mask
            bias: Any = causal_lower_right(queries, keys)
            return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, **options)
    visible = layout.once((queries, keys, window), lambda: _visible(queries, keys, window, query.device))
    if rule.softcap is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, **options)
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    logits = rule.softcap * torch.tanh(query @ key.transpose(2, 3) * (rule.scale / rule.softcap))
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits.masked_fill(~visible, -torch.inf).softmax(-1, dtype=wide).to(value.dtype) @ value


def _visible(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    behind = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return behind >= 0 if window is None else (behind >= 0) & (behind < window)


Backend = Callable[["Tensor", "Tensor", "Tensor", PackedLayout, AttentionRule], "Tensor"]
BACKENDS: dict[str, Backend] = {"segments": segments, "tree": tree, "varlen": varlen, "flex": flex}
