"""Norms of the gradient: in all parameters, and on either side of the pairs at the last hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from adadpo_lightning.compat import norms_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor, nn

    from adadpo_lightning.types import PreferenceBatch


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The 2-norm of the whole gradient, over all ranks where parameters are sharded; every rank must call it.

    Not for strategies that hide gradients; see `strategies.capabilities.hides_gradients`.

    Args:
        parameters: Those without a gradient count nothing.

    Returns:
        A scalar on the gradients' device, the same on all ranks; 0 without any gradient.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> gradient_norm([weight])
        tensor(5.)
    """
    return total_norm(parameter_gradient_norms(parameters))


def parameter_gradient_norms(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The norm of each parameter's gradient, left out where there is none; DTensors of sharded ones, see `full`."""
    return norms_of([p.grad for p in parameters if p.grad is not None])


def total_norm(norms: Sequence[Tensor]) -> Tensor:
    """The norm of a gradient from those of its parts, whole on every rank."""
    return full(torch.linalg.vector_norm(torch.stack(list(norms)))) if norms else torch.tensor(0.0)


def full(value: Tensor) -> Tensor:
    """A tensor as it is, or a sharded one gathered on every rank."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def gradient_squares(batch: PreferenceBatch, gradient: Tensor) -> Tensor:
    """Squared norms of the gradient at the last hidden states of chosen answers, rejected answers and prompts.

    A prompt's last state predicts the first token of both answers. Its gradient, the sum of both parts, belongs to
    neither side; taken so, the three numbers are those of the packed row in any layout.

    Args:
        batch: The micro-batch.
        gradient: Gradient at the hidden state that predicts each scored token, in the batch's flat order, (N, D).

    Returns:
        ``[chosen, rejected, prompt]``, float32 or wider, shape (3,). They add up over micro-batches and ranks.
    """
    wide = torch.promote_types(gradient.dtype, torch.float32)
    squares = torch.linalg.vector_norm(gradient, dim=1, dtype=wide).square()
    border = sum(chosen for _, chosen, _ in batch.segments)
    first = batch.chosen_len.cumsum(0) - batch.chosen_len
    at_prompt = gradient.index_select(0, first).to(wide)
    if len(gradient) > border:
        first_rejected = border + batch.rejected_len.cumsum(0) - batch.rejected_len
        at_prompt = at_prompt + gradient.index_select(0, first_rejected).to(wide)
        first = torch.cat([first, first_rejected])
    squares = squares.index_fill(0, first, 0.0)
    return torch.stack([squares[:border].sum(), squares[border:].sum(), at_prompt.square().sum()])
