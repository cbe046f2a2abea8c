"""The losses that TRL has not, against the formulas of their papers in 40 digits: values and gradients.

Written over probabilities, as the papers do, and not over log-ratios.
"""

import pytest
import torch

from adadpo_lightning.losses import AdaDPO, build_loss
from adadpo_lightning.losses.testing import gradients, sample_pairs

mp = pytest.importorskip("mpmath").mp
mp.dps = 40
X = sample_pairs(12, seed=31)


def sigma(x):
    return 1 / (1 + mp.exp(-x))


def rdpo(pi_w, pi_l, ref_w, ref_l, n_w, n_l, beta, alpha):
    return -mp.log(sigma(beta * mp.log(pi_w / ref_w) - beta * mp.log(pi_l / ref_l) + alpha * (n_w - n_l)))


def dposhift(pi_w, pi_l, ref_w, ref_l, n_w, n_l, beta, lam):
    return -mp.log(sigma(beta * mp.log(pi_w / ref_w) - lam * beta * mp.log(pi_l / ref_l)))


def dpop(pi_w, pi_l, ref_w, ref_l, n_w, n_l, beta, lam):
    penalty = max(mp.mpf(0), mp.log(ref_w / pi_w))
    return -mp.log(sigma(beta * (mp.log(pi_w / ref_w) - mp.log(pi_l / ref_l) - lam * penalty)))


def bdpo(pi_w, pi_l, ref_w, ref_l, n_w, n_l, beta, lam):
    mixed = lam * pi_l + (1 - lam) * ref_l
    return -mp.log(sigma(beta * mp.log(pi_w / ref_w) - beta * mp.log(mixed / ref_l)))


def minordpo(pi_w, pi_l, ref_w, ref_l, n_w, n_l, beta):
    return -mp.log(sigma(beta * mp.log(pi_w / ref_w) - beta * max(mp.mpf(0), mp.log(pi_l / ref_l))))


def bpo(pi_w, pi_l, ref_w, ref_l, n_w, n_l, beta, alpha):
    return -mp.log(sigma(min(beta * mp.log(pi_w / ref_w), -alpha * beta * mp.log(pi_l / ref_l))))


def caldpo(pi_w, pi_l, ref_w, ref_l, n_w, n_l, beta):
    r_w, r_l = mp.log(pi_w / ref_w), mp.log(pi_l / ref_l)
    calibration = (r_w - 1 / (2 * beta)) ** 2 + (r_l + 1 / (2 * beta)) ** 2
    return -mp.log(sigma(r_w - r_l)) + calibration / 2


def simper(pi_w, pi_l, ref_w, ref_l, n_w, n_l):
    return -(pi_w ** (mp.mpf(1) / n_w)) + pi_l ** (mp.mpf(1) / n_l)


CASES = [
    (rdpo, {"beta": 0.3, "alpha": 0.02}),
    (dposhift, {"beta": 0.2, "lam": 0.6}),
    (dpop, {"beta": 0.1, "lam": 50.0}),
    (dpop, {"beta": 0.3, "lam": 5.0}),
    (bdpo, {"beta": 0.1, "lam": 0.5}),
    (bdpo, {"beta": 1.0, "lam": 0.05}),
    (minordpo, {"beta": 0.1}),
    (bpo, {"beta": 0.1, "alpha": 0.3}),
    (caldpo, {"beta": 0.002}),
    (caldpo, {"beta": 0.5}),
    (simper, {}),
]


@pytest.mark.parametrize(("formula", "options"), CASES, ids=lambda case: getattr(case, "__name__", str(case)))
def test_value_and_gradient(formula, options):
    loss = build_loss(formula.__name__, **options)
    values, slopes = loss(X).per_pair, gradients(loss, X)
    for i in range(len(X.chosen)):
        l_w, l_l, r_w, r_l = (mp.mpf(t[i].item()) for t in (X.chosen, X.rejected, X.ref_chosen, X.ref_rejected))
        lengths = int(X.chosen_len[i]), int(X.rejected_len[i])

        def by_paper(l_w, l_l, r_w=r_w, r_l=r_l, lengths=lengths):
            probabilities = (mp.exp(value) for value in (l_w, l_l, r_w, r_l))
            return formula(*probabilities, *lengths, **{name: mp.mpf(value) for name, value in options.items()})

        assert values[i].item() == pytest.approx(float(by_paper(l_w, l_l)), rel=1e-12)
        for side, order in zip(slopes, ((1, 0), (0, 1)), strict=True):
            assert side[i].item() == pytest.approx(float(mp.diff(by_paper, (l_w, l_l), order)), rel=1e-9, abs=1e-15)


def test_dpo_shift_is_a_constant_coefficient():
    """The control of the studies, ``floor = ceiling``, is that published method."""
    shift, control = build_loss("dposhift", beta=0.2, lam=0.8), AdaDPO(beta=0.16, floor=1.25, ceiling=1.25)
    torch.testing.assert_close(shift(X).per_pair, control(X).per_pair, rtol=1e-12, atol=0)
    for got, wanted in zip(gradients(shift, X), gradients(control, X), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)


def test_limits_of_the_remedies_are_dpo():
    wanted = build_loss("dpo")(X).per_pair
    for key, options in {
        "dposhift": {"lam": 1.0},
        "dpop": {"lam": 0.0},
        "bdpo": {"lam": 1 - 1e-12},
        "fdpo": {"divergence": "alpha", "alpha": 1e-9},
    }.items():
        torch.testing.assert_close(build_loss(key, **options)(X).per_pair, wanted, rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.parametrize("alpha", [1e-9, 0.0, -1e-9])
def test_alphapo_tends_to_simpo(alpha):
    wanted = build_loss("simpo", beta=2.5, gamma_beta_ratio=0.04)(X).per_pair
    torch.testing.assert_close(build_loss("alphapo", alpha=alpha)(X).per_pair, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_powers_continue_on_their_tangent(alpha):
    """Beyond exponents of 40 the scores are finite, and rise with a constant slope."""
    from adadpo_lightning.losses.functional import power_score, power_score_log_slope

    v = torch.tensor([-20.0 / alpha, -39.999 / alpha, -40.001 / alpha, -1e5], dtype=torch.float64, requires_grad=True)
    score = power_score(v, alpha)
    slope = torch.autograd.grad(score.sum(), v)[0]
    torch.testing.assert_close(slope.log(), power_score_log_slope(v.detach(), alpha))
    exact = [(1 - mp.exp(-alpha * mp.mpf(value.item()))) / alpha for value in v[:2]]
    assert score[:2].tolist() == pytest.approx([float(value) for value in exact], rel=1e-12)
    assert score.isfinite().all()
    assert slope[2] == slope[3]
