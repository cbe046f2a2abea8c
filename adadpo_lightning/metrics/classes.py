"""torchmetrics classes over `functional`. Each keeps its sums in one tensor, so that syncing needs one collective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric

from adadpo_lightning.metrics.functional import (
    correlation_from_moments,
    correlation_moments,
    kl_terms,
    losses_of_likelihood,
    successes,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class SumMetric(Metric):
    """Base class of metrics computed from sums over all data and ranks, independent of the batching.

    Args:
        size: Number of sums.
        **kwargs: Options of `torchmetrics.Metric`, for example ``sync_on_compute``.
    """

    full_state_update = False
    is_differentiable = False
    sums: Tensor
    add_state: Callable[..., None]

    def __init__(self, size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # float64: a long validation set must not lose small terms.
        self.add_state("sums", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, *terms: Tensor | float) -> None:
        values = [t.detach().double() if isinstance(t, Tensor) else self.sums.new_full((), t) for t in terms]
        self.sums = self.sums + torch.stack(values)

    def _mean(self) -> Tensor:
        """The first sum divided by the last, which is the count; nan before the first update."""
        return self.sums[0] / self.sums[-1]


class RewardAccuracy(SumMetric):
    """Fraction of pairs whose chosen answer has the strictly higher implicit reward.

    Args:
        **kwargs: torchmetrics' own options.

    Example:
        >>> metric = RewardAccuracy()
        >>> metric.update(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.0]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(2, **kwargs)

    def update(self, chosen_rewards: Tensor, rejected_rewards: Tensor) -> None:
        """Add pairs; implicit rewards of both sides, shape (B,)."""
        self._add(successes(chosen_rewards, rejected_rewards).sum(), len(chosen_rewards))

    def compute(self) -> Tensor:
        """The fraction over all pairs."""
        return self._mean()


class RewardMargin(SumMetric):
    """Mean difference of the implicit rewards.

    Args:
        **kwargs: torchmetrics' own options.
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(2, **kwargs)

    def update(self, chosen_rewards: Tensor, rejected_rewards: Tensor) -> None:
        """Add pairs; implicit rewards of both sides, shape (B,)."""
        self._add((chosen_rewards - rejected_rewards).double().sum(), len(chosen_rewards))

    def compute(self) -> Tensor:
        """The mean over all pairs."""
        return self._mean()


class KLEstimate(SumMetric):
    """Token mean of ``exp(-d) - 1 + d``, d the log-ratio to the reference; see `functional.kl_terms`.

    Args:
        **kwargs: torchmetrics' own options.
    """

    higher_is_better = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(2, **kwargs)

    def update(self, logps: Tensor, ref_logps: Tensor) -> None:
        """Add tokens; log-probabilities under policy and reference, nats, shape (N,)."""
        self._add(kl_terms(logps.double() - ref_logps.double()).sum(), logps.numel())

    def compute(self) -> Tensor:
        """The mean over all tokens, nats."""
        return self._mean()


class GradientBalance(SumMetric):
    """Geometric mean over pairs of ``g_w / g_l``; see `functional.gradient_balance`.

    Args:
        **kwargs: torchmetrics' own options.
    """

    higher_is_better = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(2, **kwargs)

    def update(self, log_balance: Tensor) -> None:
        """Add pairs; ``log(g_w / g_l)``, shape (B,). Pairs with NaN are left out."""
        self._add(log_balance.double().nansum(), (~log_balance.isnan()).sum())

    def compute(self) -> Tensor:
        """The geometric mean over all pairs; 1 means balanced."""
        return self._mean().exp()


class LikelihoodDisplacement(SumMetric):
    """Change of answer log-probabilities since step 0; see `functional.likelihood_displacement`.

    Args:
        **kwargs: torchmetrics' own options.
    """

    higher_is_better = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(3, **kwargs)

    def update(self, logps: Tensor, initial_logps: Tensor) -> None:
        """Add answers; summed log-probabilities now and at step 0, nats, shape (B,)."""
        drift = logps.double() - initial_logps.double()
        self._add(drift.sum(), losses_of_likelihood(drift).sum(), len(drift))

    def compute(self) -> dict[str, Tensor]:
        """``drift``, the mean change in nats, and ``fell``, the fraction of answers that have become less likely."""
        return {"drift": self._mean(), "fell": self.sums[1] / self.sums[2]}


class MarginLengthCorrelation(SumMetric):
    """Pearson correlation of reward margin and length difference; near 1, the policy prefers longer answers.

    Args:
        **kwargs: torchmetrics' own options.
    """

    higher_is_better = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(6, **kwargs)

    def update(self, margins: Tensor, chosen_len: Tensor, rejected_len: Tensor) -> None:
        """Add pairs; reward margins and token counts, shape (B,)."""
        self._add(*correlation_moments(margins, chosen_len - rejected_len), len(margins))

    def compute(self) -> Tensor:
        """The correlation over all pairs; nan if either has no spread."""
        return correlation_from_moments(self.sums[:5] / self.sums[5])
