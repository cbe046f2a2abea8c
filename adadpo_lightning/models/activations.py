"""Activation checkpointing and offloading: what the forward pass keeps for the backward pass, and where."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def enable_checkpointing(model: Any, *, selective: bool) -> None:
    """Recompute activations of each decoder block in the backward pass.

    Args:
        model: A transformers model.
        selective: Keep what is expensive to recompute (attention and every second matrix product), recompute the rest.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if selective:
        options["context_fn"] = _keep_dear_results
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)


def _keep_dear_results() -> Any:
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    products = {False: 0, True: 0}

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        name = str(op)
        if name in ("aten.mm.default", "aten.addmm.default"):
            # Counted separately in forward pass and recomputation, so that both decide the same for each product.
            products[context.is_recompute] += 1
            keep = products[context.is_recompute] % 2 == 1
        else:
            keep = "attention_for" in name or "flash_attention" in name or "efficient_attention" in name
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)  # type: ignore[no-untyped-call]  # untyped in torch


def offloading(wanted: bool, device: torch.device) -> AbstractContextManager[Any]:
    """Context in which tensors saved for the backward pass are kept in CPU memory, pinned if the device is a GPU."""
    if not wanted:
        return nullcontext()
    return torch.autograd.graph.save_on_cpu(pin_memory=device.type == "cuda")
