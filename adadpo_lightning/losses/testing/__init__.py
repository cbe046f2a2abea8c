"""Property checks for a loss of your own: ``check_loss(build_loss("mine"))`` in a test, in one line.

What a loss claims is checked against autograd and against an assembly written out here, never against the closed forms
that the losses themselves report. Everything runs on synthetic log-probabilities in float64, and in float32 at the
extremes.
"""

from __future__ import annotations

from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.base import PairwiseLoss, PreferenceLoss
from adadpo_lightning.losses.testing import adaptive, general, pairwise
from adadpo_lightning.losses.testing.adaptive import plain_counterpart
from adadpo_lightning.losses.testing.autograd import autograd_log_balance, gradients, own_log_balance
from adadpo_lightning.losses.testing.expect import expect
from adadpo_lightning.losses.testing.samples import EXTREME_LOGPS, extreme_pairs, sample_pairs, with_token_sums

__all__ = [
    "EXTREME_LOGPS",
    "autograd_log_balance",
    "check_loss",
    "extreme_pairs",
    "gradients",
    "own_log_balance",
    "plain_counterpart",
    "sample_pairs",
    "with_token_sums",
]


def check_loss(loss: PreferenceLoss, *, seed: int = 0) -> None:
    """Check the properties of a loss that the trainer and the adaptive coefficient rely on.

    Args:
        loss: The loss, with any options. Its adaptive twin is a separate loss: check it as well.
        seed: Seed of the synthetic log-probabilities.

    Raises:
        AssertionError: If a property does not hold; names it, and by how much it is missed.

    Example:
        >>> from adadpo_lightning.losses import build_loss
        >>> check_loss(build_loss("dpo"))
        >>> check_loss(build_loss("adadpo", ceiling=1.5))
    """
    expect(isinstance(loss, PreferenceLoss), f"expected an instance of PreferenceLoss, got {loss!r}")
    x = sample_pairs(64, seed=seed)
    general.check_output(loss, x)
    general.check_reference(loss, x)
    general.check_sums_of_tokens(loss, x)
    general.check_pairs_are_independent(loss, x)
    general.check_extremes(loss)
    general.check_weight_and_margin(loss, x)
    general.check_half_precision(loss, x)
    if not loss.needs_rejected:
        return
    if isinstance(loss, PairwiseLoss):
        pairwise.check_pieces(loss, x)
        pairwise.check_assembly(loss, x)
        pairwise.check_finite_differences(loss, x)
        pairwise.check_own_balance(loss, x)
    general.check_policy_balance(loss, x)
    if isinstance(loss, Adaptive):
        adaptive.check_coefficient(loss, x)
        adaptive.check_target_ratio(loss, x)
        adaptive.check_plain_limits(loss, x)
