"""What the forward pass keeps for the backward pass: all, a part, or next to nothing; on the device or the host."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def enable_checkpointing(model: Any, *, selective: bool) -> None:
    """Recompute activations of each decoder block in the backward pass.

    Args:
        model: A transformers model.
        selective: Keep what is dear to recompute, attention and every second matrix product, and recompute the rest.
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
            # Counted in the forward pass and in the recomputation alike: both decide the same for each product.
            products[context.is_recompute] += 1
            keep = products[context.is_recompute] % 2 == 1
        else:
            keep = "attention_for" in name or "flash_attention" in name or "efficient_attention" in name
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def offloading(wanted: bool, device: torch.device) -> AbstractContextManager[Any]:
    """Within this context what the backward pass will need lies in CPU memory, pinned where there is a GPU."""
    if not wanted:
        return nullcontext()
    return torch.autograd.graph.save_on_cpu(pin_memory=device.type == "cuda")
