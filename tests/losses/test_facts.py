"""The method's facts, for every loss of the registry: over drawn lengths and log-probabilities, by autograd."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adadpo_lightning.losses import Adaptive, ContrastiveLoss, PairwiseLoss, available_losses, build_loss
from adadpo_lightning.losses.testing import (
    EXTREME_LOGPS,
    check_loss,
    extreme_pairs,
    gradients,
    own_log_balance,
    plain_counterpart,
    sample_pairs,
    with_token_sums,
)
from adadpo_lightning.types import PairLogps

KEYS = available_losses()
PAIRWISE = [key for key in KEYS if isinstance(build_loss(key), PairwiseLoss)]
CONTRASTIVE = [key for key in KEYS if isinstance(build_loss(key), ContrastiveLoss)]
ADAPTIVE = [key for key in KEYS if isinstance(build_loss(key), Adaptive)]
# These weigh the two answers differently even where the policy equals the reference.
LOPSIDED = {"adadposhift", "adabdpo", "adabpo"}
REFERENCE = [key for key in ADAPTIVE if build_loss(key).needs_reference and key not in LOPSIDED]

FIRST_SIX = {"dpo", "rdpo", "ipo", "simpo", "cpo", "orpo"}
log_probability = st.sampled_from(EXTREME_LOGPS) | st.floats(-1e5, -1e-8) | st.floats(-60.0, 0.0)
length = st.sampled_from([1, 2, 5000]) | st.integers(1, 5000)
row = st.tuples(*[log_probability] * 4, length, length)


def examples(key):
    """Fewer for the losses that share all their code but a formula with the first six."""
    return settings(deadline=None, max_examples=25 if key.removeprefix("ada") in FIRST_SIX else 4)


@st.composite
def drawn_pairs(draw, dtype=torch.float64):
    rows = draw(st.lists(row, min_size=1, max_size=6))
    chosen, rejected, ref_chosen, ref_rejected, n_w, n_l = zip(*rows, strict=True)
    sums = [torch.tensor(column, dtype=dtype) for column in (chosen, rejected, ref_chosen, ref_rejected)]
    return with_token_sums(PairLogps(sums[0], sums[1], torch.tensor(n_w), torch.tensor(n_l), sums[2], sums[3]))


def test_every_plain_pairwise_loss_has_a_twin():
    assert {f"ada{key}" for key in PAIRWISE if key not in ADAPTIVE} == set(ADAPTIVE)
    assert set(CONTRASTIVE) >= FIRST_SIX


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("key", KEYS)
def test_reusable_check(key, seed):
    check_loss(build_loss(key), seed=seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("key", KEYS)
def test_all_is_finite(key, dtype):
    loss = build_loss(key)

    @examples(key)
    @given(drawn_pairs(dtype))
    def holds(x):
        out = loss(x)
        for name, value in vars(out).items():
            # A pair with a gradient on one side only has no balance.
            assert value is None or value.isfinite().all() or ("balance" in name and not value.isinf().any()), name
        for grad in gradients(loss, x):
            assert grad.isfinite().all()
        assert out.reduce(1, 1).isfinite()

    holds()


# Fact 1: at step 0 AdaDPO is DPO.


@pytest.mark.parametrize("key", REFERENCE)
def test_policy_equal_to_reference_gives_the_plain_loss(key):
    loss = build_loss(key)
    plain = plain_counterpart(loss)

    @examples(key)
    @given(drawn_pairs())
    def holds(x):
        x = replace(x, ref_chosen=x.chosen, ref_rejected=x.rejected)
        assert loss(x).coefficient.tolist() == [1.0] * len(x.chosen)
        assert torch.equal(loss(x).per_pair, plain(x).per_pair)
        for got, wanted in zip(gradients(loss, x), gradients(plain, x), strict=True):
            assert torch.equal(got, wanted)

    holds()


# Fact 2: where no clip is active, g_w / g_l = k.


def unclipped(out):
    return (out.coefficient > 0) & ~out.clipped


@pytest.mark.parametrize("k", [1.0, 0.6, 1.8])
@pytest.mark.parametrize("key", ADAPTIVE)
def test_gradients_balance(key, k):
    loss = build_loss(key, target_ratio=k)

    @examples(key)
    @given(drawn_pairs())
    def holds(x):
        measured = own_log_balance(loss, x)[unclipped(loss(x))]
        measured = measured[~measured.isnan()]  # NaN: a gradient below the smallest number
        assert torch.allclose(measured, torch.full_like(measured, math.log(k)), atol=1e-9, rtol=0)

    holds()


@pytest.mark.parametrize("key", ADAPTIVE)
def test_gradients_balance_and_the_plain_ones_do_not(key):
    loss, x = build_loss(key), sample_pairs(400, seed=2)
    measured = own_log_balance(loss, x)
    free = unclipped(loss(x)) & ~measured.isnan()  # NaN: a side without gradient
    if key == "adabpo":  # every pair has its gradient on one side
        assert not free.any()
        return
    assert free.sum() > (5 if key == "adaapodown" else 50)
    torch.testing.assert_close(measured[free].exp(), torch.ones_like(measured[free]), rtol=1e-9, atol=0)
    plain = own_log_balance(plain_counterpart(loss), x)[free]
    if key != "adasimper":  # balanced from the start
        assert plain[~plain.isnan()].abs().mean() > 0.05


# Fact 3: c never exceeds C.


@pytest.mark.parametrize("ceiling", [0.3, 1.0, 2.0, 2.5])
@pytest.mark.parametrize("key", ADAPTIVE)
def test_coefficient_never_exceeds_its_ceiling(key, ceiling):
    loss = build_loss(key, ceiling=ceiling)

    @examples(key)
    @given(drawn_pairs(torch.float32) | drawn_pairs(torch.float64))
    def holds(x):
        out = loss(x)
        assert (out.coefficient <= ceiling).all()
        assert (out.coefficient >= 0).all()

    holds()
    if key in ("adasimper", "adabpo"):  # which have nothing to balance
        return
    extremes = loss(extreme_pairs())
    assert extremes.clipped.any()
    assert not extremes.clipped.all()
    assert (extremes.coefficient[extremes.clipped] >= ceiling * (1 - 1e-6)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ceiling_holds_for_vectorised_exponentials_too(dtype):
    """The bound is found with one number; long batches take another code path of `exp`."""
    x = sample_pairs(67, dtype=dtype)
    x = replace(x, chosen=torch.zeros_like(x.chosen), ref_chosen=torch.full_like(x.chosen, -1e4))
    for ceiling in torch.linspace(0.2, 5.0, 200).tolist():
        c = build_loss("adadpo", ceiling=ceiling)(x).coefficient
        assert (c <= ceiling).all()
        assert (c >= ceiling * (1 - 1e-6)).all()


# Fact 4 is `test_against_trl` and, for what TRL has not, `test_against_papers`.


# The coefficient, and what must not flow through it.


def test_coefficient_is_the_methods_table():
    x = sample_pairs(64, seed=9)
    hbar_w, hbar_l = (x.chosen - x.ref_chosen) / x.chosen_len, (x.rejected - x.ref_rejected) / x.rejected_len
    p_w, p_l = (x.chosen / x.chosen_len).exp(), (x.rejected / x.rejected_len).exp()
    table = {
        "adadpo": (hbar_w - hbar_l).exp(),
        "adardpo": (hbar_w - hbar_l).exp(),
        "adaipo": (hbar_w - hbar_l).exp(),
        "adasimpo": p_w / p_l,
        "adacpo": p_w / p_l,
        "adaorpo": p_w * (1 - p_w) / (p_l * (1 - p_l)),
    }
    for key, wanted in table.items():
        torch.testing.assert_close(build_loss(key)(x).coefficient, wanted.clamp(max=2.0), msg=key)
        torch.testing.assert_close(
            build_loss(key, space="policy")(x).coefficient,
            (table["adaorpo"] if key == "adaorpo" else p_w / p_l).clamp(max=2.0),
        )


def test_coefficient_of_the_other_twins_by_hand():
    """``k (g_l / u_l) / (g_w / u_w)`` with the derivatives of each loss written out."""
    x = sample_pairs(64, seed=9)
    h_w, h_l = x.chosen - x.ref_chosen, x.rejected - x.ref_rejected
    u = (h_w / x.chosen_len - h_l / x.rejected_len).exp()
    lbar_w, lbar_l = x.chosen / x.chosen_len, x.rejected / x.rejected_len
    s = torch.sigmoid

    def bell(r):
        return s(r) * s(-r)

    gradient_ratio = {  # g_l / g_w
        **dict.fromkeys(
            ["adahinge", "adarobust", "adaexo", "adadiscopop", "adalndpo", "adalddpo", "adawpo", "adapldpo"],
            torch.ones_like(u),
        ),
        "adafdpo": s(-h_l) / s(-h_w),
        "adadposhift": torch.full_like(u, 0.75),
        "adadpop": torch.ones_like(u).masked_fill(h_w < 0, 1 / 51),
        "adabdpo": h_l.exp() / (h_l.exp() + 1),
        "adaminordpo": torch.ones_like(u).masked_fill(h_l < 0, math.nan),
        "adabpo": torch.full_like(u, math.nan),
        "adacaldpo": (s(h_l - h_w) + h_l + 250).abs() / (-s(h_l - h_w) + h_w - 250).abs(),
        "adaapozero": s(0.1 * h_l) * s(-0.1 * h_l) / (s(0.1 * h_w) * s(-0.1 * h_w)),
        "adaapodown": bell(0.1 * (h_w - h_l)) / (bell(0.1 * h_w) - bell(0.1 * (h_w - h_l))).abs(),
        "adanca": 0.5 * s(0.01 * h_l) / (s(-0.01 * h_w) - 0.5 * s(0.01 * h_w)).abs(),
        "adabco": s(0.01 * h_l) / s(-0.01 * h_w),
        "adasppo": (h_l + 500).abs() / (h_w - 500).abs(),
    }
    reference_free = {  # g_l u_w / (g_w u_l) in policy space
        "adaalphapo": (1.25 * (lbar_w - lbar_l)).exp(),
        "adasimper": torch.ones_like(u),
    }
    assert {*gradient_ratio, *reference_free} == {key for key in ADAPTIVE if key[3:] not in FIRST_SIX}
    wanted = {key: u * ratio for key, ratio in gradient_ratio.items()} | reference_free
    for key, c in wanted.items():
        expected = torch.where(c.isnan(), 1.0, c.clamp(max=2.0))  # NaN: a side without gradient
        torch.testing.assert_close(build_loss(key)(x).coefficient, expected, msg=key)


@pytest.mark.parametrize("key", ADAPTIVE)
def test_no_gradient_through_the_coefficient(key):
    """The gradient equals that of the loss with the coefficient frozen at its value, by central differences."""
    loss, x, step = build_loss(key), sample_pairs(32, seed=4), 1e-6
    # The pair's own coefficient, frozen: floor = ceiling differs per pair, so one loss for each.
    for i in range(8):
        pair = PairLogps(*(None if v is None else v[i : i + 1] for v in vars(x).values()))
        c = loss(pair).coefficient.item()
        frozen = replace(loss, floor=c, ceiling=c)

        if not isinstance(loss, ContrastiveLoss):  # c acts in the backward pass alone
            frozen = plain_counterpart(loss)

        def value(delta, frozen=frozen, pair=pair):
            shifted = replace(
                pair,
                chosen=pair.chosen + delta,
                chosen_log_collision=pair.chosen_log_collision + delta,  # so that wpo's weight stays the same
            )
            return frozen(shifted).per_pair.item()

        numeric = (value(step) - value(-step)) / (2 * step) * (1 if isinstance(loss, ContrastiveLoss) else c)
        assert gradients(loss, pair).chosen.item() == pytest.approx(numeric, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("key", CONTRASTIVE)
def test_chosen_is_pushed_up_and_rejected_down_or_ipo_overshoots(key):
    x = sample_pairs(64, seed=5)
    up, down = gradients(build_loss(key), x)
    assert (up * down <= 0).all()
    if key.removeprefix("ada") not in ("ipo", "exo", "discopop"):  # whose link is not monotone
        assert (up <= 0).all()
        assert (down >= 0).all()
        assert (down > 0).sum() > 20


# Half precision, batches of one, extra columns.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("key", KEYS)
def test_half_precision_is_computed_in_float32(key, dtype):
    half = sample_pairs(16, dtype=dtype)
    wide = half.in_float32()
    assert wide.chosen.dtype == torch.float32
    out, wanted = build_loss(key)(half), build_loss(key)(wide)
    for name, value in vars(out).items():
        assert value is None or value.dtype in (torch.float32, torch.bool), name
        if value is not None:
            torch.testing.assert_close(value, getattr(wanted, name), rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("key", [key for key in CONTRASTIVE if build_loss(key).takes_margin])
def test_margin_column_moves_the_margin(key):
    """A target margin t shifts the score difference by -t: so does a shift of the loss's own offset."""
    x = sample_pairs(8, seed=6)
    column = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64)
    loss = build_loss(key)
    plain = plain_counterpart(loss) if key in ADAPTIVE else loss
    v = plain.variable(x)
    margin = loss(x).coefficient * plain.score(v.chosen) - plain.rejected_score(v.rejected) + plain.offset(x)
    own_weight = 1.0 if loss.pair_weight(x) is None else loss.pair_weight(x)
    torch.testing.assert_close(loss(replace(x, margin=column)).per_pair, own_weight * plain.link(margin - column))


@pytest.mark.parametrize("key", KEYS)
def test_shares_of_micro_batches_sum_to_the_whole_step(key):
    x, loss = sample_pairs(8, seed=7), build_loss(key)
    tokens = int(x.chosen_len.sum())
    whole = loss(x).reduce(8, tokens)
    parts = [
        loss(PairLogps(*(None if v is None else v[a:b] for v in vars(x).values()))).reduce(8, tokens)
        for a, b in ((0, 1), (1, 6), (6, 8))
    ]
    torch.testing.assert_close(sum(parts), whole)
    nll = loss(x).nll
    assert (nll is not None) == any(key.endswith(k) for k in ("cpo", "orpo", "sft"))
    if nll is not None:
        torch.testing.assert_close(whole - loss(x).per_pair.mean(), -x.chosen.sum() / tokens)
