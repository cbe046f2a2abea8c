"""Gradient norms: over all parameters, and per side of the pairs at the last hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from adadpo_lightning.compat import norms_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor, nn

    from adadpo_lightning.types import PreferenceBatch


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The 2-norm of the full gradient, over all ranks if parameters are sharded; every rank must call this.

    Not supported for strategies that hide gradients; see `strategies.capabilities.hides_gradients`.

    Args:
        parameters: Parameters; those without a gradient are ignored.

    Returns:
        A scalar on the gradients' device, the same on all ranks; 0 if no parameter has a gradient.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> gradient_norm([weight])
        tensor(5.)
    """
    return total_norm(parameter_gradient_norms(parameters))


def parameter_gradient_norms(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Gradient norm of each parameter that has a gradient; DTensors for sharded parameters, see `full`."""
    return norms_of([p.grad for p in parameters if p.grad is not None])


def total_norm(norms: Sequence[Tensor]) -> Tensor:
    """The norm of a gradient from the norms of its parts, gathered on every rank."""
    return full(torch.linalg.vector_norm(torch.stack(list(norms)))) if norms else torch.tensor(0.0)


def full(value: Tensor) -> Tensor:
    """Gather a sharded tensor on every rank; other tensors are returned unchanged."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def gradient_squares(batch: PreferenceBatch, gradient: Tensor) -> Tensor:
    """Squared norms of the gradient at the last hidden states of chosen answers, rejected answers and prompts.

    A prompt's last state predicts the first token of all its answers, so its gradient is the sum of their parts and
    belongs to neither side. With this convention the three numbers are the same in both layouts. An answer that is
    chosen in one pair and rejected in another, as in ranked lists, belongs to neither side, too.

    Args:
        batch: The micro-batch.
        gradient: Gradient at the hidden state that predicts each scored token, in the batch's flat order, (N, D).

    Returns:
        ``[chosen, rejected, prompt]``, float32 or wider, shape (3,). They are additive over micro-batches and ranks.
    """
    wide = torch.promote_types(gradient.dtype, torch.float32)
    squares = torch.linalg.vector_norm(gradient, dim=1, dtype=wide).square()
    first = batch.answer_len.cumsum(0) - batch.answer_len
    # An empty answer, which only batches without rejected answers have, comes last: it would start after the end.
    at_first = gradient.index_select(0, first.clamp(max=len(gradient) - 1)).to(wide) * (batch.answer_len > 0)[:, None]
    at_prompt = at_first.new_zeros(len(batch.segments), gradient.shape[1]).index_add(0, batch.answer_group, at_first)
    later = squares.new_ones(len(gradient) + 1).index_fill(0, first, 0.0)[:-1]
    chosen, rejected = (squares.new_zeros(len(first)).index_fill(0, side, 1.0) for side in batch.answers.chunk(2))
    sides = torch.stack([chosen * (1 - rejected), rejected * (1 - chosen)])
    # The size of the output is given, because it would be computed on the device and waited for.
    sides = sides.repeat_interleave(batch.answer_len, dim=1, output_size=len(gradient))
    return torch.cat([sides @ (squares * later), at_prompt.square().sum()[None]])
