"""Property checks for a loss of one's own: ``check_loss(build_loss("mine"))`` in a test, in one line.

What is claimed is checked against autograd and against an assembly written out here, never against the closed forms
that the losses themselves report. Everything runs on synthetic log-probabilities in float64, and in float32 at the
extremes.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from adadpo_lightning.errors import UserError
from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.losses.base import ContrastiveLoss, PreferenceLoss, Sides
from adadpo_lightning.losses.mixture import Mixture
from adadpo_lightning.types import LossOutput, PairLogps

if TYPE_CHECKING:
    from torch import Tensor

# Log-probabilities of a whole answer that a run can meet: certain, rounded to nearly certain, and hopeless.
EXTREME_LOGPS = (0.0, -1e-8, -1.0, -1e5)


def check_loss(loss: PreferenceLoss, *, seed: int = 0) -> None:
    """Check that a loss keeps what the trainer and the adaptive coefficient rely on.

    Args:
        loss: The loss, with any options; its adaptive twin is a loss of its own, to be checked too.
        seed: Seed of the synthetic log-probabilities.

    Raises:
        AssertionError: Naming the property that does not hold, and by how much.

    Example:
        >>> from adadpo_lightning.losses import build_loss
        >>> check_loss(build_loss("dpo"))
        >>> check_loss(build_loss("adadpo", ceiling=1.5))
    """
    _expect(isinstance(loss, PreferenceLoss), f"expected an instance of PreferenceLoss, got {loss!r}")
    x = sample_pairs(64, seed=seed)
    _check_output(loss, x)
    _check_reference(loss, x)
    _check_pairs_are_independent(loss, x)
    _check_extremes(loss)
    _check_weight_and_margin(loss, x)
    _check_half_precision(loss, x)
    if not loss.needs_rejected:
        return
    if isinstance(loss, ContrastiveLoss):
        _check_pieces(loss, x)
        _check_assembly(loss, x)
        _check_own_balance(loss, x)
    _check_policy_balance(loss, x)
    if isinstance(loss, Adaptive):
        _check_coefficient(loss, x)
        _check_target_ratio(loss, x)
        _check_plain_limits(loss, x)


def sample_pairs(count: int, *, seed: int = 0, max_len: int = 40, dtype: torch.dtype = torch.float64) -> PairLogps:
    """Random pairs with everything a loss may ask for, at moderate margins of both signs.

    Args:
        count: Number of pairs.
        seed: Seed.
        max_len: Longest answer, tokens.
        dtype: Type of the log-probabilities.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)

    n_w, n_l = (torch.randint(1, max_len + 1, (count,), generator=generator) for _ in range(2))
    logps = Sides(-n_w * uniform(0.05, 2.0), -n_l * uniform(0.05, 2.0))
    refs = Sides(logps.chosen + n_w * uniform(-0.3, 0.3), logps.rejected + n_l * uniform(-0.3, 0.3))
    return PairLogps(
        chosen=logps.chosen.to(dtype),
        rejected=logps.rejected.to(dtype),
        chosen_len=n_w,
        rejected_len=n_l,
        ref_chosen=refs.chosen.to(dtype),
        ref_rejected=refs.rejected.to(dtype),
    )


def extreme_pairs(dtype: torch.dtype = torch.float32) -> PairLogps:
    """Each combination of `EXTREME_LOGPS` under policy and reference with answers of 1 and 5000 tokens."""
    side = (EXTREME_LOGPS, EXTREME_LOGPS, (1, 5000))
    columns = list(zip(*product(*side, *side), strict=True))
    chosen, ref_chosen, rejected, ref_rejected = (torch.tensor(columns[i], dtype=dtype) for i in (0, 1, 3, 4))
    return PairLogps(chosen, rejected, torch.tensor(columns[2]), torch.tensor(columns[5]), ref_chosen, ref_rejected)


def gradients(loss: PreferenceLoss, x: PairLogps, part: str = "per_pair") -> Sides:
    """``dL/dl_s`` of each pair by autograd, for one part of the loss; zeros where it does not depend on a side.

    Args:
        loss: The loss.
        x: The pairs.
        part: ``per_pair`` for the contrastive part, ``nll`` for the likelihood part.
    """
    leaf, (chosen, rejected) = _leaf(x)
    total = getattr(loss(leaf), part).sum()
    return Sides(*_grad(total, chosen, rejected))


def autograd_log_balance(loss: PreferenceLoss, x: PairLogps) -> Tensor:
    """``log g_w - log g_l`` in policy space per token, by autograd; NaN where a gradient is 0, shape (B,)."""
    slopes = gradients(loss, x)
    return _log_ratio(slopes) - (x.chosen / x.chosen_len - x.rejected / x.rejected_len)


def own_log_balance(loss: ContrastiveLoss, x: PairLogps) -> Tensor:
    """``log g_w - log g_l`` with ``g_s = |dL/dv_s| / u_s`` in the loss's own space, by autograd, shape (B,)."""
    slopes = gradients(loss, x)
    leaf, (chosen, rejected) = _leaf(x)
    v = loss.variable(leaf)
    dv = Sides(*_grad(v.chosen.sum() + v.rejected.sum(), chosen, rejected))
    u = _log_u(loss, x)
    return _log_ratio(slopes) - _log_ratio(dv) - (u.chosen - u.rejected)


def plain_counterpart(loss: Adaptive) -> ContrastiveLoss:
    """The loss that `loss` is the adaptive twin of, with the same hyper-parameters."""
    cls: Any = next(c for c in type(loss).__mro__ if issubclass(c, ContrastiveLoss) and not issubclass(c, Adaptive))
    plain: ContrastiveLoss = cls(**{f.name: getattr(loss, f.name) for f in fields(cls) if f.init})
    return plain


def _check_output(loss: PreferenceLoss, x: PairLogps) -> None:
    for count in (1, len(x.chosen)):
        pairs = _rows(x, slice(0, count))
        out = loss(pairs)
        for name in ("per_pair", "chosen_rewards", "rejected_rewards", "coefficient"):
            value = getattr(out, name)
            _expect(value.shape == (count,), f"{name}: expected shape ({count},), got {tuple(value.shape)}")
            _expect(value.dtype == pairs.chosen.dtype, f"{name}: expected {pairs.chosen.dtype}, got {value.dtype}")
        for name in ("nll", "log_balance", "log_balance_policy", "clipped"):
            value = getattr(out, name)
            _expect(value is None or value.shape == (count,), f"{name}: expected shape ({count},)")
    leaf, _ = _leaf(x)
    out = loss(leaf)
    for name in ("chosen_rewards", "rejected_rewards", "coefficient", "log_balance", "log_balance_policy", "clipped"):
        value = getattr(out, name)
        _expect(value is None or not value.requires_grad, f"{name}: is to be detached, and carries a gradient")
    with torch.inference_mode():
        loss(x)  # as in validation


def _check_reference(loss: PreferenceLoss, x: PairLogps) -> None:
    bare = replace(x, ref_chosen=None, ref_rejected=None)
    try:
        without = loss(bare)
    except UserError as error:
        _expect(loss.needs_reference, f"needs_reference is False, yet without a reference the loss raises: {error}")
        return
    _expect(not loss.needs_reference, "needs_reference is True, yet the loss does not miss its reference")
    _equal("per_pair with and without a reference that is not needed", without.per_pair, loss(x).per_pair)


def _check_pairs_are_independent(loss: PreferenceLoss, x: PairLogps) -> None:
    whole = loss(x)
    for i in (0, len(x.chosen) - 1):
        alone = loss(_rows(x, slice(i, i + 1)))
        for name, value in _tensors(alone).items():
            _close(f"{name} of a pair alone and in a batch", value, getattr(whole, name)[i : i + 1])


def _check_extremes(loss: PreferenceLoss) -> None:
    for dtype in (torch.float32, torch.float64):
        x = extreme_pairs(dtype)
        for name, value in _tensors(loss(x)).items():
            _finite(f"{name} in {dtype}", value, x)
        leaf, (chosen, rejected) = _leaf(x)
        total = loss(leaf).reduce(1, 1)
        for name, grad in zip(("chosen", "rejected"), _grad(total, chosen, rejected), strict=True):
            _finite(f"gradient of {name} in {dtype}", grad, x)
            if name == "rejected" and not loss.needs_rejected:
                _expect(not grad.any(), "needs_rejected is False, yet the rejected answer has a gradient")


def _check_weight_and_margin(loss: PreferenceLoss, x: PairLogps) -> None:
    weight = torch.linspace(0.0, 2.0, len(x.chosen), dtype=x.chosen.dtype)
    plain, weighted = loss(x), loss(replace(x, weight=weight))
    _close("per_pair under weights", weighted.per_pair, weight * plain.per_pair)
    if plain.nll is not None and weighted.nll is not None:
        _close("nll under weights", weighted.nll, weight * plain.nll)
    _close("rewards under weights", weighted.chosen_rewards, plain.chosen_rewards)
    zero = loss(replace(x, margin=torch.zeros_like(x.chosen)))
    _close("per_pair under a margin of 0", zero.per_pair, plain.per_pair)


def _check_half_precision(loss: PreferenceLoss, x: PairLogps) -> None:
    half = _cast(x, torch.bfloat16)
    got, wanted = loss(half), loss(_cast(half, torch.float32))
    _expect(got.per_pair.dtype == torch.float32, f"bfloat16: is to be computed in float32, got {got.per_pair.dtype}")
    for name, value in _tensors(wanted).items():
        _equal(f"{name} of bfloat16 input", getattr(got, name), value)
    for side in gradients(loss, half, "per_pair" if loss.needs_rejected else "nll"):
        _expect(bool(side.isfinite().all()), "gradient of bfloat16 input is not finite")


def _check_policy_balance(loss: PreferenceLoss, x: PairLogps) -> None:
    reported = loss(x).log_balance_policy
    if reported is None:
        _expect(not isinstance(loss, (ContrastiveLoss, Mixture)), "log_balance_policy: is not reported")
        return
    measured = autograd_log_balance(loss, x)
    _expect(bool(measured.isfinite().any()), "no sampled pair has a gradient on both sides")
    _close("log_balance_policy (see `sums_tokens`, `log_slope`), against autograd", reported, measured, skip_nan=True)


def _check_pieces(loss: ContrastiveLoss, x: PairLogps) -> None:
    leaf, sides = _leaf(x)
    v, lengths = loss.variable(leaf), (x.chosen_len, x.rejected_len)
    for i, (own, other) in enumerate((sides, sides[::-1])):
        slope, across = _grad(v[i].sum(), own, other)
        _expect(not across.any(), "variable: one side depends on the other answer")
        wanted = torch.ones_like(own) if loss.sums_tokens else 1.0 / lengths[i].to(own.dtype)
        _close(f"dv/dl for sums_tokens = {loss.sums_tokens}", slope, wanted)
    points = v.chosen.detach().requires_grad_()
    slope = _grad(loss.score(points).sum(), points)[0]
    _expect(bool((slope > 0).all()), "score: is to rise with its variable")
    constant = slope.log() - loss.log_slope(points.detach())
    _close("log_slope, against autograd and up to a constant", constant, constant[:1].expand_as(constant))
    offset = loss.offset(leaf)
    _expect(not (torch.is_tensor(offset) and offset.requires_grad), "offset: depends on the policy")


def _check_assembly(loss: ContrastiveLoss, x: PairLogps) -> None:
    """Value and gradient are those of ``link(c a_w - a_l + offset - margin)`` with c held constant."""
    column = torch.linspace(-0.5, 0.5, len(x.chosen), dtype=x.chosen.dtype)
    x = replace(x, margin=column)
    c = loss(x).coefficient.detach()
    in_backward = getattr(loss, "apply", "margin") == "gradient"
    leaf, sides = _leaf(x)
    v = loss.variable(leaf)
    a_w, a_l = loss.score(v.chosen), loss.score(v.rejected)
    margin = (a_w if in_backward else c * a_w) - a_l + loss.offset(leaf) - column
    wanted = loss.link(margin)
    _close("per_pair, against link(c a_w - a_l + offset - margin)", loss(x).per_pair, wanted.detach())
    wanted_grad = Sides(*_grad(wanted.sum(), *sides))
    if in_backward:
        wanted_grad = Sides(c * wanted_grad.chosen, wanted_grad.rejected)
    for name, got, want in zip(("chosen", "rejected"), gradients(loss, x), wanted_grad, strict=True):
        _close(f"gradient of {name} with the coefficient held constant", got, want)


def _check_own_balance(loss: ContrastiveLoss, x: PairLogps) -> None:
    reported = loss(x).log_balance
    _expect(reported is not None, "log_balance: is not reported")
    _close("log_balance, against autograd", reported, own_log_balance(loss, x), skip_nan=True)


def _check_coefficient(loss: Adaptive, x: PairLogps) -> None:
    for pairs in (x, _cast(x, torch.float32), extreme_pairs()):
        out = loss(pairs)
        c, clipped = out.coefficient, out.clipped
        _expect(bool((c <= loss.ceiling).all()), f"coefficient: {c.max().item()} is above the ceiling {loss.ceiling}")
        floor = (loss.floor or 0.0) * (1 - 4 * torch.finfo(c.dtype).eps)
        _expect(bool((c >= floor).all()), f"coefficient: {c.min().item()} is below the floor {loss.floor}")
        _expect(clipped is not None, "clipped: is not reported")
        _close("coefficient where it is clipped", c[clipped], torch.full_like(c[clipped], loss.ceiling))


def _check_target_ratio(loss: Adaptive, x: PairLogps) -> None:
    """``g_w / g_l = k`` where no clip is active, for full balancing."""
    c, clipped = loss(x).coefficient, loss(x).clipped
    free = (c > (loss.floor or 0.0) * (1 + 1e-9)) & ~clipped  # type: ignore[operator]  # `clipped` was checked
    if (loss.alpha_w, loss.alpha_l) != (1.0, 1.0) or not free.any():
        return
    ratio = own_log_balance(loss, x)[free]
    ratio = ratio[~ratio.isnan()]
    wanted = torch.full_like(ratio, math.log(loss.target_ratio))
    _close(f"log(g_w / g_l) for target_ratio {loss.target_ratio}", ratio, wanted)


def _check_plain_limits(loss: Adaptive, x: PairLogps) -> None:
    plain, neutral = plain_counterpart(loss), replace(loss, ceiling=2.0, floor=None, target_ratio=1.0)
    _same_loss("ceiling = floor = 1", replace(loss, ceiling=1.0, floor=1.0), plain, x)
    _same_loss("alpha_w = alpha_l = 0", replace(neutral, alpha_w=0.0, alpha_l=0.0), plain, x)
    if loss.needs_reference and loss.space in (None, "ratio"):
        balanced = replace(neutral, alpha_w=1.0, alpha_l=1.0)
        _same_loss("policy = reference", balanced, plain, replace(x, ref_chosen=x.chosen, ref_rejected=x.rejected))


def _same_loss(case: str, loss: Any, plain: PreferenceLoss, x: PairLogps) -> None:
    _equal(f"coefficient at {case}", loss(x).coefficient, torch.ones_like(x.chosen))
    _equal(f"per_pair at {case}, against the plain loss", loss(x).per_pair, plain(x).per_pair)
    for got, wanted in zip(gradients(loss, x), gradients(plain, x), strict=True):
        _equal(f"gradient at {case}, against the plain loss's", got, wanted)


def _log_u(loss: ContrastiveLoss, x: PairLogps) -> Sides:
    """``log u_s`` as the method defines it, written apart from the losses' own."""
    space = getattr(loss, "space", None) or ("ratio" if loss.needs_reference else "policy")
    chosen, rejected = x.chosen, x.rejected
    if space == "ratio" and x.ref_chosen is not None and x.ref_rejected is not None:
        chosen, rejected = chosen - x.ref_chosen, rejected - x.ref_rejected
    if getattr(loss, "normalize", "token") == "token":
        chosen, rejected = chosen / x.chosen_len, rejected / x.rejected_len
    return Sides(chosen, rejected)


def _log_ratio(sides: Sides) -> Tensor:
    smallest = torch.finfo(sides.chosen.dtype).tiny  # below it digits are lost
    big = (sides.chosen.abs() > smallest) & (sides.rejected.abs() > smallest)
    return torch.where(big, sides.chosen.abs().log() - sides.rejected.abs().log(), math.nan)


def _leaf(x: PairLogps) -> tuple[PairLogps, Sides]:
    sides = Sides(x.chosen.detach().clone().requires_grad_(), x.rejected.detach().clone().requires_grad_())
    return replace(x, chosen=sides.chosen, rejected=sides.rejected), sides


def _grad(total: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    if not total.requires_grad:
        return tuple(torch.zeros_like(t) for t in inputs)
    return torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)


def _map(x: PairLogps, change: Any) -> PairLogps:
    values = {f.name: getattr(x, f.name) for f in fields(x)}
    return replace(x, **{name: change(value) for name, value in values.items() if value is not None})


def _rows(x: PairLogps, rows: slice) -> PairLogps:
    return _map(x, lambda value: value[rows])


def _cast(x: PairLogps, dtype: torch.dtype) -> PairLogps:
    return _map(x, lambda value: value.to(dtype) if value.is_floating_point() else value)


def _tensors(out: LossOutput) -> dict[str, Tensor]:
    values = {f.name: getattr(out, f.name) for f in fields(out)}
    return {name: value.detach() for name, value in values.items() if value is not None}


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _finite(name: str, value: Tensor, x: PairLogps) -> None:
    bad = (~value.isfinite()).nonzero()
    if len(bad):
        row = _rows(x, slice(int(bad[0]), int(bad[0]) + 1))
        raise AssertionError(f"{name}: {value[bad[0]].item()} at {row}")


def _equal(name: str, got: Tensor, wanted: Tensor) -> None:
    _expect(bool(torch.equal(got, wanted)), f"{name}: differ by up to {_gap(got, wanted)}, expected equal")


def _close(name: str, got: Tensor | None, wanted: Tensor, *, skip_nan: bool = False) -> None:
    if got is None:
        raise AssertionError(f"{name}: is None")
    if skip_nan:
        got, wanted = got[~wanted.isnan()], wanted[~wanted.isnan()]
    tolerance = 1e-9 if wanted.dtype == torch.float64 else 1e-5
    if not torch.allclose(got.to(wanted.dtype), wanted, rtol=tolerance, atol=tolerance):
        raise AssertionError(f"{name}: differ by up to {_gap(got, wanted)}")


def _gap(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).abs().max())
