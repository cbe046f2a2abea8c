"""The weighted sum of losses."""

import pickle
from dataclasses import replace

import pytest
import torch

from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import (
    BPO,
    CPO,
    DPO,
    IPO,
    NCA,
    ORPO,
    SFT,
    AdaDPO,
    AdaNCA,
    AdaORPO,
    AdaSimPO,
    Mixture,
    PreferenceLoss,
    SimPO,
)
from adadpo_lightning.losses.testing import (
    autograd_log_balance,
    check_loss,
    extreme_pairs,
    gradients,
    own_log_balance,
    sample_pairs,
)
from adadpo_lightning.types import LossOutput

X = sample_pairs(64, seed=21)
MIXTURES = [
    Mixture([AdaDPO(), SFT()], [0.9, 0.1]),
    Mixture([SFT(), DPO()], [0.5, 2.0]),
    Mixture([DPO(), IPO()], [1.0, 0.3]),
    Mixture([AdaSimPO(), CPO(), ORPO(), SFT()], [1.0, 0.3, 0.7, 0.2]),
    Mixture([AdaDPO(space="policy", apply="gradient"), AdaORPO()], [1.0, 1.0]),
    Mixture([SFT()], [2.0]),
]


def named(loss):
    return "+".join(map(named, loss.losses)) if isinstance(loss, Mixture) else loss.key


@pytest.mark.parametrize("mixture", MIXTURES, ids=named)
def test_every_property_holds(mixture):
    check_loss(mixture)


@pytest.mark.parametrize("mixture", MIXTURES, ids=named)
def test_value_nll_and_gradients_are_the_weighted_sums(mixture):
    parts = list(zip(mixture.weights, mixture.losses, strict=True))
    out = mixture(X)
    torch.testing.assert_close(out.per_pair, sum(w * loss(X).per_pair for w, loss in parts))
    nlls = [w * loss(X).nll for w, loss in parts if loss(X).nll is not None]
    assert (out.nll is None) == (not nlls)
    if nlls:
        torch.testing.assert_close(out.nll, sum(nlls))
    for side in (0, 1):
        wanted = sum(w * gradients(loss, X)[side] for w, loss in parts)
        torch.testing.assert_close(gradients(mixture, X)[side], wanted)


@pytest.mark.parametrize("mixture", MIXTURES, ids=named)
def test_balance_is_that_of_the_sum(mixture):
    out = mixture(X)
    if not mixture.needs_rejected:
        assert out.log_balance_policy is None
        return
    torch.testing.assert_close(out.log_balance_policy, autograd_log_balance(mixture, X))
    with torch.inference_mode():
        torch.testing.assert_close(mixture(X).log_balance_policy, out.log_balance_policy)


@pytest.mark.parametrize("loss", [DPO(), IPO(), SimPO(), AdaSimPO(), AdaORPO(), AdaDPO(space="policy")], ids=named)
def test_a_loss_mixed_with_itself_is_itself(loss):
    twice, once = Mixture([loss, loss], [0.3, 0.7])(X), loss(X)
    for name, value in vars(once).items():
        if value is not None:
            torch.testing.assert_close(getattr(twice, name), value)
    torch.testing.assert_close(twice.log_balance, own_log_balance(loss, X))


def test_reported_numbers_are_those_of_the_first_contrastive_part():
    out, first = Mixture([SFT(), AdaDPO(), DPO(beta=3.0)], [0.1, 0.2, 0.7])(X), AdaDPO()(X)
    for name in ("coefficient", "clipped", "chosen_rewards", "rejected_rewards"):
        assert torch.equal(getattr(out, name), getattr(first, name))


def test_target_margins_are_for_mixtures_of_margins():
    assert Mixture([DPO(), SFT()], [1, 1]).takes_margin
    assert not Mixture([DPO(), NCA()], [1, 1]).takes_margin
    with pytest.raises(UserError, match="target margins, but 'nca' has no margin"):
        Mixture([DPO(), NCA()], [1, 1])(replace(X, margin=torch.zeros_like(X.chosen)))


def test_side_wise_losses_mix():
    mixture = Mixture([AdaNCA(), DPO(), BPO()], [0.5, 1.0, 0.3])
    check_loss(mixture)
    torch.testing.assert_close(mixture(X).log_balance_policy, autograd_log_balance(mixture, X), equal_nan=True)


def test_needs():
    assert Mixture([SimPO(), SFT()], [1, 1]).needs_rejected
    assert not Mixture([SimPO(), SFT()], [1, 1]).needs_reference
    assert Mixture([SimPO(), DPO()], [1, 1]).needs_reference
    assert not Mixture([SFT()], [1]).needs_rejected


def test_a_mixture_in_a_mixture_is_laid_flat():
    nested = Mixture([Mixture([DPO(), SFT()], [0.5, 0.25]), Mixture([IPO()], [4])], [2, 0.5])
    flat = Mixture([DPO(), SFT(), IPO()], [1.0, 0.5, 2.0])
    assert repr(nested) == repr(flat)
    for name, value in vars(flat(X)).items():
        assert value is None or torch.equal(getattr(nested(X), name), value), name


def test_weight_of_zero_does_not_spoil_the_balance():
    x = replace(X, weight=torch.zeros_like(X.chosen))
    mixture = Mixture([DPO(), SimPO()], [1, 1])
    torch.testing.assert_close(mixture(x).log_balance, mixture(X).log_balance)


def test_extremes_stay_finite():
    out = Mixture([DPO(), CPO(), ORPO()], [1, 1, 1])(extreme_pairs())
    for balance in (out.log_balance, out.log_balance_policy):
        assert not balance.isinf().any()  # NaN: no gradient on one side, so no ratio
        assert balance.isfinite().any()


class Distance(PreferenceLoss):
    """A loss that is no `ContrastiveLoss`."""

    def __call__(self, x):
        zeros = torch.zeros_like(x.chosen.detach())
        return LossOutput((0.01 * (x.chosen - x.rejected)).tanh().neg(), zeros, zeros, zeros + 1)


def test_losses_of_any_kind_can_be_mixed():
    mixture = Mixture([Distance(), Distance()], [1, 2])
    torch.testing.assert_close(mixture(X).log_balance_policy, autograd_log_balance(mixture, X))
    assert Mixture([Distance(), DPO()], [1, 1])(X).log_balance.isfinite().all()


def test_pickle():
    again = pickle.loads(pickle.dumps(MIXTURES[3]))  # noqa: S301  # our own bytes
    assert repr(again) == repr(MIXTURES[3])
    assert torch.equal(again(X).per_pair, MIXTURES[3](X).per_pair)


@pytest.mark.parametrize(
    ("losses", "weights", "message"),
    [
        ([], [], "one weight for each loss, got 0 losses and 0 weights"),
        ([DPO()], [1.0, 2.0], "got 1 losses and 2 weights"),
        ([DPO()], [0.0], "loss.weights: expected a finite number above 0, got 0.0"),
        ([DPO(), SFT()], [1.0, -0.1], "got -0.1"),
        ([DPO()], [float("nan")], "got nan"),
        ([DPO()], [float("inf")], "got inf"),
        ([DPO()], ["0.9"], "got '0.9'"),
        (["dpo"], [1.0], "loss.losses: expected losses.*got 'dpo'"),
    ],
)
def test_bad_parts_are_refused(losses, weights, message):
    with pytest.raises(UserError, match=message):
        Mixture(losses, weights)


def test_missing_reference_is_told():
    with pytest.raises(UserError, match="needs reference log-probabilities"):
        Mixture([SFT(), DPO()], [1, 1])(replace(X, ref_chosen=None, ref_rejected=None))
