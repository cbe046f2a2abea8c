"""Logistic regression on soft preferences: maximum likelihood in numpy, an L1 penalty with scikit-learn."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from adadpo_lightning.errors import UserError

# Log-odds beyond this are not a finite estimate but a fit on its way to infinity.
DIVERGED = 15.0
STEPS = 100


class Rows(NamedTuple):
    """Rows of a regression without intercept.

    Args:
        x: Columns, shape (P, D).
        y: Preferences in [0, 1], shape (P,).
        weight: Weights, shape (P,).
    """

    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray

    def joined(self, other: Rows) -> Rows:
        """These rows and others."""
        return Rows(*map(np.concatenate, zip(self, other, strict=True)))

    def taken(self, rows: np.ndarray) -> Rows:
        """Some of the rows."""
        return Rows(*(values[rows] for values in self))

    def both_outcomes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each row as a win and as a loss, weighted by their probabilities: scikit-learn needs hard labels."""
        labels = np.repeat([1, 0], len(self.y))
        weights = np.concatenate([self.y, 1 - self.y]) * np.tile(self.weight, 2)
        kept = weights > 0
        return np.tile(self.x, (2, 1))[kept], labels[kept], weights[kept]


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probability of a win; stable for large logits."""
    p: np.ndarray = np.exp(-np.logaddexp(0, -logits))
    return p


def fit(rows: Rows) -> np.ndarray:
    """Maximum likelihood by Newton's method with step halving.

    Returns:
        Weights of the columns, shape (D,); 0 for a constant column other than the first.

    Raises:
        UserError: If the columns separate wins from losses, so that no finite weights exist.
    """
    # A constant column (equal lengths) cannot be told from the first one.
    used = np.ptp(rows.x, axis=0) > 0
    used[0] = True
    x, y, weight = rows.x[:, used], rows.y, rows.weight

    def loss(w: np.ndarray) -> float:
        logits = x @ w
        return float((weight * (np.logaddexp(0, logits) - y * logits)).sum())

    found = np.zeros(x.shape[1])
    for _ in range(STEPS):
        p = sigmoid(x @ found)
        score = x.T @ (weight * (y - p))
        information = x.T @ (x * (weight * p * (1 - p))[:, None])
        step = np.linalg.lstsq(information, score, rcond=None)[0]
        size = 1.0
        while size > 1e-6 and loss(found + size * step) > loss(found):
            size /= 2
        found = found + size * step
        if np.abs(step).max() < 1e-12 or np.abs(x * found).max() > 2 * DIVERGED:
            break
    score = x.T @ (weight * (y - sigmoid(x @ found))) / len(y)
    if np.abs(x * found).max() > DIVERGED or np.abs(score).max() > 1e-5:
        raise UserError(
            "length control",
            "the length difference (with the difficulty) separates wins from losses: no finite estimate exists",
            "give more comparisons or set penalty to l1_cv",
        )
    weights = np.zeros(rows.x.shape[1])
    weights[used] = found
    return weights


def fit_l1(rows: Rows, inverse_penalty: float) -> np.ndarray:
    """Fit with an L1 penalty on all weights.

    Args:
        rows: The rows.
        inverse_penalty: scikit-learn's C.

    Returns:
        Weights of the columns, shape (D,).

    Raises:
        UserError: If all rows have the same outcome, or scikit-learn is not installed.
    """
    features, labels, sample_weights = rows.both_outcomes()
    if np.ptp(labels) == 0:
        raise UserError(
            "length control",
            "a fold of the cross-validation contains only wins or only losses",
            "give more comparisons or set penalty to none",
        )
    model = _logistic_regression()(
        C=inverse_penalty,
        l1_ratio=1.0,
        solver="liblinear",
        fit_intercept=False,
        tol=1e-6,
        max_iter=1000,
        random_state=0,
    )
    weights: np.ndarray = model.fit(features, labels, sample_weights).coef_[0]
    return weights


def cross_validated(rows: Rows, folds: int = 5) -> float:
    """The C, of 10 between 1e-4 and 1e4, with the best held-out log loss; both outcomes of a row share a fold."""
    fold = np.arange(len(rows.y)) % min(folds, len(rows.y))

    def held_out(c: float) -> float:
        losses = []
        for k in range(fold.max() + 1):
            x, y, weight = rows.taken(fold == k)
            logits = x @ fit_l1(rows.taken(fold != k), c)
            losses.append(np.mean(weight * (np.logaddexp(0, logits) - y * logits)))
        return float(np.mean(losses))

    return float(min(np.logspace(-4, 4, 10), key=held_out))


def _logistic_regression() -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise UserError(
            "penalty",
            "l1_cv needs the package scikit-learn, which is not installed",
            "pip install 'adadpo-lightning[eval]', or set penalty to none",
        ) from error
    return LogisticRegression
