"""Routers of mixtures of experts: what they did with a micro-batch's tokens, and the load-balancing loss of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from adadpo_lightning.errors import UserError
from adadpo_lightning.models.sharding import decoder_blocks

if TYPE_CHECKING:
    from torch import Tensor

# Architectures whose routers send each token to the experts of the largest logits, and whose loss is tested against
# their own. In others the experts follow from something else, such as a bias per expert or noise.
# fmt: off
COMPARED = frozenset({"flex_olmo", "gpt_oss", "granitemoe", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe"})
# fmt: on


@dataclass(frozen=True)
class Routing:
    """What the routers of L layers with E experts each did, summed over the computed tokens of a micro-batch.

    Args:
        assigned: Tokens that each expert got, (L, E), without gradient; each token counts for `top_k` experts.
        probability: The router's probability of each expert, summed over the tokens, (L, E).
        tokens: Number of tokens, a scalar.
    """

    assigned: Tensor
    probability: Tensor
    tokens: Tensor

    def aux_loss(self) -> Tensor:
        """Load-balancing loss, a scalar: ``E * sum_e f_e P_e``, without coefficient.

        ``f_e`` is the number of times that expert e is chosen, and ``P_e`` its probability, both a mean over tokens and
        layers together. It is `top_k` if all experts are chosen equally often or are equally probable. The gradient
        flows through ``P_e``.

        Source: Switch Transformer, arXiv 2101.03961, equations 4 to 6, as ``load_balancing_loss_func`` of transformers
        has it.
        """
        layers, experts = self.assigned.shape
        counted = self.tokens * layers
        return experts * (self.assigned.sum(0) / counted * (self.probability.sum(0) / counted)).sum()


def routing(logits: Sequence[Tensor], top_k: int, mask: Tensor | None = None) -> Routing:
    """Sum up what routers did; nothing waits for the device.

    Args:
        logits: Logits of the router of each layer, (T, E).
        top_k: Experts per token.
        mask: 1 for tokens and 0 for padding, T numbers in any shape; None if all are tokens.

    Example:
        >>> uneven = routing([torch.tensor([[2.0, 0.0], [2.0, 0.0]])], top_k=1)
        >>> uneven.assigned.tolist(), round(uneven.aux_loss().item(), 2)
        ([[2.0, 0.0]], 1.76)
    """
    wide = torch.promote_types(logits[0].dtype, torch.float32)
    kept = None if mask is None else mask.reshape(-1, 1).to(wide)
    assigned, probability = [], []
    for layer in logits:
        likely = layer.softmax(-1, dtype=wide)
        best = likely.detach().topk(top_k, dim=-1).indices
        chosen = torch.zeros_like(likely, requires_grad=False).scatter_(1, best, 1.0)
        if kept is not None:
            likely, chosen = likely * kept, chosen * kept
        assigned.append(chosen.sum(0))
        probability.append(likely.sum(0))
    tokens = torch.full((), len(logits[0]), dtype=wide, device=logits[0].device) if kept is None else kept.sum()
    return Routing(torch.stack(assigned), torch.stack(probability), tokens)


def routed_blocks(model: Any) -> tuple[int, ...]:
    """Numbers of the decoder blocks that have a router; empty for a model without, or whose routing is not compared.

    Args:
        model: A causal language model of transformers, without its peft wrapper.
    """
    if model.config.model_type not in COMPARED:
        return ()
    router = model.base_model.can_record_outputs["router_logits"].target_class
    has_router = [any(isinstance(m, router) for m in block.modules()) for block in decoder_blocks(model)]
    return tuple(number for number, found in enumerate(has_router) if found)


def check_router_loss(coefficient: float, model: Any, *, compiled: bool = False) -> None:
    """Check that a model has the routers that a load-balancing loss is of.

    Args:
        coefficient: Coefficient of the loss; 0 for none.
        model: As in `routed_blocks`.
        compiled: Whether its blocks are compiled, which then do not say what their routers did.

    Raises:
        UserError: If it has none, if their loss has not been compared with that of transformers, or if it is compiled.
    """
    if coefficient and compiled:
        problem = f"is for blocks that are not compiled, got {coefficient:g} with model.policy.compile"
        raise UserError("model.router_aux_loss_coef", problem, "set it to 0, or model.policy.compile to false")
    if coefficient and not routed_blocks(model):
        kind = model.config.model_type
        problem = (
            "this model has no block with a router"
            if kind in COMPARED
            else f"{kind!r} has no routers whose load-balancing loss is tested (tested: {', '.join(sorted(COMPARED))})"
        )
        raise UserError("model.router_aux_loss_coef", f"{coefficient:g}: {problem}", "set it to 0")
