"""Plackett-Luce DPO: against the probability of a ranking by counting, and the balance of its twin by autograd."""

import itertools

import pytest
import torch

from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import DPO, PLDPO, AdaDPO, AdaPLDPO, Mixture, build_loss
from adadpo_lightning.losses.testing import sample_pairs
from adadpo_lightning.types import PairLogps

SIZES = (4, 2, 3)  # answers of each list
BETA = 0.3


def answers(seed=0):
    """Log-ratios of the answers of each list, the reference's log-probabilities, and lengths."""
    generator = torch.Generator().manual_seed(seed)
    draw = [[torch.rand(k, generator=generator, dtype=torch.float64) for k in SIZES] for _ in range(2)]
    lengths = [torch.randint(1, 20, (k,), generator=generator) for k in SIZES]
    logps = [(-2.0 * n * u).requires_grad_() for u, n in zip(draw[0], lengths, strict=True)]
    refs = [p.detach() + 0.5 * n * (u - 0.5) for p, u, n in zip(logps, draw[1], lengths, strict=True)]
    return logps, refs, lengths


def chained(logps, refs, lengths):
    """The lists as adjacent pairs."""

    def sides(lists):
        return torch.cat([v[:-1] for v in lists]), torch.cat([v[1:] for v in lists])

    rest = torch.cat([torch.arange(len(v) - 2, -1, -1) for v in logps])
    (chosen, rejected), (ref_chosen, ref_rejected) = sides(logps), sides(refs)
    return PairLogps(chosen, rejected, *sides(lengths), ref_chosen, ref_rejected, list_rest=rest)


def probability(weights):
    """Of drawing items in this order, each in proportion to its weight among those that are left (Luce 1959)."""
    product, left = 1.0, list(weights)
    while left:
        product = product * left[0] / sum(left)
        left.pop(0)
    return product


def test_probabilities_of_all_rankings_sum_to_one():
    weights = [0.3, 1.1, 2.0, 0.6]
    total = sum(probability(order) for order in itertools.permutations(weights))
    assert total == pytest.approx(1.0, abs=1e-12)


def test_a_list_has_the_loss_of_its_ranking():
    logps, refs, lengths = answers()
    wanted = torch.stack(
        [-probability((BETA * (p - r)).exp().unbind()).log() for p, r in zip(logps, refs, strict=True)]
    )
    per_pair = PLDPO(beta=BETA)(chained(logps, refs, lengths)).per_pair
    got = torch.stack([part.sum() for part in per_pair.split([k - 1 for k in SIZES])])
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)
    for mine, independent in zip(
        torch.autograd.grad(got.sum(), logps), torch.autograd.grad(wanted.sum(), logps), strict=True
    ):
        torch.testing.assert_close(mine, independent, rtol=1e-12, atol=1e-15)


def test_gradient_by_finite_differences():
    logps, refs, lengths = answers(seed=3)

    def loss(*values):
        return PLDPO(beta=BETA)(chained(values, refs, lengths)).per_pair

    assert torch.autograd.gradcheck(loss, logps)


@pytest.mark.parametrize(("mine", "other"), [(PLDPO, DPO), (AdaPLDPO, AdaDPO)])
def test_lists_of_two_answers_are_pairs(mine, other):
    x = sample_pairs(32, seed=5)
    alone = torch.zeros_like(x.chosen_len)
    for given in (None, alone):
        a, b = mine(beta=BETA)(_with_rest(x, given)), other(beta=BETA)(x)
        for name in ("per_pair", "coefficient", "chosen_rewards", "log_balance", "log_balance_policy"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-12, atol=1e-12)


def _with_rest(x, rest):
    values = {name: getattr(x, name) for name in ("chosen", "rejected", "chosen_len", "rejected_len")}
    return PairLogps(**values, ref_chosen=x.ref_chosen, ref_rejected=x.ref_rejected, list_rest=rest)


@pytest.mark.parametrize("space", ["ratio", "policy"])
@pytest.mark.parametrize("apply", ["margin", "gradient"])
@pytest.mark.parametrize("plain", [True, False])
def test_balance_of_each_choice(plain, space, apply):
    """The twin makes ``g_k / u_k`` the sum of ``g_j / u_j`` over the answers below, choice by choice, by autograd."""
    logps, refs, lengths = answers(seed=7)
    x = chained(logps, refs, lengths)
    loss = PLDPO(beta=BETA) if plain else AdaPLDPO(beta=BETA, ceiling=1e5, space=space, apply=apply)
    output, pair = loss(x), 0
    for at, (p, r, n) in enumerate(zip(logps, refs, lengths, strict=True)):
        for k in range(len(p) - 1):
            slopes = torch.autograd.grad(output.per_pair[pair], logps[at], retain_graph=True)[0].abs()
            own_u = (p if space == "policy" and not plain else p - r) / n
            in_space, reported = [], []
            for log_u, own in ((own_u, output.log_balance), (p / n, output.log_balance_policy)):
                in_u = slopes / log_u.exp()
                assert slopes[:k].eq(0).all()
                measured = (in_u[k] / in_u[k + 1 :].sum()).log()
                reported.append(own[pair].item() - measured.item())
                in_space.append(measured.item())
            assert reported == pytest.approx([0.0, 0.0], abs=1e-9)
            if not plain:
                assert in_space[0] == pytest.approx(0.0, abs=1e-9)
            pair += 1


def test_lists_in_one_batch_do_not_affect_each_other():
    logps, refs, lengths = answers()
    together = PLDPO()(chained(logps, refs, lengths)).per_pair
    alone = torch.cat([PLDPO()(chained([p], [r], [n])).per_pair for p, r, n in zip(logps, refs, lengths, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("key", ["pldpo", "adapldpo"])
def test_extremes_of_long_lists_are_finite(key, dtype):
    values = torch.tensor([0.0, -6e4, -1.0, -6e4, 0.0], dtype=dtype)
    for logps in (values, values.flip(0)):
        leaf = logps.clone().requires_grad_()
        refs = [torch.full_like(values, -100.0)]
        output = build_loss(key)(chained([leaf], refs, [torch.tensor([1, 3000, 1, 1, 3000])]))
        output.per_pair.sum().backward()
        assert output.per_pair.isfinite().all()
        assert leaf.grad.isfinite().all()


def test_mixtures():
    assert Mixture([PLDPO(), build_loss("sft")], [1.0, 0.1]).needs_lists
    with pytest.raises(UserError, match="no joint gradient balance"):
        Mixture([PLDPO(), DPO()], [1.0, 1.0])
