"""What holds for any loss: shapes, independence of pairs, finite values, weights, margins and half precision."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch

from adadpo_lightning.errors import UserError
from adadpo_lightning.losses.base import PairwiseLoss, PreferenceLoss
from adadpo_lightning.losses.mixture import Mixture
from adadpo_lightning.losses.testing.autograd import as_leaf, autograd_log_balance, grad, gradients
from adadpo_lightning.losses.testing.expect import close, equal, expect, finite
from adadpo_lightning.losses.testing.samples import cast, extreme_pairs, rows

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.types import LossOutput, PairLogps


def check_output(loss: PreferenceLoss, x: PairLogps) -> None:
    """Each field of the output has one value per pair, its type, and no gradient where none belongs."""
    for count in (1, len(x.chosen)):
        pairs = rows(x, slice(0, count))
        out = loss(pairs)
        for name in ("per_pair", "chosen_rewards", "rejected_rewards", "coefficient"):
            value = getattr(out, name)
            expect(value.shape == (count,), f"{name}: expected shape ({count},), got {tuple(value.shape)}")
            expect(value.dtype == pairs.chosen.dtype, f"{name}: expected {pairs.chosen.dtype}, got {value.dtype}")
        for name in ("nll", "log_balance", "log_balance_policy", "clipped"):
            value = getattr(out, name)
            expect(value is None or value.shape == (count,), f"{name}: expected shape ({count},)")
    leaf, _ = as_leaf(x)
    out = loss(leaf)
    for name in ("chosen_rewards", "rejected_rewards", "coefficient", "log_balance", "log_balance_policy", "clipped"):
        value = getattr(out, name)
        expect(value is None or not value.requires_grad, f"{name}: must be detached, but carries a gradient")
    with torch.inference_mode():  # as in validation, whose tensors are made there
        inside = loss(cast(x, torch.float32))
    for name, value in _tensors(loss(cast(x, torch.float32))).items():
        equal(f"{name} in inference mode", getattr(inside, name), value)


def check_reference(loss: PreferenceLoss, x: PairLogps) -> None:
    """`needs_reference` tells the truth."""
    bare = replace(x, ref_chosen=None, ref_rejected=None)
    try:
        without = loss(bare)
    except UserError as error:
        expect(loss.needs_reference, f"needs_reference is False, yet without a reference the loss raises: {error}")
        return
    expect(not loss.needs_reference, "needs_reference is True, yet the loss works without a reference")
    equal("per_pair with and without a reference that is not needed", without.per_pair, loss(x).per_pair)


def check_sums_of_tokens(loss: PreferenceLoss, x: PairLogps) -> None:
    """`needs_tails` and `needs_collisions` tell the truth."""
    for need, part in (("needs_tails", "_tail"), ("needs_collisions", "_log_collision")):
        without: dict[str, Any] = {f.name: None for f in fields(x) if f.name.endswith(part)}
        bare = replace(x, **without)
        try:
            loss(bare)
            found = False
        except UserError:
            found = True
        expect(getattr(loss, need) == found, f"{need} must be {found}: that is whether the loss raises without them")


def check_pairs_are_independent(loss: PreferenceLoss, x: PairLogps) -> None:
    """A pair's values do not depend on the other pairs of its batch."""
    whole = loss(x)
    for i in (0, len(x.chosen) - 1):
        alone = loss(rows(x, slice(i, i + 1)))
        for name, value in _tensors(alone).items():
            close(f"{name} of a pair alone and in a batch", value, getattr(whole, name)[i : i + 1])


def check_extremes(loss: PreferenceLoss) -> None:
    """Values and gradients are finite at extreme log-probabilities and lengths."""
    for dtype in (torch.float32, torch.float64):
        x = extreme_pairs(dtype)
        for name, value in _tensors(loss(x)).items():
            # A pair with a gradient on one side only has no balance.
            finite(f"{name} in {dtype}", value.nan_to_num(0.0, math.inf, -math.inf) if "balance" in name else value, x)
        leaf, (chosen, rejected) = as_leaf(x)
        total = loss(leaf).reduce(1, 1)
        for name, slope in zip(("chosen", "rejected"), grad(total, chosen, rejected), strict=True):
            finite(f"gradient of {name} in {dtype}", slope, x)
            if name == "rejected" and not loss.needs_rejected:
                expect(not slope.any(), "needs_rejected is False, yet the rejected answer has a gradient")


def check_weight_and_margin(loss: PreferenceLoss, x: PairLogps) -> None:
    """Weights scale the loss and leave the rewards alone; a margin of 0 changes nothing."""
    weight = torch.linspace(0.0, 2.0, len(x.chosen), dtype=x.chosen.dtype)
    plain, weighted = loss(x), loss(replace(x, weight=weight))
    close("per_pair under weights", weighted.per_pair, weight * plain.per_pair)
    if plain.nll is not None and weighted.nll is not None:
        close("nll under weights", weighted.nll, weight * plain.nll)
    close("rewards under weights", weighted.chosen_rewards, plain.chosen_rewards)
    if loss.takes_margin:
        zero = loss(replace(x, margin=torch.zeros_like(x.chosen)))
        close("per_pair under a margin of 0", zero.per_pair, plain.per_pair)


def check_half_precision(loss: PreferenceLoss, x: PairLogps) -> None:
    """Half-precision input is computed in float32."""
    half = cast(x, torch.bfloat16)
    got, wanted = loss(half), loss(cast(half, torch.float32))
    expect(got.per_pair.dtype == torch.float32, f"bfloat16: must be computed in float32, got {got.per_pair.dtype}")
    for name, value in _tensors(wanted).items():
        equal(f"{name} of bfloat16 input", getattr(got, name), value)
    for side in gradients(loss, half, "per_pair" if loss.needs_rejected else "nll"):
        expect(bool(side.isfinite().all()), "gradient of bfloat16 input is not finite")


def check_policy_balance(loss: PreferenceLoss, x: PairLogps) -> None:
    """The balance reported in policy space is the one that autograd measures."""
    reported = loss(x).log_balance_policy
    if reported is None:
        expect(not isinstance(loss, (PairwiseLoss, Mixture)), "log_balance_policy: not reported")
        return
    measured = autograd_log_balance(loss, x)
    close("log_balance_policy (see `sums_tokens`, `log_slope`), against autograd", reported, measured, skip_nan=True)


def _tensors(out: LossOutput) -> dict[str, Tensor]:
    values = {f.name: getattr(out, f.name) for f in fields(out)}
    return {name: value.detach() for name, value in values.items() if value is not None}
