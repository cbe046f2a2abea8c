"""KL(policy to reference) on answers that the policy drew itself, with the error that so few answers leave."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def on_policy_kl(sums: Tensor, lengths: Tensor) -> tuple[float, float]:
    """Token mean of the estimator's terms over sampled answers, and its standard error.

    The answers are the independent draws and not their tokens, which depend on each other. So the error is that of a
    ratio of two sums over answers (Cochran 1977, Sampling Techniques, section 2.11): the root of
    ``R / (R - 1) * sum_i (s_i - kl * n_i)^2``, over all tokens.

    Args:
        sums: For each answer the sum over its tokens of `kl_terms`, nats, shape (R,).
        lengths: Tokens of each answer, at least 1, shape (R,).

    Returns:
        The mean per token in nats, and its standard error: nan for a single answer.

    Example:
        >>> import torch
        >>> kl, stderr = on_policy_kl(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([2, 2, 2]))
        >>> round(kl, 3), round(stderr, 3)
        (1.0, 0.289)
    """
    sums, lengths = sums.double(), lengths.double()
    answers, tokens = len(sums), lengths.sum()
    mean = sums.sum() / tokens
    if answers < 2:
        return float(mean), math.nan
    squares = (sums - mean * lengths).square().sum()
    return float(mean), float((squares * answers / (answers - 1)).sqrt() / tokens)
