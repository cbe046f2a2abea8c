"""Log-probabilities of given tokens without ever holding the logits of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor


class LogitTransform(NamedTuple):
    """What an architecture does to its logits: ``softcap * tanh(scale * logits / softcap)``.

    Args:
        scale: Factor on the logits (Cohere's ``logit_scale``, the inverse of Granite's ``logits_scaling``).
        softcap: Bound of the logits (Gemma 2's ``final_logit_softcapping``); None for no bound.
    """

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Transform in place; `logits` is the caller's own buffer."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def grad_(self, grad: Tensor, transformed: Tensor) -> Tensor:
        """Chain rule in place: from the gradient of the transformed logits to that of the raw ones."""
        if self.softcap is not None:
            grad.mul_(1.0 - (transformed / self.softcap).square_())
        if self.scale != 1.0:
            grad.mul_(self.scale)
        return grad


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    chunk_size: int = 1024,
    transform: LogitTransform | None = None,
) -> Tensor:
    """Log-probability of each target under ``softmax(transform(hidden @ weight.T + bias))``.

    Logits exist for `chunk_size` tokens at a time, in the forward and in the backward pass, where they are computed
    again: the loss is no linear function of these numbers, so the backward pass must have come before the gradient of
    the head's weight can be formed.

    Args:
        hidden: Hidden states that predict the targets, shape (N, D).
        weight: The head's weight, shape (V, D).
        targets: Token ids, int64, shape (N,).
        bias: The head's bias, shape (V,).
        chunk_size: Tokens a chunk.
        transform: What the architecture does to its logits.

    Returns:
        Log-probabilities in nats, shape (N,), float32 or, for float64 input, float64.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    result: Tensor = _ChunkedLogps.apply(  # type: ignore[no-untyped-call]  # torch types Function.apply as untyped
        hidden, weight, bias, targets, chunk_size, transform or LogitTransform()
    )
    return result


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _chunk_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform) -> Tensor:
    return transform(F.linear(hidden, weight, bias).to(_wide(hidden.dtype)))


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
    ) -> Tensor:
        wide = _wide(hidden.dtype)
        logps = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        lse = torch.empty_like(logps)
        for start in range(0, len(hidden), chunk_size):
            part = slice(start, start + chunk_size)
            logits = _chunk_logits(hidden[part], weight, bias, transform)
            torch.logsumexp(logits, dim=-1, out=lse[part])
            logps[part] = logits.gather(1, targets[part, None]).squeeze(1) - lse[part]
        ctx.save_for_backward(hidden, weight, bias, targets, lse)
        ctx.chunk_size, ctx.transform = chunk_size, transform
        return logps

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        hidden, weight, bias, targets, lse = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        wide = _wide(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # Sums over chunks are kept wide: a bfloat16 accumulator loses small gradients.
        grad_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if needs_weight else None
        grad_bias = torch.zeros(bias.shape, dtype=wide, device=bias.device) if needs_bias else None
        for start in range(0, len(hidden), ctx.chunk_size):
            part = slice(start, start + ctx.chunk_size)
            logits = _chunk_logits(hidden[part], weight, bias, ctx.transform)
            # d logp / d logits = onehot - softmax, in the buffer of the probabilities.
            d_logits = (logits - lse[part, None]).exp_()
            d_logits.mul_(-grad[part, None])
            d_logits.scatter_add_(1, targets[part, None], grad[part, None].to(wide))
            d_logits = ctx.transform.grad_(d_logits, logits).to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(d_logits, weight, out=grad_hidden[part])
            if grad_weight is not None:
                if wide == hidden.dtype:
                    grad_weight.addmm_(d_logits.T, hidden[part])
                else:
                    grad_weight += d_logits.T @ hidden[part]
            if grad_bias is not None:
                grad_bias += d_logits.sum(0, dtype=wide)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )
