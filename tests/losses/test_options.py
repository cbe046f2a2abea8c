"""Every option, by what it is documented to do."""

import math
from dataclasses import replace

import pytest
import torch

from adadpo_lightning.losses import ContrastiveLoss, Sides, available_losses, build_loss
from adadpo_lightning.losses.testing import (
    check_loss,
    extreme_pairs,
    gradients,
    own_log_balance,
    plain_counterpart,
    sample_pairs,
)

ADAPTIVE = [key for key in available_losses() if key.startswith("ada")]
SUMS = ["adadpo", "adardpo", "adacpo"]
X = sample_pairs(200, seed=11)
APPLY = {True: ("margin", "gradient"), False: ("gradient",)}
SHARED = {}  # the constant in the slopes of both scores, where it is not beta

OPTIONS = [
    {"apply": "gradient"},
    {"space": "policy"},
    {"target_ratio": 1.7},
    {"alpha_w": 0.5, "alpha_l": 0.2},
    {"ceiling": 0.7},
    {"ceiling": 1e6},
    {"floor": 0.9, "ceiling": 1.3},
    {"floor": 0.6, "ceiling": 0.6},
    {"apply": "gradient", "target_ratio": 0.4, "space": "policy", "floor": 0.5},
]


FIRST = ("adadpo", "adaipo", "adasimpo", "adaorpo", "adanca", "adabdpo")


def cases():
    """All options for one loss of each kind; for each of the others every third, and the rest if there is time."""
    for i, key in enumerate(ADAPTIVE):
        for j, options in enumerate(OPTIONS):
            rare = key not in FIRST and i % 3 != j % 3
            yield pytest.param(key, options, marks=[pytest.mark.slow] if rare else [], id=f"{key}-{options}")


@pytest.mark.parametrize(("key", "options"), list(cases()))
def test_every_property_holds_under_every_option(key, options):
    check_loss(build_loss(key, **options))


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("dpo", {"beta": 2.0, "label_smoothing": 0.2}),
        ("adadpo", {"label_smoothing": 0.2}),
        ("adacpo", {"label_smoothing": 0.1, "nll_weight": 0.0}),
        ("adasimpo", {"label_smoothing": 0.1, "gamma_beta_ratio": 0.0}),
        ("rdpo", {"alpha": 0.5}),
        ("adardpo", {"alpha": 0.5, "normalize": "sequence"}),
        ("ipo", {"length_normalize": False}),
        ("adaipo", {"length_normalize": False}),
        ("adaipo", {"length_normalize": False, "normalize": "sequence"}),
        ("adadpo", {"normalize": "sequence", "space": "policy"}),
        ("adacpo", {"normalize": "sequence"}),
        ("adaorpo", {"lam": 3.0}),
        ("adafdpo", {"divergence": "forward_kl"}),
        ("adafdpo", {"divergence": "alpha", "alpha": 0.3}),
        ("adaalphapo", {"alpha": 0.0}),
        ("adaalphapo", {"alpha": -0.5, "gamma": 0.0}),
        ("adarobust", {"label_smoothing": 0.3}),
        ("adaexo", {"label_smoothing": 0.2, "beta": 1.0}),
        ("adadiscopop", {"tau": 1.0}),
        ("adadpop", {"lam": 0.0}),
        ("adabdpo", {"lam": 0.9}),
        ("adabpo", {"alpha": 1.0}),
        ("adacaldpo", {"beta": 1.0}),
        ("adasppo", {"beta": 0.5}),
        ("adanca", {"beta": 1.0, "normalize": "sequence"}),
    ],
    ids=str,
)
def test_every_property_holds_under_the_losses_own_options(key, options):
    check_loss(build_loss(key, **options))


def free_coefficient(key, **options):
    """c* itself: a ceiling that nothing reaches."""
    out = build_loss(key, ceiling=1e6, **options)(X)
    assert not out.clipped.any()
    return out.coefficient


def balanceable(key):
    """Pairs whose two gradients have a ratio."""
    return ~plain_counterpart(build_loss(key))(X).log_balance.isnan()


NOTHING = ("adasimper", "adabpo")  # to balance: c is 1


@pytest.mark.parametrize("key", ADAPTIVE)
def test_ceiling_and_floor_clip(key):
    wanted = free_coefficient(key)
    out = build_loss(key, ceiling=1.2, floor=0.8)(X)
    torch.testing.assert_close(out.coefficient, wanted.clamp(0.8, 1.2), rtol=1e-12, atol=0)
    assert torch.equal(out.clipped, wanted >= 1.2)
    if key not in (*NOTHING, "adabdpo", "adaapodown"):  # where c is on one side of 1 only
        assert 0 < out.clipped.sum() < len(out.clipped)
        assert (wanted < 0.8).any()
    constant = build_loss(key, ceiling=0.7, floor=0.7)(X).coefficient
    torch.testing.assert_close(constant, torch.full_like(constant, 0.7), rtol=1e-12, atol=0)


@pytest.mark.parametrize("key", ADAPTIVE)
def test_zero_floor_is_no_floor(key):
    assert torch.equal(build_loss(key, floor=0.0)(X).coefficient, build_loss(key)(X).coefficient)


@pytest.mark.parametrize("k", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("key", ADAPTIVE)
def test_target_ratio_scales_the_coefficient_and_is_met(key, k):
    free = balanceable(key)
    assert free.sum() > (20 if key != "adabpo" else -1)
    scaled, plain = free_coefficient(key, target_ratio=k), free_coefficient(key)
    torch.testing.assert_close(scaled, torch.where(free, k * plain, 1.0))
    measured = own_log_balance(build_loss(key, ceiling=1e6, target_ratio=k), X)[free]
    measured = measured[~measured.isnan()]
    torch.testing.assert_close(measured.exp(), torch.full_like(measured, k), rtol=1e-9, atol=0)


@pytest.mark.parametrize("key", ADAPTIVE)
def test_alphas_are_exponents_on_the_two_factors(key):
    loss = build_loss(key)
    u = loss.log_u(X)
    plain = plain_counterpart(loss)
    v = plain.variable(X)
    v = [side.detach().requires_grad_() for side in v]
    if isinstance(loss, ContrastiveLoss):  # without the constants that both scores share
        scores = plain.score(v[0]), plain.rejected_score(v[1])
        slope_w, slope_l = torch.autograd.grad(sum(scores).sum(), v)
        constant = SHARED.get(key[3:], lambda loss: getattr(loss, "beta", 1.0))(loss)
        slope_w, slope_l = slope_w / constant, slope_l / constant
    else:
        total = plain.contrast(Sides(plain.score(v[0]), plain.rejected_score(v[1])), X).sum()
        slope_w, slope_l = (slope.abs() for slope in torch.autograd.grad(total, v))
    factor_w, factor_l = u.chosen.exp() / slope_w, u.rejected.exp() / slope_l
    for a_w, a_l in ((1.0, 0.0), (0.0, 1.0), (0.3, 0.8), (-0.5, 2.0)):
        got = build_loss(key, ceiling=1e6, alpha_w=a_w, alpha_l=a_l, target_ratio=1.5)(X).coefficient
        wanted = 1.5 * factor_w**a_w / factor_l**a_l
        torch.testing.assert_close(got, torch.where(balanceable(key), wanted.clamp(max=1e6), 1.0))


@pytest.mark.parametrize("key", ADAPTIVE)
def test_zero_alphas_and_unit_clips_are_the_plain_loss(key):
    plain = plain_counterpart(build_loss(key))
    for options in ({"alpha_w": 0, "alpha_l": 0}, {"ceiling": 1, "floor": 1}):
        for apply in APPLY[isinstance(build_loss(key), ContrastiveLoss)]:
            loss = build_loss(key, apply=apply, **options)
            assert torch.equal(loss(X).per_pair, plain(X).per_pair)
            for got, wanted in zip(gradients(loss, X), gradients(plain, X), strict=True):
                assert torch.equal(got, wanted)
    if key not in NOTHING:
        assert not torch.equal(gradients(build_loss(key), X).chosen, gradients(plain, X).chosen)


@pytest.mark.parametrize("key", SUMS)
def test_sequence_normalisation_by_definition(key):
    spaces = {"policy": (X.chosen, X.rejected)}
    if build_loss(key).needs_reference:
        spaces["ratio"] = (X.chosen - X.ref_chosen, X.rejected - X.ref_rejected)
    for space, (w, r) in spaces.items():
        got = build_loss(key, space=space, normalize="sequence", ceiling=1e6)(X).coefficient
        torch.testing.assert_close(got, (w - r).exp().clamp(max=1e6), rtol=1e-10, atol=0)
        got = build_loss(key, space=space, ceiling=1e6)(X).coefficient
        torch.testing.assert_close(got, (w / X.chosen_len - r / X.rejected_len).exp())


def test_default_space_is_ratio_with_a_reference_and_policy_without():
    for key in ADAPTIVE:
        default = "ratio" if build_loss(key).needs_reference else "policy"
        assert torch.equal(build_loss(key)(X).coefficient, build_loss(key, space=default)(X).coefficient)
    assert not torch.equal(build_loss("adadpo")(X).coefficient, build_loss("adadpo", space="policy")(X).coefficient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("key", ADAPTIVE)
def test_apply_gradient_leaves_the_forward_and_scales_the_chosen_backward(key, dtype):
    loss = build_loss(key, apply="gradient")
    plain = plain_counterpart(loss)
    for x in (sample_pairs(200, seed=12, dtype=dtype), extreme_pairs(dtype)):
        out = loss(x)
        assert torch.equal(out.per_pair, plain(x).per_pair)
        got, base = gradients(loss, x), gradients(plain, x)
        assert torch.equal(got.rejected, base.rejected)
        # Exact to rounding for small coefficients too.
        eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
        torch.testing.assert_close(got.chosen, out.coefficient * base.chosen, rtol=8 * eps, atol=8 * tiny)
        assert torch.equal(out.coefficient, build_loss(key)(x).coefficient)


def test_label_smoothing_by_definition():
    for key in ("dpo", "rdpo", "cpo", "simpo", "adadpo", "adardpo", "adacpo", "adasimpo"):
        # Without smoothing, -logsigmoid(m) gives m back: m = -log(e^L - 1).
        m = -torch.expm1(build_loss(key)(X).per_pair).log()
        wanted = 0.8 * torch.log1p(torch.exp(-m)) + 0.2 * torch.log1p(torch.exp(m))
        torch.testing.assert_close(build_loss(key, label_smoothing=0.2)(X).per_pair, wanted, rtol=1e-6, atol=1e-8)


def test_ipo_on_sums_and_means():
    h_w, h_l = X.chosen - X.ref_chosen, X.rejected - X.ref_rejected
    torch.testing.assert_close(build_loss("ipo", tau=0.2, length_normalize=False)(X).per_pair, (h_w - h_l - 2.5) ** 2)
    means = h_w / X.chosen_len - h_l / X.rejected_len
    torch.testing.assert_close(build_loss("ipo", tau=0.2)(X).per_pair, (means - 2.5) ** 2)


@pytest.mark.parametrize("key", ADAPTIVE)
def test_rewards_are_the_plain_counterparts(key):
    loss = build_loss(key)
    out, plain = loss(X), plain_counterpart(loss)(X)
    assert torch.equal(out.chosen_rewards, plain.chosen_rewards)
    assert torch.equal(out.rejected_rewards, plain.rejected_rewards)


def test_rewards_by_definition():
    h, lbar = X.chosen - X.ref_chosen, X.chosen / X.chosen_len
    wanted = {
        "dpo": 0.1 * h,
        "rdpo": 0.1 * h,
        "ipo": h / X.chosen_len,
        "simpo": 2.0 * lbar,
        "cpo": 0.1 * X.chosen,
        "orpo": 0.1 * lbar,
        "sft": torch.zeros_like(h),
    }
    for key, rewards in wanted.items():
        torch.testing.assert_close(build_loss(key)(X).chosen_rewards, rewards, msg=key)


def test_balance_is_reported_in_policy_space_on_one_axis_for_all():
    """Where both log-ratio and log-probability spaces exist, they differ by the reference's own per-token means."""
    out = build_loss("adadpo")(X)
    shift = X.ref_chosen / X.chosen_len - X.ref_rejected / X.rejected_len
    torch.testing.assert_close(out.log_balance_policy, out.log_balance - shift, rtol=1e-12, atol=1e-12)
    assert math.isclose(out.log_balance[~out.clipped].abs().max().item(), 0.0, abs_tol=1e-12)


def test_weight_column_scales_value_gradient_and_nll():
    weight = torch.linspace(0.0, 3.0, len(X.chosen), dtype=torch.float64)
    for key in available_losses():
        loss = build_loss(key)
        weighted = replace(X, weight=weight)
        for got, base in zip(gradients(loss, weighted), gradients(loss, X), strict=True):
            torch.testing.assert_close(got, weight * base)
        if loss(X).nll is not None:
            torch.testing.assert_close(
                gradients(loss, weighted, "nll").chosen, weight * gradients(loss, X, "nll").chosen
            )
        assert torch.equal(loss(weighted).coefficient, loss(X).coefficient)
