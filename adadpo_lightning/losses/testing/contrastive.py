"""What holds for losses of the form ``link(c * score(v_w) - score(v_l) + offset)``: each piece, and their assembly."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from adadpo_lightning.losses.base import ContrastiveLoss, Sides
from adadpo_lightning.losses.testing.autograd import as_leaf, grad, gradients, own_log_balance
from adadpo_lightning.losses.testing.expect import close, expect

if TYPE_CHECKING:
    from adadpo_lightning.types import PairLogps


def check_pieces(loss: ContrastiveLoss, x: PairLogps) -> None:
    """Variable, score, slope and offset are what the assembly and the coefficient take them for."""
    leaf, sides = as_leaf(x)
    v, lengths = loss.variable(leaf), (x.chosen_len, x.rejected_len)
    for i, (own, other) in enumerate((sides, sides[::-1])):
        slope, across = grad(v[i].sum(), own, other)
        expect(not across.any(), "variable: one side depends on the other answer")
        wanted = torch.ones_like(own) if loss.sums_tokens else 1.0 / lengths[i].to(own.dtype)
        close(f"dv/dl for sums_tokens = {loss.sums_tokens}", slope, wanted)
    points = v.chosen.detach().requires_grad_()
    slope = grad(loss.score(points).sum(), points)[0]
    expect(bool((slope > 0).all()), "score: must increase with its variable")
    constant = slope.log() - loss.log_slope(points.detach())
    close("log_slope, against autograd and up to a constant", constant, constant[:1].expand_as(constant))
    offset = loss.offset(leaf)
    expect(not (torch.is_tensor(offset) and offset.requires_grad), "offset: depends on the policy")


def check_assembly(loss: ContrastiveLoss, x: PairLogps) -> None:
    """Value and gradient are those of ``link(c a_w - a_l + offset - margin)`` with c held constant."""
    column = torch.linspace(-0.5, 0.5, len(x.chosen), dtype=x.chosen.dtype)
    x = replace(x, margin=column)
    c = loss(x).coefficient.detach()
    in_backward = getattr(loss, "apply", "margin") == "gradient"
    leaf, sides = as_leaf(x)
    v = loss.variable(leaf)
    a_w, a_l = loss.score(v.chosen), loss.score(v.rejected)
    margin = (a_w if in_backward else c * a_w) - a_l + loss.offset(leaf) - column
    wanted = loss.link(margin)
    close("per_pair, against link(c a_w - a_l + offset - margin)", loss(x).per_pair, wanted.detach())
    wanted_grad = Sides(*grad(wanted.sum(), *sides))
    if in_backward:
        wanted_grad = Sides(c * wanted_grad.chosen, wanted_grad.rejected)
    for name, got, want in zip(("chosen", "rejected"), gradients(loss, x), wanted_grad, strict=True):
        close(f"gradient of {name} with the coefficient held constant", got, want)


def check_own_balance(loss: ContrastiveLoss, x: PairLogps) -> None:
    """The reported balance of the gradients is the one that autograd measures."""
    reported = loss(x).log_balance
    expect(reported is not None, "log_balance: not reported")
    close("log_balance, against autograd", reported, own_log_balance(loss, x), skip_nan=True)
