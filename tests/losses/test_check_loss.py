"""`check_loss` finds what is wrong with a loss: each of these breaks one property."""

from dataclasses import dataclass, fields, replace

import pytest
import torch

from adadpo_lightning.losses import (
    CPO,
    DPO,
    NCA,
    SFT,
    AdaDPO,
    AdaSimPO,
    ContrastiveLoss,
    PreferenceLoss,
    SimPO,
    log_ratios,
    logps,
    per_token,
)
from adadpo_lightning.losses.testing import check_loss
from adadpo_lightning.types import LossOutput

loss = dataclass(frozen=True)


@loss
class MeanCalledASum(SimPO):
    sums_tokens = True


@loss
class SumCalledAMean(CPO):
    sums_tokens = False


@loss
class ForgotTheSlope(ContrastiveLoss):
    def variable(self, x):
        return logps(x)

    def score(self, v):
        return -(1 - v).sqrt()

    def link(self, margin):
        return -margin


@loss
class FallingScore(CPO):
    def score(self, v):
        return -self.beta * v


@loss
class SidesEntangled(CPO):
    def variable(self, x):
        return type(logps(x))(x.chosen - 0.1 * x.rejected, x.rejected)


@loss
class OffsetOfThePolicy(CPO):
    def offset(self, x):
        return 0.01 * x.chosen


@loss
class HidesItsReference(DPO):
    needs_reference = False


@loss
class ReadsTheReferenceIfThereIsOne(CPO):
    def variable(self, x):
        return logps(x) if x.ref_chosen is None else log_ratios(x)


@loss
class Overflows(CPO):
    def link(self, margin):
        return torch.exp(-margin)


@loss
class InfiniteGradient(CPO):
    def link(self, margin):
        return -margin.abs().sqrt()


@loss
class MixesThePairs(DPO):
    def link(self, margin):
        return super().link(margin - margin.mean())


@loss
class ReadsTheRejected(SFT):
    def __call__(self, x):
        return replace(super().__call__(x), per_pair=x.in_float32().rejected * 1.0)


@loss
class OneNumber(DPO):
    def __call__(self, x):
        out = super().__call__(x)
        return replace(out, per_pair=out.per_pair.mean())


class Bare(PreferenceLoss):
    """A correct loss that is no `ContrastiveLoss`, to be broken below."""

    widen = detach = weigh = True

    def __call__(self, x):
        x = x.in_float32() if self.widen else x
        per_pair = torch.sigmoid(0.1 * (x.rejected - x.chosen))
        if x.weight is not None and self.weigh:
            per_pair = per_pair * x.weight
        reward = x.chosen.detach() if self.detach else x.chosen
        return LossOutput(per_pair, reward, reward, torch.ones_like(reward))


class NeedsNoReference(Bare):
    needs_reference = True


class StaysHalf(Bare):
    widen = False


class AttachedRewards(Bare):
    detach = False


class IgnoresWeights(Bare):
    weigh = False


@loss
class CoefficientWithGradient(AdaDPO):
    def log_coefficient(self, x):
        h = per_token(log_ratios(x), x)
        log_c = h.chosen - h.rejected
        return log_c.clamp(max=0.693), log_c >= 0.693


@loss
class GradientLeaksThroughTheScore(AdaDPO):
    def apply_coefficient(self, score, coefficient):
        return super().apply_coefficient(score, coefficient) * (1 + score - score.detach())


@loss
class NoCeiling(AdaDPO):
    def log_coefficient(self, x):
        return AdaDPO(ceiling=1e6).log_coefficient(x)


@loss
class BalancesElsewhere(AdaDPO):
    def log_u(self, x):
        return per_token(logps(x), x)


@loss
class ForgotTheRejectedSlope(DPO):
    def rejected_score(self, v):
        return 0.5 * self.beta * v


@loss
class FallingRejectedScore(DPO):
    def rejected_score(self, v):
        return -self.beta * v


@loss
class IgnoresTargetMargins(NCA):
    takes_margin = True


@loss
class ContrastOfThePolicyItself(NCA):
    def contrast(self, scores, x):
        return super().contrast(scores, x) + 0.01 * x.chosen


@loss
class StraightThrough(NCA):
    """A gradient that is not the value's."""

    def contrast(self, scores, x):
        return super().contrast(type(scores)(scores.chosen * 2 - scores.chosen.detach(), scores.rejected), x)


@loss
class WrongReport(AdaSimPO):
    def __call__(self, x):
        out = super().__call__(x)
        return replace(out, log_balance=out.log_balance + 0.01)


@loss
class WrongReportInPolicySpace(SimPO):
    def __call__(self, x):
        out = super().__call__(x)
        return replace(out, log_balance_policy=out.log_balance_policy + 0.01)


BROKEN = {
    MeanCalledASum: "sums_tokens",
    SumCalledAMean: "sums_tokens",
    ForgotTheSlope: "log_slope, against autograd",
    FallingScore: "score: must increase",
    SidesEntangled: "one side depends on the other",
    OffsetOfThePolicy: "offset: depends on the policy",
    HidesItsReference: "needs_reference is False, yet",
    NeedsNoReference: "needs_reference is True, yet",
    ReadsTheReferenceIfThereIsOne: "with and without a reference",
    Overflows: "per_pair in torch.float32: inf at PairLogps",
    InfiniteGradient: "gradient of chosen in torch.float32: (inf|-inf|nan) at PairLogps",
    MixesThePairs: "of a pair alone and in a batch",
    ReadsTheRejected: "needs_rejected is False, yet",
    OneNumber: r"per_pair: expected shape \(1,\), got \(\)",
    StaysHalf: "bfloat16: must be computed in float32",
    AttachedRewards: "chosen_rewards: must be detached",
    IgnoresWeights: "per_pair under weights",
    CoefficientWithGradient: "coefficient: must be detached",
    GradientLeaksThroughTheScore: "gradient of chosen with the coefficient held constant",
    NoCeiling: "is above the ceiling 2.0",
    BalancesElsewhere: "log_balance, against autograd",
    ForgotTheRejectedSlope: "rejected_log_slope, against autograd",
    FallingRejectedScore: "rejected_score: must not decrease",
    IgnoresTargetMargins: "target margins change nothing",
    ContrastOfThePolicyItself: "log_balance, against autograd",
    StraightThrough: "gradient of chosen: differs from finite differences",
    WrongReport: "log_balance, against autograd",
    WrongReportInPolicySpace: "log_balance_policy",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda cls: cls.__name__)
def test_each_broken_property_is_found(broken):
    with pytest.raises(AssertionError, match=BROKEN[broken]):
        check_loss(broken())


def test_the_bare_loss_they_break_is_sound():
    check_loss(Bare())


def test_a_class_is_no_loss():
    with pytest.raises(AssertionError, match="expected an instance of PreferenceLoss"):
        check_loss(DPO)


def test_nothing_here_is_registered():
    from adadpo_lightning.losses import available_losses, loss_class

    assert not {loss_class(key) for key in available_losses()} & set(BROKEN)
    assert {f.name for f in fields(MeanCalledASum)} == {f.name for f in fields(SimPO)}
