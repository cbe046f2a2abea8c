"""KL(policy || reference) on answers sampled from the policy, with its standard error."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def on_policy_kl(sums: Tensor, lengths: Tensor) -> tuple[float, float]:
    """Token mean of the estimator's terms over sampled answers, and its standard error.

    Answers are independent samples, but the tokens of one answer are not. The standard error is therefore that of a
    ratio of two sums over answers (Cochran 1977, Sampling Techniques, section 2.11): the square root of
    ``R / (R - 1) * sum_i (s_i - kl * n_i)^2``, divided by the number of tokens.

    Args:
        sums: Sum of `kl_terms` over the tokens of each answer, nats, shape (R,).
        lengths: Number of tokens of each answer, at least 1, shape (R,).

    Returns:
        The mean per token in nats, and its standard error, which is nan for a single answer.

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
