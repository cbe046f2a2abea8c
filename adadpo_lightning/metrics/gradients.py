"""Size of the loss's gradient on either side of the pairs, read off the backward pass that training makes anyway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.types import PreferenceBatch


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
