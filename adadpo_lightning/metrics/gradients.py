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

    A prompt's last state predicts the first token of both answers, so its gradient is the sum of both parts and belongs
    to neither side. With this convention the three numbers are the same in both layouts.

    Args:
        batch: The micro-batch.
        gradient: Gradient at the hidden state that predicts each scored token, in the batch's flat order, (N, D).

    Returns:
        ``[chosen, rejected, prompt]``, float32 or wider, shape (3,). They are additive over micro-batches and ranks.
    """
    wide = torch.promote_types(gradient.dtype, torch.float32)
    squares = torch.linalg.vector_norm(gradient, dim=1, dtype=wide).square()
    border = batch.scored_chosen
    first = batch.chosen_len.cumsum(0) - batch.chosen_len
    at_prompt = gradient.index_select(0, first).to(wide)
    if len(gradient) > border:
        first_rejected = border + batch.rejected_len.cumsum(0) - batch.rejected_len
        at_prompt = at_prompt + gradient.index_select(0, first_rejected).to(wide)
        first = torch.cat([first, first_rejected])
    squares = squares.index_fill(0, first, 0.0)
    return torch.stack([squares[:border].sum(), squares[border:].sum(), at_prompt.square().sum()])
