"""Checks and changes that apply to every loaded model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from adadpo_lightning import log
from adadpo_lightning.errors import UserError


def check_vocabulary(tokens: int, embeddings: int) -> None:
    """Check that every token id has an embedding.

    Raises:
        UserError: If the tokenizer is larger than the embedding.
    """
    if tokens > embeddings:
        raise UserError(
            "model.policy.tokenizer",
            f"the tokenizer has {tokens} tokens and the model's embedding has only {embeddings} rows",
            "use the tokenizer that belongs to the model, or resize the model's embedding",
        )


def check_blocks(config: Any) -> None:
    """Check that a model has decoder blocks and positions: transformers builds one without, which would train.

    Raises:
        UserError: If its config asks for fewer than one.
    """
    for name in ("num_hidden_layers", "max_position_embeddings"):
        found = getattr(config, name, 1)
        if isinstance(found, int) and found < 1:
            raise UserError("model.policy", f"config.json has {name}: {found}", "expected at least 1; correct it")


def note_slow_bfloat16(device: torch.device, *, used: bool) -> None:
    """Say where bfloat16 would be slower than float32: on a CPU without instructions for it, which emulates them.

    Args:
        device: Where the model computes.
        used: Whether it computes in bfloat16.
    """
    known = torch.cpu.get_capabilities() if used and device.type == "cpu" else {}
    if known.get("architecture") == "x86_64" and not (known["avx512_bf16"] or known["amx_bf16"]):
        log.warn(
            "bfloat16: this CPU has no instructions for it (AVX512-BF16 or AMX), which makes it slower than float32; "
            "remove trainer.precision and model.policy.dtype for float32"
        )


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to 0: policy and reference must agree at step 0, and log-ratios must not be noisy."""
    changed = set()
    for holder in (*model.modules(), getattr(model, "config", None)):
        for name, value in list(vars(holder).items()) if holder is not None else []:
            is_rate = "dropout" in name or "pdrop" in name or (name == "p" and isinstance(holder, nn.Dropout))
            if is_rate and isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
                setattr(holder, name, 0.0)
                changed.add(type(holder).__name__ if name == "p" else name)
    if changed:
        log.info(f"Dropout is off ({', '.join(sorted(changed))}): policy and reference must agree at step 0.")
