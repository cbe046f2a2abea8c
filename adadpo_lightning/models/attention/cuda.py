"""The CUDA backends: ``varlen`` (one variable-length flash call) and ``flex`` (compiled, block-sparse)."""

from __future__ import annotations

from functools import cache
from inspect import signature
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn.attention.flex_attention import BlockMask

    from adadpo_lightning.models.attention.layout import AttentionRule, PackedLayout

# Block size of flex attention; this is the default of its kernels.
BLOCK = 128


def varlen(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, rule: AttentionRule) -> Tensor:
    """Attention of a packed row in one flash call with different numbers of queries and keys.

    Args:
        query: (1, heads, T, d), float16 or bfloat16.
        key: (1, key heads, T, d).
        value: As `key`.
        layout: Layout of the row.
        rule: Scale and window; this kernel does not support soft-capping.

    Returns:
        The output, (1, heads, T, d).
    """
    from torch.nn.attention.varlen import varlen_attn

    index = layout.once("varlen", lambda: _varlen_index(layout))
    # Flash expects (tokens, heads, d). The keys of a further answer are those of its prompt and its own.
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    k, v = k.index_select(0, index.keys), v.index_select(0, index.keys)
    out = varlen_attn(
        q.contiguous(),
        k,
        v,
        index.cu_queries,
        index.cu_keys,
        index.most_queries,
        index.most_keys,
        scale=rule.scale,
        # A right bound of 0 is causal. Flash aligns fewer queries than keys to the end, where the answers are.
        window_size=(-1 if rule.window is None else rule.window - 1, 0),
        **_grouped_option(),
    )
    return out.transpose(0, 1)[None]  # type: ignore[union-attr]  # a tuple only if auxiliary outputs are requested


@cache
def _grouped_option() -> dict[str, Any]:
    """Option that lets query heads share a key head; older torch versions do this without an option."""
    from torch.nn.attention.varlen import varlen_attn

    return {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}


class _VarlenIndex(NamedTuple):
    keys: Tensor
    cu_queries: Tensor
    cu_keys: Tensor
    most_queries: int
    most_keys: int


def _varlen_index(layout: PackedLayout) -> _VarlenIndex:
    queries, keys = zip(*(run.lengths for run in layout.runs), strict=True)
    gather = [i for run in layout.runs for part in run.keys for i in range(part.start, part.stop)]
    return _VarlenIndex(
        layout.to_device(torch.tensor(gather)),
        layout.to_device(torch.tensor([0, *accumulate(queries)], dtype=torch.int32)),
        layout.to_device(torch.tensor([0, *accumulate(keys)], dtype=torch.int32)),
        max(queries),
        max(keys),
    )


def flex(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, rule: AttentionRule) -> Tensor:
    """Attention of a packed row with compiled, block-sparse attention; supports windows and soft-capping.

    Args:
        query: (1, heads, T, d).
        key: (1, key heads, T, d).
        value: As `key`.
        layout: Layout of the row.
        rule: Scale, window and soft-capping.

    Returns:
        The output, (1, heads, T, d).
    """
    softcap = rule.softcap

    def cap(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap) if softcap is not None else score

    output: Tensor = _flex_attention(query.device.type)(
        query,
        key,
        value,
        score_mod=None if softcap is None else cap,
        block_mask=layout.once(("flex", rule.window), lambda: block_mask(layout, rule.window)),
        scale=rule.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output


@cache
def _flex_attention(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention


def block_mask(layout: PackedLayout, window: int | None) -> BlockMask:
    """The visibility of tokens, computed per block without evaluating every pair of tokens."""
    from torch.nn.attention.flex_attention import BlockMask

    group, side, position = _token_labels(layout)

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        # Side 0 is the prompt, visible to all answers. Keys precede their queries in the row.
        seen = (group[q] == group[k]) & ((side[k] == 0) | (side[k] == side[q])) & (k <= q)
        return seen if window is None else seen & (position[q] - position[k] < window)

    some, whole = seen_blocks(layout, window)
    length = layout.length
    return BlockMask.from_kv_blocks(
        *_ordered(some & ~whole, layout), *_ordered(whole, layout), BLOCK, visible, seq_lengths=(length, length)
    )


def seen_blocks(layout: PackedLayout, window: int | None) -> tuple[Tensor, Tensor]:
    """For blocks of queries (rows) and keys (columns): whether any key is visible, and whether all are."""
    length = layout.length
    count = -(-length // BLOCK)
    some = torch.zeros(count, count, dtype=torch.bool)
    whole = torch.zeros(count, count, dtype=torch.bool)
    starts = torch.arange(count) * BLOCK
    ends = (starts + BLOCK).clamp_max(length)
    for run in layout.runs:
        # The offset in the row exceeds the distance of positions by the tokens between the prompt and a further answer.
        shift = run.queries.stop - run.keys[0].start - run.lengths[1]
        q_first, q_last = starts.clamp_min(run.queries.start), ends.clamp_max(run.queries.stop) - 1
        q_any, q_all = q_first <= q_last, (starts >= run.queries.start) & (ends <= run.queries.stop)
        for part in run.keys:
            own = part.stop == run.queries.stop
            between = 0 if own else shift
            k_first, k_last = starts.clamp_min(part.start), ends.clamp_max(part.stop) - 1
            k_any, k_all = k_first <= k_last, (starts >= part.start) & (ends <= part.stop)
            nearest, farthest = q_first[:, None] - k_last - between, q_last[:, None] - k_first - between
            seen, seen_all = q_last[:, None] >= k_first, q_first[:, None] >= k_last
            if window is not None:
                seen, seen_all = seen & (nearest < window), seen_all & (farthest < window)
            some |= q_any[:, None] & k_any & seen
            whole |= q_all[:, None] & k_all & seen_all
    return some, whole


def _ordered(blocks: Tensor, layout: PackedLayout) -> tuple[Tensor, Tensor]:
    """Number of blocks in each row and their columns, in the form that flex attention expects."""
    counts = blocks.sum(1, dtype=torch.int32)[None, None]
    columns = blocks.to(torch.int8).argsort(dim=1, descending=True, stable=True).to(torch.int32)[None, None]
    return layout.to_device(counts), layout.to_device(columns)


def _token_labels(layout: PackedLayout) -> tuple[Tensor, Tensor, Tensor]:
    """(group, side, position) of every token of the row, each (T,); side 0 is the prompt, side k the k-th answer."""
    group: list[int] = []
    side: list[int] = []
    position: list[int] = []
    for number, (prompt, *answers) in enumerate(layout.segments):
        group += [number] * (prompt + sum(answers))
        side += [0] * prompt
        position += range(prompt)
        for k, answer in enumerate(answers, 1):
            side += [k] * answer
            position += range(prompt, prompt + answer)
    labels = [layout.to_device(torch.tensor(values, dtype=torch.int32)) for values in (group, side, position)]
    return labels[0], labels[1], labels[2]
