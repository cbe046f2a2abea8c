"""The parts of a loss gradient in parameter space: slopes, inner products, norms and cosine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from adadpo_lightning.metrics import names

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adadpo_lightning.losses import PreferenceLoss
    from adadpo_lightning.types import PairLogps, PreferenceBatch


def part_slopes(loss: PreferenceLoss, x: PairLogps, pairs: int, chosen_tokens: int) -> dict[str, Tensor]:
    """Derivative of each part of the loss with respect to the summed log-probabilities of the answers.

    Args:
        loss: The loss.
        x: Inputs of the loss; they are detached first.
        pairs: Number of pairs, which normalizes the contrastive part.
        chosen_tokens: Number of chosen tokens, which normalizes the NLL part.

    Returns:
        ``chosen`` and ``rejected`` (of the contrastive part) if the loss reads rejected answers, and ``nll`` if the
        loss has that part; each of shape (B,).

    Example:
        >>> from adadpo_lightning.losses import CPO
        >>> from adadpo_lightning.types import PairLogps
        >>> x = PairLogps(torch.tensor([-2.0]), torch.tensor([-2.0]), torch.tensor([4]), torch.tensor([4]))
        >>> {name: round(slope.item(), 3) for name, slope in part_slopes(CPO(beta=0.1), x, 1, 4).items()}
        {'chosen': -0.05, 'rejected': 0.05, 'nll': -0.25}
    """
    with torch.enable_grad():
        chosen, rejected = x.chosen.detach().requires_grad_(), x.rejected.detach().requires_grad_()
        output = loss(replace(x, chosen=chosen, rejected=rejected))
        slopes = {}
        if loss.needs_rejected:
            contrast = output.per_pair.sum() / pairs
            both = torch.autograd.grad(contrast, (chosen, rejected), retain_graph=True, materialize_grads=True)
            slopes = dict(zip(("chosen", "rejected"), both, strict=True))
        if output.nll is not None:
            slopes["nll"] = torch.autograd.grad(output.nll.sum() / chosen_tokens, chosen)[0]
    return slopes


def token_weights(slope: Tensor, part: str, batch: PreferenceBatch) -> Tensor:
    """Derivative of a part with respect to the log-probability of each scored token, in flat order, (N,)."""
    zero = torch.zeros_like(slope)
    sides = [zero, slope] if part == "rejected" else [slope, zero]
    return torch.cat(sides).repeat_interleave(torch.cat([batch.chosen_len, batch.rejected_len]))


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
    sharded = a[0]
    if isinstance(sharded, DTensor):  # all on the same mesh: see `models.sharding.shard`
        for dimension, placement in enumerate(sharded.placements):
            if placement.is_shard():  # replicas have the same gradient and must not be summed
                torch.distributed.all_reduce(totals, group=sharded.device_mesh.get_group(dimension))
    return totals


def _inner(a: Tensor, b: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    if isinstance(a, DTensor) and isinstance(b, DTensor):
        a, b = a.to_local(), b.to_local()
    wide = torch.promote_types(a.dtype, torch.float32)
    return torch.sum(a.to(wide) * b.to(wide), dtype=torch.float64)
