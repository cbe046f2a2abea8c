"""The parts of a loss gradient in parameter space: slopes, inner products, norms and cosine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from adadpo_lightning.metrics import names

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adadpo_lightning.losses import PreferenceLoss
    from adadpo_lightning.types import PairLogps, PreferenceBatch


class Slope(NamedTuple):
    """Derivative of a part of the loss with respect to sums over an answer's tokens, each (B,).

    Args:
        answer: With respect to the sum over all tokens.
        tail: With respect to the sum over the tail alone, `PairLogps.chosen_tail`; None if the loss reads no tails.
    """

    answer: Tensor
    tail: Tensor | None = None


def part_slopes(loss: PreferenceLoss, x: PairLogps, pairs: int, chosen_tokens: int) -> dict[str, Slope]:
    """Derivative of each part of the loss with respect to the summed log-probabilities of the answers.

    Args:
        loss: The loss.
        x: Inputs of the loss; they are detached first.
        pairs: Number of pairs, which normalizes the contrastive part.
        chosen_tokens: Number of chosen tokens, which normalizes the NLL part.

    Returns:
        ``chosen`` and ``rejected`` (of the contrastive part) if the loss reads rejected answers, and ``nll`` if the
        loss has that part.

    Example:
        >>> from adadpo_lightning.losses import CPO
        >>> from adadpo_lightning.types import PairLogps
        >>> x = PairLogps(torch.tensor([-2.0]), torch.tensor([-2.0]), torch.tensor([4]), torch.tensor([4]))
        >>> {name: round(slope.answer.item(), 3) for name, slope in part_slopes(CPO(beta=0.1), x, 1, 4).items()}
        {'chosen': -0.05, 'rejected': 0.05, 'nll': -0.25}
    """
    names = ("chosen", "rejected", *(("chosen_tail", "rejected_tail") if loss.needs_tails else ()))
    with torch.enable_grad():
        leaves = {name: getattr(x, name).detach().requires_grad_() for name in names}
        output = loss(replace(x, **leaves))
        slopes: dict[str, Slope] = {}
        if loss.needs_rejected:
            contrast = output.per_pair.sum() / pairs
            found = torch.autograd.grad(contrast, list(leaves.values()), retain_graph=True, materialize_grads=True)
            by_name = dict(zip(names, found, strict=True))
            slopes = {side: Slope(by_name[side], by_name.get(f"{side}_tail")) for side in ("chosen", "rejected")}
        if output.nll is not None:
            slopes["nll"] = Slope(torch.autograd.grad(output.nll.sum() / chosen_tokens, leaves["chosen"])[0])
    return slopes


def token_weights(slope: Slope, part: str, batch: PreferenceBatch) -> Tensor:
    """Derivative of a part with respect to the log-probability of each scored token, in flat order, (N,)."""
    lengths = torch.cat([batch.chosen_len, batch.rejected_len])

    def by_token(values: Tensor) -> Tensor:
        zero = torch.zeros_like(values)
        sides = [zero, values] if part == "rejected" else [values, zero]
        return torch.cat(sides).repeat_interleave(lengths)

    weights = by_token(slope.answer)
    if slope.tail is not None:
        weights = weights + by_token(slope.tail) * batch.in_tail()
    return weights.new_zeros(batch.targets.shape).index_add(0, batch.tokens_of_sides(), weights)


def part_norms(products: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Turn squared norms and inner products of each group into metrics, in total and per group.

    Example:
        >>> part_norms({"head": {"chosen": 9.0, "rejected": 4.0, "cross": -3.0}})["grad_norm/params_cosine"]
        -0.5
    """
    totals: dict[str, float] = {}
    for group in products.values():
        for name, value in group.items():
            totals[name] = totals.get(name, 0.0) + value
    metrics: dict[str, float] = {}
    for suffix, squares in [("", totals), *((f"/{name}", group) for name, group in products.items())]:
        sizes = {name: value**0.5 for name, value in squares.items() if name != "cross"}
        if sizes.get("rejected"):
            sizes["ratio"] = sizes["chosen"] / sizes["rejected"]
            if sizes["chosen"]:
                sizes["cosine"] = squares["cross"] / (sizes["chosen"] * sizes["rejected"])
        metrics |= {f"{names.GRAD_NORM_PARAMS}_{name}{suffix}": value for name, value in sizes.items()}
    return metrics


def inner_products(a: list[Tensor], b: list[Tensor], groups: Mapping[str, Sequence[nn.Parameter]]) -> Tensor:
    """Inner product of two gradients in each group, over all shards, float64, shape (groups,)."""
    from torch.distributed.tensor import DTensor

    pairs = iter(zip(a, b, strict=True))
    totals = torch.stack([torch.stack([_inner(*next(pairs)) for _ in group]).sum() for group in groups.values()])
    if isinstance(a[0], DTensor):  # all on the same mesh: see `models.sharding.shard`
        mesh = a[0].device_mesh
        for dimension in range(mesh.ndim):
            torch.distributed.all_reduce(totals, group=mesh.get_group(dimension))
    return totals


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """This rank's part of an inner product: the sum over all ranks of the mesh is the whole one."""
    from torch.distributed.tensor import DTensor

    copies = 1
    if isinstance(a, DTensor) and isinstance(b, DTensor):
        sizes = zip(a.device_mesh.shape, a.placements, strict=True)
        copies = math.prod(size for size, placement in sizes if placement.is_replicate())
        a, b = a.to_local(), b.to_local()
    wide = torch.promote_types(a.dtype, torch.float32)
    return torch.sum(a.to(wide) * b.to(wide), dtype=torch.float64) / copies
