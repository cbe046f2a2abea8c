"""Low-rank adapters on a base model, which may be stored in 4 bits."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from adadpo_lightning import hub
from adadpo_lightning.errors import UserError, first_line, one_line
from adadpo_lightning.models.meta import stand_ins

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adadpo_lightning.models.loading import LoraOptions, PolicyConfig


def with_adapter(model: PreTrainedModel, options: LoraOptions) -> Any:
    """Add new or trained adapters to a model.

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
        with hub.loading(path):
            return PeftModel.from_pretrained(model, path, is_trainable=True)
    except Exception as error:  # files of strangers make peft raise errors of many types
        raise UserError(
            "model.policy.lora.adapter",
            f"cannot load an adapter from {path!r}: {one_line(error)}",
            "use a directory with adapter_config.json and LoRA weights that match the model",
        ) from error


def quantization_config(config: PolicyConfig) -> Any:
    """Quantization config of a base model in 4 bits; None without quantization.

    Raises:
        UserError: If CUDA or bitsandbytes is not available.
    """
    if config.lora is None or config.lora.quantize is None:
        return None
    field = "model.policy.lora.quantize"
    if not torch.cuda.is_available():
        raise UserError(field, "4-bit weights need a CUDA device, but none was found", "set it to null")
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
    """Reject quantization of random or sharded weights: quantization happens while a full model is loaded."""
    if config.lora is not None and config.lora.quantize is not None:
        raise UserError(
            "model.policy.lora.quantize",
            "4-bit weights need a model to load (model.policy.path), and a full copy on each rank",
            "set it to null, or use the strategy single or ddp",
        )
