"""Low-rank adapters on a base model, which may be stored in 4 bits."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from adadpo_lightning import hub
from adadpo_lightning.errors import UserError, first_line, one_line
from adadpo_lightning.models import peft_options
from adadpo_lightning.models.adapters import TRAINED
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
    others = {name: value for name, value in copy.deepcopy(options.peft or {}).items() if value is not None}
    try:
        lora = LoraConfig(
            r=options.r,
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            target_modules=options.target_modules,
            task_type="CAUSAL_LM",
            **others,
        )
        with stand_ins(model):
            adapted = get_peft_model(model, lora)
    except (ValueError, TypeError) as error:
        field = peft_options.FIELD if others else "model.policy.lora.target_modules"
        raise UserError(field, first_line(error)) from error
    _check_matches(adapted, others)
    return adapted


def _check_matches(model: Any, options: Mapping[str, Any]) -> None:
    """Stop at a name of a module that does not exist: peft would leave the option out of account.

    Raises:
        UserError: Naming the option.
    """
    names = [name for name, _ in model.get_base_model().named_modules()]
    names = [name.replace(".base_layer", "").replace(".original_module", "") for name in names]

    def are_some(wanted: str, *, pattern: bool) -> bool:
        if pattern:
            return any(re.match(rf"(.*\.)?({wanted})$", name) for name in names)
        return any(name == wanted or name.endswith(f".{wanted}") for name in names)

    for option in ("rank_pattern", "alpha_pattern", "modules_to_save", "exclude_modules", "trainable_token_indices"):
        wanted = options.get(option, ())
        wanted = [wanted] if isinstance(wanted, str) else wanted
        pattern = option.endswith("pattern") or isinstance(options.get(option), str)
        for name in wanted:
            if isinstance(name, str) and not are_some(name, pattern=pattern):
                raise UserError(
                    f"{peft_options.FIELD}.{option}", f"{name!r} is the name of no module of the model", "correct it"
                )


def _trained_adapter(model: PreTrainedModel, path: str) -> Any:
    from peft import PeftModel

    try:
        with hub.loading(path):
            loaded = PeftModel.from_pretrained(model, path, is_trainable=True)
    except Exception as error:  # files of strangers make peft raise errors of many types
        raise UserError(
            "model.policy.lora.adapter",
            f"cannot load an adapter from {path!r}: {one_line(error)}",
            "use a directory with adapter_config.json and LoRA weights that match the model",
        ) from error
    config = loaded.peft_config[TRAINED]
    if config.peft_type == "LORA":
        peft_options.check_loaded(path, config)
    return loaded


def _has_device() -> bool:
    # Bitsandbytes also computes on CPUs, where it repacks weights in place when a model is evaluated.
    return torch.cuda.is_available()


def quantization_config(config: PolicyConfig) -> Any:
    """Quantization config of a base model in 4 bits; None without quantization.

    Raises:
        UserError: If CUDA or bitsandbytes is not available.
    """
    if config.lora is None or config.lora.quantize is None:
        return None
    field = "model.policy.lora.quantize"
    if not _has_device():
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
    """Reject quantization of random weights: quantization happens while a model is loaded."""
    if config.lora is not None and config.lora.quantize is not None:
        raise UserError(
            "model.policy.lora.quantize",
            "4-bit weights need a model to load, got random weights",
            "set model.policy.path, or quantize to null",
        )
