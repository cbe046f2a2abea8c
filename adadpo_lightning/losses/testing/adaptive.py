"""What holds for adaptive twins: the coefficient's clips, the balance it aims at, and the limits where c = 1."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import torch

from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.base import PairwiseLoss, PreferenceLoss
from adadpo_lightning.losses.registry import plain_class
from adadpo_lightning.losses.testing.autograd import gradients, own_log_balance
from adadpo_lightning.losses.testing.expect import close, equal, expect
from adadpo_lightning.losses.testing.samples import cast, extreme_pairs
from adadpo_lightning.types import PairLogps


def plain_counterpart(loss: Adaptive) -> PairwiseLoss:
    """The plain loss of an adaptive twin, with the same hyper-parameters."""
    cls: Any = plain_class(type(loss))
    plain: PairwiseLoss = cls(**{f.name: getattr(loss, f.name) for f in fields(cls) if f.init})
    return plain


def check_coefficient(loss: Adaptive, x: PairLogps) -> None:
    """The coefficient lies between its clips, and the clipped pairs are reported."""
    for pairs in (x, cast(x, torch.float32), extreme_pairs()):
        out = loss(pairs)
        c, clipped = out.coefficient, out.clipped
        expect(bool((c <= loss.ceiling).all()), f"coefficient: {c.max().item()} is above the ceiling {loss.ceiling}")
        floor = (loss.floor or 0.0) * (1 - 4 * torch.finfo(c.dtype).eps)
        expect(bool((c >= floor).all()), f"coefficient: {c.min().item()} is below the floor {loss.floor}")
        expect(clipped is not None, "clipped: not reported")
        close("coefficient where it is clipped", c[clipped], torch.full_like(c[clipped], loss.ceiling))


def check_target_ratio(loss: Adaptive, x: PairLogps) -> None:
    """``g_w / g_l = k`` where no clip is active, for full balancing, in the loss's space and in policy space."""
    if (loss.alpha_w, loss.alpha_l) != (1.0, 1.0):
        return
    for space in dict.fromkeys((loss.space, "policy")):
        balanced: Any = replace(loss, space=space)
        out = balanced(x)
        free = (out.coefficient > (loss.floor or 0.0) * (1 + 1e-9)) & ~out.clipped
        ratio = own_log_balance(balanced, x)[free]
        ratio = ratio[~ratio.isnan()]
        wanted = torch.full_like(ratio, math.log(loss.target_ratio))
        close(f"log(g_w / g_l) for target_ratio {loss.target_ratio} in space {space}", ratio, wanted)


def check_plain_limits(loss: Adaptive, x: PairLogps) -> None:
    """Wherever the coefficient is 1, the twin equals the plain loss bit for bit."""
    plain, neutral = plain_counterpart(loss), replace(loss, ceiling=2.0, floor=None, target_ratio=1.0)
    _same_loss("ceiling = floor = 1", replace(loss, ceiling=1.0, floor=1.0), plain, x)
    _same_loss("alpha_w = alpha_l = 0", replace(neutral, alpha_w=0.0, alpha_l=0.0), plain, x)
    if loss.needs_reference and loss.space in (None, "ratio"):
        balanced = replace(neutral, alpha_w=1.0, alpha_l=1.0)
        at_reference = replace(x, ref_chosen=x.chosen, ref_rejected=x.rejected)
        imbalance = own_log_balance(plain, at_reference).nan_to_num(0.0)
        if imbalance.abs().max() < 1e-12:  # else the plain loss weighs its answers differently even there
            _same_loss("policy = reference", balanced, plain, at_reference)


def _same_loss(case: str, loss: Any, plain: PreferenceLoss, x: PairLogps) -> None:
    equal(f"coefficient at {case}", loss(x).coefficient, torch.ones_like(x.chosen))
    equal(f"per_pair at {case}, against the plain loss", loss(x).per_pair, plain(x).per_pair)
    for got, wanted in zip(gradients(loss, x), gradients(plain, x), strict=True):
        equal(f"gradient at {case}, against the plain loss's", got, wanted)
