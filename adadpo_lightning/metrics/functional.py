"""Preference metrics as pure functions; `classes` wraps them as torchmetrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def successes(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    """1 for each pair whose chosen answer has the strictly higher implicit reward, otherwise 0; shape (B,)."""
    return (chosen_rewards > rejected_rewards).to(chosen_rewards.dtype)


def losses_of_likelihood(drift: Tensor) -> Tensor:
    """1 for each answer that has become less likely, otherwise 0; from its drift since step 0, nats, shape (B,)."""
    return (drift < 0).to(drift.dtype)


def reward_accuracy(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    """Fraction of pairs whose chosen answer has the strictly higher implicit reward.

    Args:
        chosen_rewards: Implicit rewards of the chosen answers, shape (B,).
        rejected_rewards: The same of the rejected answers, shape (B,).

    Returns:
        A scalar in [0, 1]. Ties do not count: with a reference, all rewards are 0 at step 0.

    Example:
        >>> reward_accuracy(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.0]))
        tensor(0.5000)
    """
    return successes(chosen_rewards, rejected_rewards).mean()


def reward_margin(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    """Mean difference of the implicit rewards.

    Args:
        chosen_rewards: Implicit rewards of the chosen answers, shape (B,).
        rejected_rewards: The same of the rejected answers, shape (B,).

    Example:
        >>> reward_margin(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 1.0]))
        tensor(-0.2500)
    """
    return (chosen_rewards - rejected_rewards).mean()


def kl_terms(log_ratio: Tensor) -> Tensor:
    """Per-token terms of the non-negative, low-variance estimator of KL(policy || reference).

    ``exp(-d) - 1 + d`` (Schulman 2020, "Approximating KL divergence", k3). Unbiased for tokens
    sampled from the policy. For the tokens of a dataset it measures a distance, but does not estimate the divergence.

    Args:
        log_ratio: d, log-probability under the policy minus that under the reference, nats, any shape.

    Example:
        >>> kl_terms(torch.tensor([0.0, 1.0]))
        tensor([0.0000, 0.3679])
    """
    return torch.expm1(-log_ratio) + log_ratio


def kl_estimate(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Token mean of `kl_terms`.

    Args:
        logps: Log-probability of each token under the policy, nats, shape (N,).
        ref_logps: The same under the reference, shape (N,).

    Example:
        >>> kl_estimate(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, -2.0]))
        tensor(0.1839)
    """
    return kl_terms(logps - ref_logps).mean()


def gradient_balance(log_balance: Tensor) -> Tensor:
    """Geometric mean over pairs of ``g_w / g_l``, the ratio of chosen to rejected gradient magnitude.

    Args:
        log_balance: ``log(g_w / g_l)`` of each pair, shape (B,): `LossOutput.log_balance` in the loss's own space, or
            `LossOutput.log_balance_policy` in policy space, which all losses share. Pairs with NaN, which have a
            gradient on one side at most, are left out.

    Source:
        AdaDPO, arXiv 2605.28440.

    Example:
        >>> gradient_balance(torch.tensor([4.0, 0.25]).log())
        tensor(1.)
    """
    return log_balance.nanmean().exp()


def likelihood_displacement(logps: Tensor, initial_logps: Tensor) -> tuple[Tensor, Tensor]:
    """Change of answer log-probabilities since step 0.

    Args:
        logps: Summed log-probability of each answer now, nats, shape (B,).
        initial_logps: The same at step 0, equal to those of the reference if there is one, shape (B,).

    Returns:
        Mean drift in nats, and the fraction of answers that have become less likely.

    Example:
        >>> likelihood_displacement(torch.tensor([-3.0, -1.0]), torch.tensor([-2.0, -2.0]))
        (tensor(0.), tensor(0.5000))
    """
    drift = logps - initial_logps
    return drift.mean(), losses_of_likelihood(drift).mean()


def margin_length_correlation(margins: Tensor, chosen_len: Tensor, rejected_len: Tensor) -> Tensor:
    """Pearson correlation over pairs of reward margin and length difference.

    A value near 1 means that the policy has learned to prefer longer answers.

    Args:
        margins: Reward margins, shape (B,).
        chosen_len: Number of tokens of each chosen answer, shape (B,).
        rejected_len: Number of tokens of each rejected answer, shape (B,).

    Returns:
        A scalar in [-1, 1], float64; nan if all margins or all differences are equal.

    Example:
        >>> margin_length_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4, 6, 8]), torch.tensor([1, 1, 1]))
        tensor(1., dtype=torch.float64)
    """
    return correlation_from_moments(correlation_moments(margins, chosen_len - rejected_len) / len(margins))


def correlation_moments(x: Tensor, y: Tensor) -> Tensor:
    """Sums of x, y, xx, yy and xy, float64, shape (5,)."""
    x, y = x.double(), y.double()
    return torch.stack([x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()])


def correlation_from_moments(means: Tensor) -> Tensor:
    """Pearson correlation from the means of x, y, xx, yy and xy; nan if either variance is zero."""
    x, y, xx, yy, xy = means.unbind()
    spread_x, spread_y = xx - x * x, yy - y * y
    # A smaller variance is only rounding error.
    flat = (spread_x <= 1e-12 * xx) | (spread_y <= 1e-12 * yy)
    correlation = (xy - x * y) / (spread_x.clamp_min(0.0) * spread_y.clamp_min(0.0)).sqrt()
    return torch.where(flat, torch.nan, correlation.clamp(-1.0, 1.0))
