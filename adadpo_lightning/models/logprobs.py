"""Log-probabilities of given tokens without materializing all logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from torch import Tensor


# Rows of a chunk for which `TokenStatistics` has intermediate results at a time.
_ROWS = 64


@dataclass(frozen=True)
class TokenStatistics:
    """Numbers of the whole distribution that each scored token was drawn from, in no graph; None if not requested.

    Args:
        entropies: Entropy, nats, shape (N,).
        log_collisions: ``log sum_v p_v^2`` over the vocabulary, the logarithm of the probability that two draws are
            equal, shape (N,).
    """

    entropies: Tensor | None = None
    log_collisions: Tensor | None = None

    @classmethod
    def empty(cls, like: Tensor, *, entropies: bool, log_collisions: bool) -> TokenStatistics | None:
        """Buffers for the statistics of the tokens that the hidden states `like` predict; None if none is wanted."""
        if not (entropies or log_collisions):
            return None
        made = [
            like.new_empty(len(like), dtype=_wide(like.dtype)) if on else None for on in (entropies, log_collisions)
        ]
        return cls(*made)

    def write(self, part: slice, softmax: Tensor) -> None:
        """Write those of some tokens, from the probabilities of all tokens of the vocabulary, (tokens, V)."""
        for start in range(0, len(softmax), _ROWS):
            p = softmax[start : start + _ROWS]
            rows = slice(part.start + start, part.start + start + len(p))
            if self.entropies is not None:
                self.entropies[rows] = torch.special.entr(p).sum(-1)
            if self.log_collisions is not None:
                self.log_collisions[rows] = p.square().sum(-1).log_()


class VocabularyShard(NamedTuple):
    """Which rows of the head this rank has, where a tensor-parallel group splits it by vocabulary.

    Each rank normalizes over its own tokens. With the logarithm of each rank's normalizer, the results of all ranks are
    merged exactly, in one collective over a few numbers per target: logits are never gathered.

    Args:
        start: Token id of this rank's first row.
        group: The tensor-parallel group, whose ranks have the same hidden states and targets.
    """

    start: int
    group: Any

    def columns(self, targets: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Column of each target in this rank's logits, and whether it is this rank's; others get any column."""
        columns = targets - self.start
        return columns.clamp(0, rows - 1), (columns >= 0) & (columns < rows)

    def merge(
        self, logits: Tensor, norms: Tensor, owned: Tensor, statistics: TokenStatistics | None
    ) -> tuple[Tensor, Tensor]:
        """Merge what the ranks have found, the same on all of them.

        Args:
            logits: Logit at each target's column, (N,).
            norms: Logarithm of the sum of the exponentials of this rank's logits, (N,).
            owned: Whether the target is this rank's, (N,).
            statistics: Those of this rank's distribution; replaced by those of the whole one.

        Returns:
            Log-probabilities of the targets, and the share of this rank's tokens in the probability, each (N,).
        """
        found = statistics or TokenStatistics()
        entropies, collisions = found.entropies, found.log_collisions
        mine = [norms, logits.where(owned, 0.0), *(x for x in (entropies, collisions) if x is not None)]
        norm, logit, *rest = self._gathered(torch.stack(mine)).unbind(1)
        whole = norm.logsumexp(0)
        log_shares = norm - whole
        if entropies is not None:
            entropies.copy_((log_shares.exp() * (rest.pop(0) - log_shares)).sum(0))
        if collisions is not None:
            collisions.copy_((2.0 * log_shares + rest.pop(0)).logsumexp(0))
        return logit.sum(0) - whole, (norms - whole).exp()

    def _gathered(self, mine: Tensor) -> Tensor:
        """The tensors of all ranks of the group, stacked."""
        import torch.distributed as dist

        parts = mine.new_empty(dist.get_world_size(self.group), *mine.shape)
        dist.all_gather(list(parts), mine, group=self.group)
        return parts

    def sum_(self, gradient: Tensor) -> Tensor:
        """Add up the gradients of all ranks of the group, in place."""
        import torch.distributed as dist

        dist.all_reduce(gradient, group=self.group)
        return gradient


class LogitTransform(NamedTuple):
    """Transform that an architecture applies to its logits: ``softcap * tanh(scale * logits / softcap)``.

    Args:
        scale: Factor on the logits (Cohere's ``logit_scale``, the inverse of Granite's ``logits_scaling``).
        softcap: Bound on the logits (Gemma 2's ``final_logit_softcapping``); None for no bound.
    """

    scale: float = 1.0
    softcap: float | None = None

    def apply_(self, logits: Tensor) -> Tensor:
        """Transform the logits in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def slope(self, transformed: Tensor) -> Tensor | None:
        """Derivative of the soft-capping, given its outputs, as a new tensor; None without soft-capping."""
        return None if self.softcap is None else 1.0 - (transformed / self.softcap).square_()


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    chunk_size: int = 1024,
    transform: LogitTransform | None = None,
    statistics: TokenStatistics | None = None,
    shard: VocabularyShard | None = None,
) -> Tensor:
    """Log-probability of each target under ``softmax(transform(hidden @ weight.T + bias))``.

    Logits exist for `chunk_size` tokens at a time, in both the forward and the backward pass. The backward pass
    recomputes them, because the gradient of the head's weight requires the gradient of the loss for each token; only
    the last chunk is kept. The softmax and the sum of the weight gradient over chunks use float32 or wider.

    With a frozen head (LoRA), only the hidden states need a gradient, and a token's loss only scales its row of it. The
    forward pass then forms the unscaled rows, shape (N, D), from logits that it has anyway: the backward pass needs no
    logits, and the head costs two matrix products per chunk instead of three.

    The weight must be a plain tensor. Under FSDP, call this inside the forward of the module that gathers it, and do
    not call the head as a module. With tensor parallelism, weight and bias are this rank's rows, as `shard` says; all
    ranks of the group call this and get the same result, and the gradient at the hidden states is that of all rows.

    Args:
        hidden: Hidden states that predict the targets, shape (N, D).
        weight: The head's weight, shape (V, D).
        targets: Token ids, int64, shape (N,).
        bias: The head's bias, shape (V,).
        chunk_size: Number of tokens per chunk.
        transform: Transform that the architecture applies to its logits.
        statistics: Statistics of each softmax to write, of the result's dtype.
        shard: Which rows `weight` and `bias` are; None for all.

    Returns:
        Log-probabilities in nats, shape (N,), float32 or, for float64 input, float64.

    Example:
        >>> hidden, weight = torch.eye(2), torch.zeros(4, 2)
        >>> token_logps(hidden, weight, torch.tensor([0, 3])).exp()
        tensor([0.2500, 0.2500])
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    result: Tensor = _ChunkedLogps.apply(  # type: ignore[no-untyped-call]  # untyped in torch
        hidden, weight, bias, targets, chunk_size, transform or LogitTransform(), statistics, shard
    )
    return result


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product in float32 or wider. CUDA has a kernel for it with half-precision inputs."""
    if a.dtype == _wide(a.dtype):
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else (a @ b).float()


class _Chunks:
    """Computes the logits chunk by chunk; in float32 and wider, all chunks share one buffer."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, chunk_size: int, transform: LogitTransform
    ) -> None:
        self.hidden, self.weight, self.bias, self.transform = hidden, weight, bias, transform
        starts = range(0, len(hidden), chunk_size)
        self.parts = [slice(start, min(start + chunk_size, len(hidden))) for start in starts]
        self.buffer: Tensor | None = None

    def logits(self, part: slice) -> Tensor:
        """Transformed logits in float32 or wider; valid until the next call."""
        hidden, weight = self.hidden[part], self.weight.T
        if hidden.dtype != _wide(hidden.dtype):
            logits = _wide_product(hidden, weight)
        else:
            if self.buffer is None:
                self.buffer = hidden.new_empty(self.parts[0].stop, weight.shape[1])
            logits = torch.mm(hidden, weight, out=self.buffer[: len(hidden)])
        if self.bias is not None:
            logits += self.bias
        return self.transform.apply_(logits)


class _ChunkedLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk_size: int,
        transform: LogitTransform,
        statistics: TokenStatistics | None,
        shard: VocabularyShard | None,
    ) -> Tensor:
        chunks = _Chunks(hidden, weight, bias, chunk_size, transform)
        logps = hidden.new_empty(len(hidden), dtype=_wide(hidden.dtype))
        # Not for a shard: the rows need its share of the probability, which only the other ranks determine.
        frozen = ctx.needs_input_grad[:3] == (True, False, False) and shard is None
        owned: Any = None
        share: Tensor | None = None
        if shard is not None:
            targets, owned = shard.columns(targets, len(weight))
        at_targets = torch.empty_like(logps) if shard is not None else None
        rows = torch.empty_like(hidden) if frozen else None
        logits = slope = None
        # The backward pass starts with the last chunk, whose softmax it finds in the buffer.
        kept = chunks.parts[-1:] if any(ctx.needs_input_grad[:3]) and transform.softcap is None else []
        for part in chunks.parts:
            logits = chunks.logits(part)
            if rows is not None:
                slope = transform.slope(logits)
            if at_targets is not None:
                at_targets[part] = logits.gather(1, targets[part, None]).squeeze(1)
            normalized = part in kept or rows is not None or statistics is not None
            logps[part] = _softmax_(logits, targets[part], normalized=normalized)
            if statistics is not None:
                statistics.write(part, logits)
            if rows is not None:
                errors = _errors(logits, slope, targets[part, None])
                torch.mm(errors.to(hidden.dtype), weight, out=rows[part])
        if shard is not None and at_targets is not None:
            logps, share = shard.merge(at_targets, at_targets - logps, owned, statistics)
        ctx.chunk_size, ctx.transform, ctx.frozen, ctx.shard = chunk_size, transform, frozen, shard
        if rows is not None:
            ctx.save_for_backward(rows)
            return logps
        ctx.save_for_backward(hidden, weight, bias, targets, owned, share)
        ctx.last = logits if kept else None
        ctx.buffer = chunks.buffer
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.frozen:
            (rows,) = ctx.saved_tensors
            factor = grad[:, None] * -ctx.transform.scale
            return (torch.mul(rows, factor, out=torch.empty_like(rows)), *[None] * 7)
        hidden, weight, bias, targets, owned, share = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        wide = _wide(hidden.dtype)
        chunks = _Chunks(hidden, weight, bias, ctx.chunk_size, ctx.transform)
        chunks.buffer, ctx.buffer = ctx.buffer, None
        # d logp / d logits is onehot - softmax. Its negative overwrites the logits; the sign and the gradient of each
        # token are multiplied into the smaller factor of the products.
        factor = grad.to(wide)[:, None] * -ctx.transform.scale
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = weight.new_zeros(weight.shape, dtype=wide) if needs_weight else None
        grad_bias = bias.new_zeros(bias.shape, dtype=wide) if needs_bias else None
        for part in reversed(chunks.parts):
            errors = _recomputed_errors(ctx, chunks, part, targets, owned, share)
            if grad_bias is not None:
                grad_bias.addmv_(errors.T, factor[part, 0])
            errors = errors.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mul(errors @ weight, factor[part], out=grad_hidden[part])
            if grad_weight is not None:
                scaled = (hidden[part] * factor[part]).to(hidden.dtype)
                if wide == hidden.dtype:
                    grad_weight.addmm_(errors.T, scaled)
                else:
                    grad_weight += _wide_product(errors.T, scaled)
        if grad_hidden is not None and ctx.shard is not None:
            ctx.shard.sum_(grad_hidden)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *[None] * 5,
        )


def _softmax_(logits: Tensor, targets: Tensor, *, normalized: bool) -> Tensor:
    """Log-probabilities of the targets, (n,), and the softmax in place of the logits.

    Not by torch's CPU kernels of softmax, which add up a vocabulary in sequence: in float32 all probabilities are then
    wrong by the same factor, 4e-6 for 128k tokens. Torch's sum adds in a tree, in the same time.

    Args:
        logits: Of all tokens of the vocabulary, (n, V).
        targets: Column of each target, (n,).
        normalized: Whether the softmax is needed; otherwise the logits are overwritten by anything.
    """
    if logits.device.type != "cpu":
        logps = torch.log_softmax(logits, -1, out=logits).gather(1, targets[:, None]).squeeze(1)
        if normalized:
            logits.exp_()
        return logps
    at_targets = logits.sub_(logits.amax(-1, keepdim=True)).gather(1, targets[:, None])
    total = logits.exp_().sum(-1, keepdim=True)
    if normalized:
        logits.div_(total)
    return (at_targets - total.log()).squeeze(1)


def _recomputed_errors(
    ctx: Any, chunks: _Chunks, part: slice, targets: Tensor, owned: Tensor | None, share: Tensor | None
) -> Tensor:
    last, ctx.last = ctx.last, None
    slope = None
    softmax = last
    if softmax is None:
        softmax = chunks.logits(part)
        slope = ctx.transform.slope(softmax)
        _softmax_(softmax, targets[part], normalized=True)
    if share is not None and owned is not None:
        softmax.mul_(share[part, None])
        owned = owned[part, None]
    return _errors(softmax, slope, targets[part, None], owned)


def _errors(softmax: Tensor, slope: Tensor | None, targets: Tensor, owned: Tensor | None = None) -> Tensor:
    """Softmax minus one-hot, times the slope of the soft-capping; overwrites its input.

    Args:
        softmax: Probabilities of the tokens, (n, V).
        slope: Of the soft-capping, (n, V).
        targets: Column of each target, (n, 1).
        owned: Whether the target is among the columns, (n, 1); None if all are.
    """
    ones = torch.ones_like(targets) if owned is None else owned
    softmax.scatter_add_(1, targets, ones.to(softmax.dtype).neg_())
    return softmax if slope is None else softmax.mul_(slope)
