"""Attention of the packed layout: ``[prompt | chosen | rejected]`` per pair in one row, each prompt computed once.

A prompt sees itself; an answer sees its prompt and itself; nothing sees another pair or the other answer. The functions
here are registered as one attention implementation of transformers, so that no architecture is patched: the layout
travels as a keyword of the model's call. Backends compute the same numbers:

- ``segments``: scaled-dot-product attention per segment, any device;
- ``tree``: the CPU's flash kernel, where a rejected answer's attention to itself and to its prompt are two calls merged
  by their log-sum-exp (prompt keys are neither copied nor masked);
- ``varlen``: one variable-length flash call on CUDA;
- ``flex``: compiled block-sparse attention on CUDA, for what flash can't do (soft-capped logits).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

if TYPE_CHECKING:
    from torch import Tensor, nn

IMPLEMENTATION = "adadpo_packed"
# Architectures whose packed forward the tests hold against the padded one. Others may attend in ways that these
# functions do not know (ALiBi, recurrence, attention sinks, chunks) and run in the padded layout.
SERVED = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt2", "olmo2"},
)


class Spans(NamedTuple):
    """Where one pair lies in the packed row: its first token, and the ends of prompt, chosen and rejected answer."""

    start: int
    prompt: int
    chosen: int
    rejected: int


@dataclass(frozen=True)
class PackedLayout:
    """What the attention functions need to know of a batch.

    Args:
        segments: ``(prompt, chosen, rejected)`` token counts of each pair.
        backend: Which function computes attention.
        device: Where index tensors are wanted.
    """

    segments: tuple[tuple[int, int, int], ...]
    backend: Literal["segments", "tree", "varlen", "flex"]
    device: torch.device

    def spans(self) -> Iterator[Spans]:
        """Where each pair lies."""
        start = 0
        for prompt, chosen, rejected in self.segments:
            yield Spans(start, start + prompt, start + prompt + chosen, start + prompt + chosen + rejected)
            start += prompt + chosen + rejected

    def sequences(self) -> list[tuple[int, int]]:
        """(queries, keys) of each variable-length sequence: prompt with chosen answer, then rejected answer."""
        pairs = []
        for prompt, chosen, rejected in self.segments:
            pairs.append((prompt + chosen, prompt + chosen))
            if rejected:
                pairs.append((rejected, prompt + rejected))
        return pairs


Backend = Callable[["Tensor", "Tensor", "Tensor", PackedLayout, float, "int | None", "float | None"], "Tensor"]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed: PackedLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it.

    Args:
        module: The calling layer.
        query: (1, heads, T, d).
        key: (1, key heads, T, d).
        value: As `key`.
        attention_mask: Always None: the layout says what sees what.
        scaling: Factor on the logits; None for ``d ** -0.5``.
        dropout: Always 0 (`switch_off_dropout`).
        sliding_window: Positions that a query sees, itself included; None for all before it.
        softcap: Bound of the logits; None for no bound.
        packed: The batch's layout.
        **kwargs: What other implementations take.

    Returns:
        The output, (1, T, heads, d), and no weights.
    """
    if packed is None:
        raise RuntimeError("the packed attention was called without a layout; call the model through PolicyModel")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window
    if window is not None and window >= max(max(p + c, p + r) for p, c, r in packed.segments):
        window = None  # it hides nothing in this batch
    output = BACKENDS[packed.backend](query, key, value, packed, scale, window, softcap)
    return output.transpose(1, 2).contiguous(), None


@cache
def register() -> None:
    """Make the implementation known to transformers, once. No mask function: no [T, T] mask is ever built."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, packed_attention)


def unserved_reason(model: Any) -> str | None:
    """Why a model can't run in the packed layout; None if it can."""
    kind = getattr(model.config, "model_type", type(model).__name__)
    if kind not in SERVED:
        return f"the packed forward is not tested for {kind!r} (tested: {', '.join(sorted(SERVED))})"
    return None


def choose_backend(asked: str, device: torch.device, softcap: bool) -> Literal["segments", "tree", "varlen", "flex"]:
    """The backend for a device, where the user leaves it open.

    Args:
        asked: ``auto`` or a backend's name.
        device: Where the batch is.
        softcap: Whether the architecture caps its attention logits.
    """
    if asked in ("segments", "tree", "varlen", "flex"):
        return asked  # type: ignore[return-value]  # the line above says so
    if device.type == "cuda":
        return "flex" if softcap else "varlen"
    return "segments" if softcap or device.type != "cpu" else "tree"


def _segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    outputs = []
    for at in layout.spans():
        own = slice(at.start, at.chosen)
        outputs.append(_attend(query[:, :, own], key[:, :, own], value[:, :, own], scale, window, softcap))
        if at.rejected > at.chosen:
            prompt, rejected = slice(at.start, at.prompt), slice(at.chosen, at.rejected)
            keys = torch.cat([key[:, :, prompt], key[:, :, rejected]], dim=2)
            values = torch.cat([value[:, :, prompt], value[:, :, rejected]], dim=2)
            outputs.append(_attend(query[:, :, rejected], keys, values, scale, window, softcap))
    return torch.cat(outputs, dim=2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Causal attention where the queries are the last of the keys."""
    queries, keys = query.shape[2], key.shape[2]
    grouped = query.shape[1] != key.shape[1]
    if softcap is None and (window is None or window >= keys):
        if queries == keys:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
        bias: Any = causal_lower_right(queries, keys)
        if query.device.type == "cpu":
            bias = bias._materialize(query.device)  # the bias class repeats no grouped heads on the CPU
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale, enable_gqa=grouped)
    mask = _visible(queries, keys, window, query.device)
    if softcap is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped)
    if grouped:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    logits = softcap * torch.tanh(query @ key.transpose(2, 3) * scale / softcap)
    weights = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return weights.masked_fill(~mask, -torch.inf).softmax(-1).to(value.dtype) @ value


def _visible(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    behind = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return (behind >= 0) if window is None else (behind >= 0) & (behind < window)


def _tree(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    if window is not None or softcap is not None or query.device.type != "cpu":
        return _segments(query, key, value, layout, scale, window, softcap)
    output: Tensor = _TreeAttention.apply(query, key, value, tuple(layout.spans()), scale)  # type: ignore[no-untyped-call]
    return output


class _TreeAttention(torch.autograd.Function):
    """Blocks of attention by the CPU's flash kernel, merged by log-sum-exp.

    The backward of a block is the kernel's own, given the MERGED output and log-sum-exp: with these its weights are the
    block's part of the whole softmax (as in Ring Attention, arXiv 2310.01889).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: tuple[Spans, ...], scale: float) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        q, k, v = _by_group(query, groups), key.expand(groups, -1, -1, -1), value.expand(groups, -1, -1, -1)
        out, lse = torch.empty_like(q), torch.empty(q.shape[:3], dtype=_kernel_lse_dtype(q.dtype))
        for at in spans:
            own = slice(at.start, at.chosen)
            out[:, :, own], lse[:, :, own] = _flash(q[:, :, own], k[:, :, own], v[:, :, own], True, scale)
            if at.rejected > at.chosen:
                prompt, mine = slice(at.start, at.prompt), slice(at.chosen, at.rejected)
                self_out, self_lse = _flash(q[:, :, mine], k[:, :, mine], v[:, :, mine], True, scale)
                prompt_out, prompt_lse = _flash(q[:, :, mine], k[:, :, prompt], v[:, :, prompt], False, scale)
                both = torch.logaddexp(self_lse, prompt_lse)
                merged = self_out * (self_lse - both).exp()[..., None].to(q.dtype)
                merged += prompt_out * (prompt_lse - both).exp()[..., None].to(q.dtype)
                out[:, :, mine], lse[:, :, mine] = merged, both
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.spans, ctx.scale = spans, scale
        return _ungrouped(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        groups = query.shape[1] // key.shape[1]
        q, k, v = _by_group(query, groups), key.expand(groups, -1, -1, -1), value.expand(groups, -1, -1, -1)
        grad = _by_group(grads[0], groups)
        d_q = torch.zeros_like(q)
        d_k, d_v = torch.zeros_like(key), torch.zeros_like(value)

        def add(queries: slice, keys: slice, causal: bool) -> None:
            part = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad[:, :, queries],
                q[:, :, queries],
                k[:, :, keys],
                v[:, :, keys],
                out[:, :, queries],
                lse[:, :, queries],
                0.0,
                causal,
                scale=ctx.scale,
            )
            d_q[:, :, queries] += part[0]
            d_k[:, :, keys] += part[1].sum(0, keepdim=True)
            d_v[:, :, keys] += part[2].sum(0, keepdim=True)

        for at in ctx.spans:
            add(slice(at.start, at.chosen), slice(at.start, at.chosen), True)
            if at.rejected > at.chosen:
                mine = slice(at.chosen, at.rejected)
                add(mine, mine, True)
                add(mine, slice(at.start, at.prompt), False)
        return _ungrouped(d_q), d_k, d_v, None, None


def _flash(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
    return out, lse


def _kernel_lse_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(1, key heads * groups, T, d) to (groups, key heads, T, d): a group shares its keys, without copies of them."""
    _, heads, length, width = x.shape
    return x.view(heads // groups, groups, length, width).transpose(0, 1)


def _ungrouped(x: Tensor) -> Tensor:
    groups, key_heads, length, width = x.shape
    return x.transpose(0, 1).reshape(1, groups * key_heads, length, width)


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if softcap is not None:
        return _flex(query, key, value, layout, scale, window, softcap)
    index = _varlen_index(layout)
    # Flash takes (tokens, heads, d); a rejected answer's keys are those of its prompt and its own.
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    k, v = k.index_select(0, index.keys), v.index_select(0, index.keys)
    grouped: dict[str, Any] = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    # A right bound of 0 is causal; with unlike lengths flash aligns to the end, which is where the answer is.
    bounds = (-1 if window is None else window - 1, 0)
    out = varlen_attn(
        q.contiguous(),
        k,
        v,
        index.cu_queries,
        index.cu_keys,
        index.longest_query,
        index.longest_key,
        scale=scale,
        window_size=bounds,
        **grouped,
    )
    assert isinstance(out, torch.Tensor)  # noqa: S101  # a tuple only with return_aux
    return out.transpose(0, 1)[None]


class _VarlenIndex(NamedTuple):
    keys: Tensor
    cu_queries: Tensor
    cu_keys: Tensor
    longest_query: int
    longest_key: int


# One entry a layout; layers ask for it one after the other. Only the newest few are kept.
_indices: dict[int, tuple[PackedLayout, _VarlenIndex]] = {}


def _varlen_index(layout: PackedLayout) -> _VarlenIndex:
    known = _indices.get(id(layout))
    if known is not None and known[0] is layout:
        return known[1]
    keys: list[int] = []
    for at in layout.spans():
        keys += range(at.start, at.chosen)
        if at.rejected > at.chosen:
            keys += [*range(at.start, at.prompt), *range(at.chosen, at.rejected)]
    queries_of, keys_of = zip(*layout.sequences(), strict=True)
    index = _VarlenIndex(
        _to_device(keys, torch.int64, layout.device),
        _to_device([0, *accumulate(queries_of)], torch.int32, layout.device),
        _to_device([0, *accumulate(keys_of)], torch.int32, layout.device),
        max(queries_of),
        max(keys_of),
    )
    while len(_indices) >= 4:
        _indices.pop(next(iter(_indices)))
    _indices[id(layout)] = (layout, index)
    return index


def _to_device(values: list[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    host = torch.tensor(values, dtype=dtype)
    # From pinned memory the copy does not wait for what the device is doing.
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    from torch.nn.attention.flex_attention import create_block_mask

    pair, side, position = _token_labels(layout)

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        same_pair = pair[q] == pair[k]
        # Side 0 is the prompt, which both answers see.
        shared = (side[k] == 0) | (side[k] == side[q])
        behind = position[q] - position[k]
        near = behind >= 0 if window is None else (behind >= 0) & (behind < window)
        return same_pair & shared & near

    def cap(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap) if softcap is not None else score

    length = query.shape[2]
    mask = create_block_mask(visible, None, None, length, length, device=str(layout.device))
    output: Tensor = _compiled_flex()(
        query,
        key,
        value,
        score_mod=cap if softcap is not None else None,
        block_mask=mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output


def _token_labels(layout: PackedLayout) -> tuple[Tensor, Tensor, Tensor]:
    """(pair, side, position) of every token of the row, each (T,)."""
    pair: list[int] = []
    side: list[int] = []
    position: list[int] = []
    for number, (prompt, chosen, rejected) in enumerate(layout.segments):
        pair += [number] * (prompt + chosen + rejected)
        side += [0] * prompt + [1] * chosen + [2] * rejected
        position += [*range(prompt + chosen), *range(prompt, prompt + rejected)]
    labels = [_to_device(values, torch.int64, layout.device) for values in (pair, side, position)]
    return labels[0], labels[1], labels[2]


BACKENDS: dict[str, Backend] = {"segments": _segments, "tree": _tree, "varlen": _varlen, "flex": _flex}
