"""Load policies and tokenizers: local Hugging Face directories, hub ids, or random weights from a config."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from adadpo_lightning.compat import has_mismatched_sizes, needs_remote_code
from adadpo_lightning.errors import UserError
from adadpo_lightning.models.activations import enable_checkpointing
from adadpo_lightning.models.meta import parameters_on_meta, stand_ins

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)


@dataclass
class LoraOptions:
    """Low-rank adapters through peft (extra ``lora``).

    Args:
        r: Rank.
        alpha: Scale; the update is multiplied by alpha / r.
        dropout: Dropout on the adapters' input; above 0 the rewards are noisy, because the reference has none.
        target_modules: Names of the modules to adapt, or ``all-linear``.
        adapter: Directory of a trained adapter to go on from; null starts anew.
        quantize: ``nf4`` holds the frozen base model in 4 bits (QLoRA, arXiv 2305.14314), on CUDA and with the extra
            ``qlora``; null keeps the policy's dtype.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    adapter: str | None = None
    quantize: Literal["nf4"] | None = None


@dataclass
class PolicyConfig:
    """Which model to train and how to load it.

    Args:
        path: Local Hugging Face directory or hub id; weights from safetensors.
        revision: Revision of the hub id.
        config: For random weights and no `path`: a Hugging Face config as a mapping with ``model_type``, or the path
            of a ``config.json`` or its directory.
        init_seed: Seed of random weights.
        tokenizer: Directory or hub id of the tokenizer; null means that of `path`.
        dtype: Type of the weights; ``auto`` is that of the checkpoint.
        attn_implementation: Attention of the padded layout; null takes transformers' choice for the architecture.
        layout: ``packed`` (no padding, each prompt computed once), ``padded``, or ``auto``: packed where the
            architecture can be served.
        packed_attention: Attention of the packed layout: ``segments`` and ``tree`` run anywhere, ``varlen`` and
            ``flex`` on CUDA; ``auto`` chooses by the device.
        head_chunk_size: Tokens for which logits exist at one time.
        token_entropy: Take the entropy of each prediction from the logits while they are there, for ``entropy/...``;
            not with an adapter on the head.
        gradient_checkpointing: Recompute each block's activations in the backward pass to save memory; ``selective``
            keeps attention's results and every second matrix product, which are dear to recompute.
        offload_activations: Keep activations in CPU memory until the backward pass.
        compile: Compile the decoder blocks with `torch.compile`, once for all lengths; attention stays as it is.
            Rewards at step 0 are then 0 up to rounding and no longer exactly.
        lora: Train adapters and not the whole model.
        trust_remote_code: Run code that comes with the model. Only for models whose authors you trust.
    """

    path: str | None = None
    revision: str | None = None
    config: dict[str, Any] | str | None = None
    init_seed: int = 0
    tokenizer: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "float64", "auto"] = "float32"
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    layout: Literal["auto", "packed", "padded"] = "auto"
    packed_attention: Literal["auto", "segments", "tree", "varlen", "flex"] = "auto"
    head_chunk_size: int = 1024
    token_entropy: bool = False
    gradient_checkpointing: bool | Literal["selective"] = False
    offload_activations: bool = False
    compile: bool = False
    lora: LoraOptions | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without loading anything."""
        if (self.path is None) == (self.config is None):
            raise UserError(
                "model.policy.path",
                "expected either a path (directory or hub id) or a config for random weights, "
                f"got {'neither' if self.path is None else 'both'}",
            )
        if self.head_chunk_size < 1:
            raise UserError("model.policy.head_chunk_size", f"expected at least 1, got {self.head_chunk_size}")

    @property
    def tokenizer_path(self) -> str:
        """Where the tokenizer is loaded from.

        Raises:
            UserError: If nothing says where.
        """
        path = self.tokenizer or self.path or (self.config if isinstance(self.config, str) else None)
        if path is None:
            raise UserError("model.policy.tokenizer", "expected a directory or hub id, got null")
        return str(Path(path).parent) if path.endswith("config.json") else path


def load_tokenizer(config: PolicyConfig) -> PreTrainedTokenizerBase:
    """Load the policy's tokenizer.

    Raises:
        UserError: If it cannot be loaded.
    """
    from transformers import AutoTokenizer

    path = config.tokenizer_path
    revision = config.revision if path == config.path else None
    if path == config.path:
        _check_exists(path)
    try:
        return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(
            "model.policy.tokenizer",
            f"no tokenizer could be loaded from {path!r}: {_first_line(error)}",
            "give a directory with tokenizer.json or a hub id",
        ) from error


def load_model(
    config: PolicyConfig, tokenizer: PreTrainedTokenizerBase | None = None, *, empty: bool = False
) -> PreTrainedModel:
    """Load or initialise the policy, without dropout, with adapters if asked for.

    Args:
        config: What to load.
        tokenizer: Its vocabulary is checked against the embedding, if given.
        empty: Leave the base model's weights on the meta device; buffers and adapters are real.

    Raises:
        UserError: If the model cannot be loaded, or the tokenizer has more tokens than the embedding.
    """
    if config.path is None or empty:
        _check_whole(config)
    if empty:
        with parameters_on_meta():
            model = _random_model(config) if config.path is None else _empty_model(config)
    else:
        model = _random_model(config) if config.path is None else _pretrained_model(config)
    if tokenizer is not None:
        check_vocabulary(len(tokenizer), model.get_input_embeddings().num_embeddings)
    switch_off_dropout(model)
    if config.lora is not None:
        model = _with_adapter(model, config.lora)
        if config.lora.dropout == 0:
            switch_off_dropout(model)  # that of an adapter from a directory
    if config.gradient_checkpointing:
        enable_checkpointing(model, selective=config.gradient_checkpointing == "selective")
    return model


def check_vocabulary(tokens: int, embeddings: int) -> None:
    """Every token id must have an embedding.

    Raises:
        UserError: If the tokenizer is larger than the embedding.
    """
    if tokens > embeddings:
        raise UserError(
            "model.policy.tokenizer",
            f"the tokenizer has {tokens} tokens and the model's embedding only {embeddings} rows",
            "give the tokenizer that belongs to the model, or resize the model's embedding",
        )


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout to 0: policy and reference must agree at step 0, and log-ratios must carry no noise."""
    changed = set()
    for holder in (*model.modules(), getattr(model, "config", None)):
        for name, value in list(vars(holder).items()) if holder is not None else []:
            is_rate = "dropout" in name or "pdrop" in name or (name == "p" and isinstance(holder, nn.Dropout))
            if is_rate and isinstance(value, float) and value > 0:
                setattr(holder, name, 0.0)
                changed.add(type(holder).__name__ if name == "p" else name)
    if changed:
        _log.info("Dropout is switched off (%s).", ", ".join(sorted(changed)))


def _dtype(config: PolicyConfig) -> torch.dtype | str:
    dtype: torch.dtype | str = "auto" if config.dtype == "auto" else getattr(torch, config.dtype)
    return dtype


def _check_whole(config: PolicyConfig) -> None:
    """4-bit weights are made as they are loaded, whole and on one device."""
    if config.lora is not None and config.lora.quantize is not None:
        raise UserError(
            "model.policy.lora.quantize",
            "4 bits need weights to load (model.policy.path) and each rank a copy of its own",
            "set it to null, or take the strategy single or ddp",
        )


def _random_model(config: PolicyConfig) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    values = _config_values(config.config)
    try:
        architecture = AutoConfig.for_model(**values)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            "model.policy.config", f"is no Hugging Face config: {_first_line(error)}", "set model_type to a known one"
        ) from error
    # Forked: the seed of the weights must not move the run's own random numbers.
    with torch.random.fork_rng():
        torch.manual_seed(config.init_seed)
        dtype = torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)
        try:
            return AutoModelForCausalLM.from_config(
                architecture, dtype=dtype, attn_implementation=config.attn_implementation
            )
        except (ValueError, ImportError) as error:
            raise UserError("model.policy.config", f"makes no causal language model: {_first_line(error)}") from error


def _config_values(source: dict[str, Any] | str | None) -> dict[str, Any]:
    if isinstance(source, dict):
        values = dict(source)
    else:
        path = Path(str(source))
        path = path / "config.json" if path.is_dir() else path
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                "model.policy.config", f"{path} cannot be read as JSON: {_first_line(error)}", "give a config.json"
            ) from error
    if "model_type" not in values:
        raise UserError("model.policy.config", f"expected a key model_type, got the keys {sorted(values)}")
    return values


def _pretrained_model(config: PolicyConfig) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    path = str(config.path)
    _check_directory(path)
    quantization = quantization_config(config)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            revision=config.revision,
            dtype=_dtype(config),
            attn_implementation=config.attn_implementation,
            use_safetensors=True,
            quantization_config=quantization,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(
            "model.policy.path",
            f"no model could be loaded from {path!r}: {_first_line(error)}",
            _mending(error),
        ) from error
    if report["missing_keys"]:
        some = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError(
            "model.policy.path",
            f"{path!r} lacks {len(report['missing_keys'])} of the model's weights, which would be random: {some}",
            "give the weights of a causal language model",
        )
    return model


def quantization_config(config: PolicyConfig) -> Any:
    """How the base model below adapters is held in 4 bits; None where it is not.

    Raises:
        UserError: Where 4 bits can't serve: without CUDA, without bitsandbytes, or for random weights.
    """
    if config.lora is None or config.lora.quantize is None:
        return None
    field = "model.policy.lora.quantize"
    if not torch.cuda.is_available():
        raise UserError(field, "4-bit weights need a CUDA device, and there is none", "set it to null")
    if not find_spec("bitsandbytes"):
        raise UserError(
            field, "needs the package bitsandbytes, which is not installed", "pip install 'adadpo-lightning[qlora]'"
        )
    from transformers import BitsAndBytesConfig

    compute = torch.bfloat16 if config.dtype == "auto" else getattr(torch, config.dtype)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )


def _empty_model(config: PolicyConfig) -> PreTrainedModel:
    """The architecture at `path`, for a caller that reads the weights itself."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    path = str(config.path)
    _check_directory(path)
    options: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    try:
        architecture = AutoConfig.from_pretrained(path, **options)
        model = AutoModelForCausalLM.from_config(
            architecture,
            dtype=architecture.dtype if config.dtype == "auto" else _dtype(config),
            attn_implementation=config.attn_implementation,
            trust_remote_code=config.trust_remote_code,
        )
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            "model.policy.path",
            f"no model could be made from {path!r}: {_first_line(error)}",
            _mending(error),
        ) from error
    # As `from_pretrained` does: a model without a generation config has the defaults.
    with suppress(OSError):
        model.generation_config = GenerationConfig.from_pretrained(path, revision=config.revision)
    return model


def _mending(error: BaseException) -> str:
    """What to do about a model that does not load."""
    if needs_remote_code(error):
        return "read that code, and if you trust it set model.policy.trust_remote_code: true"
    if has_mismatched_sizes(error):
        return "weights and config.json differ in size, in the table above: give those that belong together"
    return "give a directory with config.json and safetensors weights that fit it, or a hub id that can be reached"


def _check_directory(path: str) -> None:
    local = Path(path)
    if (local / "adapter_config.json").exists() and not (local / "config.json").exists():
        raise UserError(
            "model.policy.path",
            f"{path} holds a LoRA adapter and no model",
            "give its base model as path and this directory as model.policy.lora.adapter",
        )
    if local.is_dir() and not (local / "config.json").exists():
        raise UserError(
            "model.policy.path", f"the directory {path} has no config.json", "give a Hugging Face directory"
        )
    _check_exists(path)


def _check_exists(path: str) -> None:
    """What can be no hub id has to be a directory."""
    local = Path(path)
    if not local.is_dir() and (local.is_absolute() or path.startswith((".", "~"))):
        raise UserError("model.policy.path", f"there is no directory {path}", "give an existing directory or a hub id")


def _with_adapter(model: PreTrainedModel, options: LoraOptions) -> Any:
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
        raise UserError("model.policy.lora.target_modules", _first_line(error)) from error


def _trained_adapter(model: PreTrainedModel, path: str) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, path, is_trainable=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            "model.policy.lora.adapter",
            f"no adapter could be loaded from {path!r}: {_first_line(error)}",
            "give a directory with adapter_config.json and LoRA weights that fit the model",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
