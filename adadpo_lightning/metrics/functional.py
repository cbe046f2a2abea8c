"""What preference learning is judged by, as pure functions; `classes` has the torchmetrics over them."""

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
    """Share of pairs whose chosen answer has the strictly higher implicit reward.

    Args:
        chosen_rewards: Implicit rewards of the chosen answers, shape (B,).
        rejected_rewards: The same of the rejected answers, shape (B,).

    Returns:
        A scalar in [0, 1]. A tie is no success: at step 0 all rewards of a run with a reference are 0.

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
    """Per-token terms of the non-negative, low-variance estimator of KL(policy to reference).

    ``exp(-d) - 1 + d`` (Schulman 2020, "Approximating KL divergence", k3). Unbiased on tokens that the policy drew; on
    a dataset's tokens it measures distance without being that divergence.

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
    """Geometric mean over pairs of ``g_w / g_l``, the chosen gradient's size over the rejected one's.

    Args:
        log_balance: ``log(g_w / g_l)`` of each pair, shape (B,): `LossOutput.log_balance` in the loss's own space, or
            `LossOutput.log_balance_policy` in the one that all losses share.

    Source:
        AdaDPO, arXiv 2605.28440.

    Example:
        >>> gradient_balance(torch.tensor([4.0, 0.25]).log())
        tensor(1.)
    """
    return log_balance.mean().exp()


def likelihood_displacement(logps: Tensor, initial_logps: Tensor) -> tuple[Tensor, Tensor]:
    """How far answers have moved since step 0.

    Args:
        logps: Summed log-probability of each answer now, nats, shape (B,).
        initial_logps: The same at step 0; with a reference that is its own, shape (B,).

    Returns:
        Mean drift in nats, and the share of answers that have become less likely.

    Example:
        >>> likelihood_displacement(torch.tensor([-3.0, -1.0]), torch.tensor([-2.0, -2.0]))
        (tensor(0.), tensor(0.5000))
    """
    drift = logps - initial_logps
    return drift.mean(), losses_of_likelihood(drift).mean()


def margin_length_correlation(margins: Tensor, chosen_len: Tensor, rejected_len: Tensor) -> Tensor:
    """Pearson correlation over pairs of the reward margin with the difference in length.

    Near 1 the policy has learned that longer is better.

    Args:
        margins: Reward margins, shape (B,).
        chosen_len: Tokens of each chosen answer, shape (B,).
        rejected_len: Tokens of each rejected answer, shape (B,).

    Returns:
        A scalar in [-1, 1], float64; nan if the margins or the differences are all equal.

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
    """Pearson correlation from the means of x, y, xx, yy and xy; nan without spread."""
    x, y, xx, yy, xy = means.unbind()
    spread_x, spread_y = xx - x * x, yy - y * y
    # Below this, what is left of a spread is rounding.
    flat = (spread_x <= 1e-12 * xx) | (spread_y <= 1e-12 * yy)
    correlation = (xy - x * y) / (spread_x.clamp_min(0.0) * spread_y.clamp_min(0.0)).sqrt()
    return torch.where(flat, torch.nan, correlation.clamp(-1.0, 1.0))
