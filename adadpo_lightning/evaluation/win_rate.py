"""Win rates of one model against another: raw and length-controlled, with standard errors over prompts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    se: float


def mean_over_prompts(values: np.ndarray) -> Estimate:
    """Mean with its standard error, where only prompts are independent.

    Args:
        values: Shape (P,), or (P, S) for S comparisons on each of P prompts.

    Example:
        >>> mean_over_prompts(np.array([[1.0, 0.0], [1.0, 1.0]]))
        Estimate(value=0.75, se=0.25)
    """
    per_prompt = np.asarray(values, dtype=np.float64).reshape(len(values), -1).mean(1)
    spread = per_prompt.std(ddof=1) / np.sqrt(len(per_prompt)) if len(per_prompt) > 1 else np.nan
    return Estimate(float(per_prompt.mean()), float(spread))


def win_rate(scores: np.ndarray, opponents: np.ndarray) -> Estimate:
    """Share of comparisons won, ties counted half.

    Args:
        scores: One answer's score on each prompt, shape (P,).
        opponents: Scores of the S opposing answers, shape (P, S).

    Example:
        >>> win_rate(np.array([1.0, 0.0]), np.array([[0.0, 1.0], [1.0, 0.0]])).value
        0.5
    """
    difference = scores[:, None] - opponents
    # Sums of the same terms in another order differ in their last bits: these are ties.
    ties = np.isclose(difference, 0.0, atol=1e-9)
    return mean_over_prompts(np.where(ties, 0.5, difference > 0))


def length_controlled_win_rate(preferences: np.ndarray, length_differences: np.ndarray) -> Estimate:
    """Win rate that a logistic model predicts for answers of equal length.

    As AlpacaEval 2 does it (Dubois et al. 2024, arXiv 2404.04475) less its term for the prompt's difficulty:
    ``logit P(win) = theta + phi * tanh(difference / std)`` is fitted to the soft preferences, and ``sigmoid(theta)`` is
    what is left of the win rate without the length term. The standard error is robust, clustered by prompt.

    Args:
        preferences: Probability that the judge prefers the model's answer, shape (P, S), in (0, 1).
        length_differences: Tokens of the model's answer minus the opponent's, shape (P, S).

    Example:
        >>> lengths = np.array([[4.0], [-4.0], [8.0], [-8.0]])
        >>> bias_alone = 1 / (1 + np.exp(-2 * np.tanh(lengths / lengths.std())))
        >>> round(length_controlled_win_rate(bias_alone, lengths).value, 3)
        0.5
    """
    prompts, samples = preferences.shape
    spread = length_differences.std()
    if spread == 0:
        return mean_over_prompts(preferences)
    y = preferences.reshape(-1)
    x = np.stack([np.ones_like(y), np.tanh(length_differences.reshape(-1) / spread)], 1)
    weights = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-(x @ weights)))
        information = x.T @ (x * (p * (1 - p))[:, None])
        step = np.linalg.solve(information, x.T @ (y - p))
        weights += step
        if np.abs(step).max() < 1e-10:
            break
    scores = ((y - p)[:, None] * x).reshape(prompts, samples, 2).sum(1)
    inverse = np.linalg.inv(information)
    covariance = inverse @ (scores.T @ scores) @ inverse
    value = 1 / (1 + np.exp(-weights[0]))
    return Estimate(float(value), float(value * (1 - value) * np.sqrt(covariance[0, 0])))
