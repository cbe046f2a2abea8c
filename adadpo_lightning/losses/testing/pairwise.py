"""What holds for pairwise losses, ``contrast(c * score(v_w), rejected_score(v_l))``: each piece, and their assembly."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from adadpo_lightning.errors import UserError
from adadpo_lightning.losses.base import ContrastiveLoss, PairwiseLoss
from adadpo_lightning.losses.sides import Sides
from adadpo_lightning.losses.testing.autograd import as_leaf, grad, gradients, own_log_balance
from adadpo_lightning.losses.testing.expect import close, expect

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.types import PairLogps


def check_pieces(loss: PairwiseLoss, x: PairLogps) -> None:
    """Variable, scores, slopes and offset are what the assembly and the coefficient take them for."""
    leaf, sides = as_leaf(x)
    v, lengths = loss.variable(leaf), (x.chosen_len, x.rejected_len)
    for i, (own, other) in enumerate((sides, sides[::-1])):
        slope, across = grad(v[i].sum(), own, other)
        expect(not across.any(), "variable: one side depends on the other answer")
        wanted = torch.ones_like(own) if loss.sums_tokens else 1.0 / lengths[i].to(own.dtype)
        close(f"dv/dl for sums_tokens = {loss.sums_tokens}", slope, wanted)
    points = torch.cat([v.chosen, v.rejected]).detach().requires_grad_()
    slopes = Sides(*(grad(score(points).sum(), points)[0] for score in (loss.score, loss.rejected_score)))
    expect(bool((slopes.chosen > 0).all()), "score: must increase with its variable")
    expect(bool((slopes.rejected >= 0).all()), "rejected_score: must not decrease with its variable")
    if isinstance(loss, ContrastiveLoss):
        claimed = Sides(loss.log_slope(points.detach()), loss.rejected_log_slope(points.detach()))
        constant = (slopes.chosen.log() - claimed.chosen)[:1]
        for name, slope, log_slope in zip(("log_slope", "rejected_log_slope"), slopes, claimed, strict=True):
            wanted = (slope.log() - constant).exp()
            close(f"{name}, against autograd and up to one constant", log_slope.exp(), wanted)
        offset = loss.offset(leaf)
        expect(not (torch.is_tensor(offset) and offset.requires_grad), "offset: depends on the policy")


def check_assembly(loss: PairwiseLoss, x: PairLogps) -> None:
    """Value and gradient are those of ``contrast(c a_w, a_l)`` with c held constant."""
    if loss.takes_margin:
        without = loss(x).per_pair
        x = replace(x, margin=torch.linspace(-0.5, 0.5, len(x.chosen), dtype=x.chosen.dtype))
        expect(not torch.equal(loss(x).per_pair, without), "takes_margin is True, yet target margins change nothing")
    else:
        _check_margin_is_refused(loss, x)
    c = loss(x).coefficient.detach()
    in_backward = getattr(loss, "apply", "margin") == "gradient"
    leaf, sides = as_leaf(x)
    v = loss.variable(leaf)
    a_w, a_l = loss.score(v.chosen), loss.rejected_score(v.rejected)
    wanted = _contrast(loss, Sides(a_w if in_backward else c * a_w, a_l), leaf)
    if (own_weight := loss.pair_weight(x)) is not None:
        wanted = own_weight * wanted
    close("per_pair, against the contrast of c a_w and a_l", loss(x).per_pair, wanted.detach())
    wanted_grad = Sides(*grad(wanted.sum(), *sides))
    if in_backward:
        wanted_grad = Sides(c * wanted_grad.chosen, wanted_grad.rejected)
    for name, got, want in zip(("chosen", "rejected"), gradients(loss, x), wanted_grad, strict=True):
        close(f"gradient of {name} with the coefficient held constant", got, want)


def check_finite_differences(loss: PairwiseLoss, x: PairLogps) -> None:
    """The gradient without a coefficient is the finite difference of the value; kinks are left out."""

    def value(logps: Sides) -> Tensor:
        pairs = replace(x, chosen=logps.chosen, rejected=logps.rejected)
        v = loss.variable(pairs)
        return _contrast(loss, Sides(loss.score(v.chosen), loss.rejected_score(v.rejected)), pairs)

    leaf, leaves = as_leaf(x)
    slopes, here = grad(value(leaves).sum(), *leaves), value(Sides(x.chosen, x.rejected))
    for i, name in enumerate(("chosen", "rejected")):
        numeric, kinks = [], []
        for step in (1e-5, 1e-6):
            at = (leaf.chosen.detach(), leaf.rejected.detach())
            size = step * (1.0 + at[i].abs())
            up, down = (
                value(Sides(*(side + sign * size if i == j else side for j, side in enumerate(at)))) for sign in (1, -1)
            )
            numeric.append((up - down) / (2 * size))
            kinks.append((up - 2 * here + down).abs() / size)
        smooth = kinks[1] < 0.2 * kinks[0] + 1e-6  # the difference of both one-sided slopes shrinks with the step
        expect(bool(smooth.any()), "the loss has a kink at every sampled pair")
        gap = ((numeric[1] - slopes[i]).abs() / (1.0 + slopes[i].abs()))[smooth].max().item()
        expect(gap < 1e-5, f"gradient of {name}: differs from finite differences by up to {gap}")


def check_own_balance(loss: PairwiseLoss, x: PairLogps) -> None:
    """The reported balance of the gradients is the one that autograd measures."""
    reported = loss(x).log_balance
    expect(reported is not None, "log_balance: not reported")
    close("log_balance, against autograd", reported, own_log_balance(loss, x), skip_nan=True)


def _contrast(loss: PairwiseLoss, scores: Sides, x: PairLogps) -> Tensor:
    """The contrast; written out for a loss of one margin."""
    if not isinstance(loss, ContrastiveLoss):
        return loss.contrast(scores, x)
    margin = scores.chosen - scores.rejected + loss.offset(x)
    return loss.link(margin if x.margin is None else margin - x.margin)


def _check_margin_is_refused(loss: PairwiseLoss, x: PairLogps) -> None:
    try:
        loss(replace(x, margin=torch.ones_like(x.chosen)))
    except UserError:
        return
    raise AssertionError("takes_margin is False, yet target margins are accepted")
