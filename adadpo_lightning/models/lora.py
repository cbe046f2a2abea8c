"""Low-rank adapters on a base model, which may be held in 4 bits."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from adadpo_lightning.errors import UserError, first_line
from adadpo_lightning.models.meta import stand_ins

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adadpo_lightning.models.loading import LoraOptions, PolicyConfig


def with_adapter(model: PreTrainedModel, options: LoraOptions) -> Any:
    """Put new or trained adapters on a model.

    Raises:
        UserError: If peft is not installed, or the options do not fit the model.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError(
            "model.policy.lora",
            "needs the package peft, which is not installed",
            "pip install 'adadpo-lightning[lora]'",
        ) from error
    if options.adapter is not None:
        with stand_ins(model):
            return _trained_adapter(model, options.adapter)
    lora = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=options.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        with stand_ins(model):
            return get_peft_model(model, lora)
    except ValueError as error:
        raise UserError("model.policy.lora.target_modules", first_line(error)) from error


def _trained_adapter(model: PreTrainedModel, path: str) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, path, is_trainable=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            "model.policy.lora.adapter",
            f"no adapter could be loaded from {path!r}: {first_line(error)}",
            "give a directory with adapter_config.json and LoRA weights that fit the model",
        ) from error


def quantization_config(config: PolicyConfig) -> Any:
    """How the base model below adapters is held in 4 bits; None where it is not.

    Raises:
        UserError: Where 4 bits can't serve: without CUDA, without bitsandbytes, or for random weights.
    """
    if config.lora is None or config.lora.quantize is None:
        return None
    field = "model.policy.lora.quantize"
    if not torch.cuda.is_available():
        raise UserError(field, "4-bit weights need a CUDA device, none found", "set it to null")
    if not find_spec("bitsandbytes"):
        raise UserError(
            field, "needs the package bitsandbytes, which is not installed", "pip install 'adadpo-lightning[qlora]'"
        )
    from transformers import BitsAndBytesConfig

    compute = torch.bfloat16 if config.dtype == "auto" else getattr(torch, config.dtype)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )


def check_whole(config: PolicyConfig) -> None:
    """4-bit weights are made as they are loaded, whole and on one device."""
    if config.lora is not None and config.lora.quantize is not None:
        raise UserError(
            "model.policy.lora.quantize",
            "4 bits need weights to load (model.policy.path) and each rank a copy of its own",
            "set it to null, or take the strategy single or ddp",
        )
