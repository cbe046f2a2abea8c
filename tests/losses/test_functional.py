"""The stable pieces against arithmetic with 400 digits, and their gradients against finite differences."""

from decimal import Decimal, localcontext

import pytest
import torch

from adadpo_lightning.losses.functional import log1mexp, log_odds, log_one_minus_p, logistic_link

LOGPS = [
    -1e-12,
    -1e-9,
    -1e-8,
    -1e-3,
    -0.5,
    -0.693,
    -0.6931471805599453,
    -0.694,
    -1.0,
    -5.0,
    -15.0,
    -20.0,
    -40.0,
    -700.0,
]


def exact_log_one_minus_p(logp):
    with localcontext() as context:
        context.prec = 400
        return (1 - Decimal(logp).exp()).ln()


@pytest.mark.parametrize("logp", LOGPS)
def test_log1mexp_and_log_odds_against_400_digits(logp):
    exact = exact_log_one_minus_p(logp)
    x = torch.tensor(logp, dtype=torch.float64)
    assert log1mexp(x).item() == pytest.approx(float(exact), rel=1e-14)
    assert log_one_minus_p(x).item() == pytest.approx(float(exact), rel=1e-14)
    assert log_odds(x).item() == pytest.approx(float(Decimal(logp) - exact), rel=1e-14, abs=2e-16)


@pytest.mark.parametrize("logp", [x for x in LOGPS if x > -80])
def test_float32_keeps_its_digits(logp):
    x = torch.tensor(logp, dtype=torch.float32)
    exact = exact_log_one_minus_p(x.item())
    assert log1mexp(x).item() == pytest.approx(float(exact), rel=3e-7)
    assert log_odds(x).item() == pytest.approx(float(Decimal(x.item()) - exact), rel=3e-7, abs=1e-7)


@pytest.mark.parametrize("logp", LOGPS)
def test_gradients_in_closed_form(logp):
    with localcontext() as context:
        context.prec = 400
        p = Decimal(logp).exp()
        wanted = float(-p / (1 - p)), float(1 / (1 - p))
    for function, slope in zip((log1mexp, log_odds), wanted, strict=True):
        x = torch.tensor(logp, dtype=torch.float64, requires_grad=True)
        function(x).backward()
        assert x.grad.item() == pytest.approx(slope, rel=1e-13)


def test_gradients_by_finite_differences():
    x = torch.tensor([-0.01, -0.3, -0.8, -2.0, -9.0], dtype=torch.float64, requires_grad=True)
    for function in (log1mexp, log_odds, logistic_link, lambda m: logistic_link(m, 0.2)):
        assert torch.autograd.gradcheck(function, (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_the_ends(dtype):
    ends = torch.tensor([0.0, -1e-38, -1e-20, -1e-8, -1e5, -1e30], dtype=dtype, requires_grad=True)
    for function in (log_odds, log_one_minus_p):
        value = function(ends)
        grad = torch.autograd.grad(value.sum(), ends)[0]
        assert value.isfinite().all()
        assert grad.isfinite().all()
    assert (log_odds(ends).diff() <= 0).all()


def test_logistic_link_by_definition():
    m = torch.linspace(-30, 30, 61, dtype=torch.float64)
    up, down = torch.log1p(torch.exp(-m)), torch.log1p(torch.exp(m))
    torch.testing.assert_close(logistic_link(m), up, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(logistic_link(m, 0.3), 0.7 * up + 0.3 * down, rtol=1e-10, atol=1e-12)
    extreme = torch.tensor([-1e6, 1e6])
    assert logistic_link(extreme).tolist() == [1e6, 0.0]
