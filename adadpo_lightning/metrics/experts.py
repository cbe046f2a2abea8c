"""How evenly a router spreads tokens over its experts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def max_load(tokens: Tensor) -> Tensor:
    """Tokens of the busiest expert over the mean of all experts, per layer, shape (L,).

    Args:
        tokens: Tokens that each expert of each layer got, (L, E).

    Returns:
        1 if all experts got as many, E over the number of experts per token if all tokens went to the same ones.

    Example:
        >>> max_load(torch.tensor([[5.0, 5.0], [9.0, 3.0]])).tolist()
        [1.0, 1.5]
    """
    return tokens.amax(1) / tokens.mean(1)


def load_entropy(tokens: Tensor) -> Tensor:
    """Entropy of the experts' shares of the tokens over that of equal shares, per layer, shape (L,).

    Args:
        tokens: As for `max_load`; with at least two experts.

    Returns:
        1 if all experts got as many tokens, 0 if one got all.

    Example:
        >>> load_entropy(torch.tensor([[5.0, 5.0], [9.0, 0.0]])).tolist()
        [1.0, 0.0]
    """
    shares = tokens / tokens.sum(1, keepdim=True)
    entropy: Tensor = torch.special.entr(shares).sum(1)
    return entropy / math.log(tokens.shape[1])
