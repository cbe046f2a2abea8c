"""The ``tree`` backend: all groups of a row in one autograd node, based on the CPU flash kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from adadpo_lightning.compat import cpu_flash_attention, cpu_flash_attention_backward

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.models.attention.layout import AttentionRule, PackedLayout, Run

# Queries per kernel call. The kernel also processes masked keys, so a block gets only the keys up to its last query.
# Sizes between 64 and 192 are equally fast.
BLOCK = 128


def tree(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, rule: AttentionRule) -> Tensor:
    """Attention of a packed row on the CPU.

    Args:
        query: (1, heads, T, d).
        key: (1, key heads, T, d).
        value: As `key`.
        layout: Layout of the row.
        rule: Scale and window; this kernel does not support soft-capping.

    Returns:
        The output, (1, heads, T, d).
    """
    output: Tensor = _Tree.apply(query, key, value, layout, rule)  # type: ignore[no-untyped-call]  # untyped in torch
    return output


class _Tree(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, rule: AttentionRule
    ) -> Tensor:
        _, heads, length, width = query.shape
        # Memory order of the row, so that the caller's transpose does not copy.
        out = query.new_empty(1, length, heads, width).transpose(1, 2)
        wide = torch.promote_types(query.dtype, torch.float32)
        lse = query.new_empty(1, length, heads, dtype=wide).transpose(1, 2)
        band = layout.once(("band", rule.window, query.dtype), lambda: _band(layout.longest, rule.window, query.dtype))
        for run in layout.runs:
            q, o, s = (x[:, :, run.queries] for x in (query, out, lse))
            k, v = run.gather(key), run.gather(value)
            for rows, keys, mask in _blocks(run, layout.longest, rule.window):
                o[:, :, rows], s[:, :, rows] = cpu_flash_attention(
                    q[:, :, rows], k[:, :, keys], v[:, :, keys], band[mask], rule.scale
                )
        ctx.save_for_backward(query, key, value, out, lse, band)
        ctx.layout, ctx.rule = layout, rule
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse, band = ctx.saved_tensors
        layout: PackedLayout = ctx.layout
        rule: AttentionRule = ctx.rule
        d_query = torch.empty_like(query)
        # The gradient of a key is a sum over blocks, which half precision would round repeatedly.
        wide = torch.promote_types(query.dtype, torch.float32)
        d_key, d_value = torch.zeros_like(key, dtype=wide), torch.zeros_like(value, dtype=wide)
        for run in layout.runs:
            g, q, o, s, d_q = (x[:, :, run.queries] for x in (grads[0], query, out, lse, d_query))
            k, v, d_k, d_v = (run.gather(x) for x in (key, value, d_key, d_value))
            for rows, keys, mask in _blocks(run, layout.longest, rule.window):
                parts = cpu_flash_attention_backward(
                    g[:, :, rows],
                    (q[:, :, rows], k[:, :, keys], v[:, :, keys]),
                    o[:, :, rows],
                    s[:, :, rows],
                    band[mask],
                    rule.scale,
                )
                d_q[:, :, rows] = parts[0]
                d_k[:, :, keys] += parts[1]
                d_v[:, :, keys] += parts[2]
            if len(run.keys) > 1:
                # Gathered keys are copies, which already include the prompt's gradient from the answers before.
                _put_back(d_key, d_k, run.keys)
                _put_back(d_value, d_v, run.keys)
        return d_query, d_key.to(key.dtype), d_value.to(value.dtype), None, None


def _put_back(whole: Tensor, gathered: Tensor, parts: tuple[slice, ...]) -> None:
    start = 0
    for part in parts:
        stop = start + part.stop - part.start
        whole[:, :, part] = gathered[:, :, start:stop]
        start = stop


class _Block(NamedTuple):
    rows: slice
    keys: slice
    mask: tuple[slice, slice]


def _blocks(run: Run, longest: int, window: int | None) -> Iterator[_Block]:
    """Blocks of a run's queries, the keys visible to them, and the position of their mask in the band."""
    queries, keys = run.lengths
    for start in range(0, queries, BLOCK):
        stop = min(start + BLOCK, queries)
        before = keys - queries + start  # keys before the block's first query
        last = before + stop - start
        first = 0 if window is None else max(0, before - window + 1)
        shift = longest - before
        yield _Block(
            slice(start, stop), slice(first, last), (slice(0, stop - start), slice(first + shift, last + shift))
        )


def _band(longest: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """The additive mask that contains those of all blocks: row i sees columns up to ``longest + i``.

    A block whose first query is preceded by n keys uses the columns from ``longest - n``, so that the mask of every
    block is a view of this one.
    """
    behind = torch.arange(BLOCK)[:, None] + longest - torch.arange(longest + BLOCK)
    visible = behind >= 0 if window is None else (behind >= 0) & (behind < window)
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)
