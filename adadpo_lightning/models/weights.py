"""The base model: weights from safetensors or GGUF, an architecture on the meta device, or random weights."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adadpo_lightning import gguf, hub
from adadpo_lightning.compat import has_mismatched_sizes, needs_remote_code
from adadpo_lightning.data.tokenizer import check_exists
from adadpo_lightning.errors import UserError, first_line, one_line
from adadpo_lightning.models.lora import quantization_config
from adadpo_lightning.models.meta import parameters_on_meta

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from adadpo_lightning.models.loading import PolicyConfig


def random_model(config: PolicyConfig) -> PreTrainedModel:
    """A model with random weights from a config, seeded by `init_seed`.

    Raises:
        UserError: If the config does not define a causal language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    values = config_values(config.config)
    try:
        architecture = AutoConfig.for_model(**values)
    except Exception as error:  # as in `pretrained_model`
        raise UserError(
            "model.policy.config",
            f"is not a Hugging Face config: {one_line(error)}",
            "set model_type to a known type",
        ) from error
    # Forked, so that the seed of the weights does not affect the random state of the run.
    with torch.random.fork_rng():
        torch.manual_seed(config.init_seed)
        dtype = torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)
        try:
            return AutoModelForCausalLM.from_config(
                architecture, dtype=dtype, attn_implementation=config.attn_implementation
            )
        except Exception as error:  # as in `pretrained_model`
            raise UserError(
                "model.policy.config", f"does not define a causal language model: {one_line(error)}"
            ) from error


def config_values(source: dict[str, Any] | str | None) -> dict[str, Any]:
    """The Hugging Face config of random weights: a mapping, or read from a file or its directory.

    Raises:
        UserError: If it cannot be read or lacks ``model_type``.
    """
    if isinstance(source, dict):
        values = dict(source)
    else:
        path = Path(str(source))
        path = path / "config.json" if path.is_dir() else path
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                "model.policy.config",
                f"{path} cannot be read as JSON: {first_line(error)}",
                "use the path of a config.json",
            ) from error
    if not isinstance(values, dict):
        raise UserError("model.policy.config", f"expected a mapping, got {type(values).__name__}")
    if "model_type" not in values:
        raise UserError("model.policy.config", f"expected a key model_type, got the keys {sorted(values)}")
    return values


def pretrained_model(config: PolicyConfig) -> PreTrainedModel:
    """The pretrained model at `path`.

    Raises:
        UserError: If weights cannot be loaded or are missing.
    """
    from transformers import AutoModelForCausalLM

    if config.gguf_file is not None:
        return _gguf_model(config)
    path = str(config.path)
    _check_directory(path)
    quantization = quantization_config(config)
    try:
        with hub.loading(path):
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
    except Exception as error:  # config, weights and code of strangers make transformers raise errors of many types
        raise UserError(
            "model.policy.path",
            f"cannot load a model from {path!r}: {one_line(error)}",
            _remedy(error),
        ) from error
    _check_complete(path, report)
    if getattr(model.config, "quantization_config", None) is None:
        _check_floating(Path(path))
    return model


def _check_floating(folder: Path) -> None:
    """Stop at weights that are whole numbers, where the config does not say how they are quantized.

    Raises:
        UserError: Naming the first.
    """
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  # it is no mapping
                dtype = weights.get_slice(name).get_dtype()
                if name.endswith(".weight") and dtype.startswith(("I", "U")):
                    raise UserError(
                        "model.policy.path",
                        f"{file} has {name} as {dtype}: quantized weights, which transformers would read as they are",
                        "use the model's floating-point weights",
                    )


def _gguf_model(config: PolicyConfig) -> PreTrainedModel:
    """The model of a GGUF file with unpacked weights.

    transformers marks a model that it read from such a file as quantized, and then refuses to save it. The weights are
    therefore moved, without a copy, into a model of the same config that knows nothing of the file.
    """
    from transformers import AutoModelForCausalLM, GgufConfig

    file = gguf.locate(str(config.path), str(config.gguf_file), revision=config.revision)
    try:
        read, report = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            dtype=_dtype(config),
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
    except Exception as error:  # as in `pretrained_model`
        raise UserError(
            "model.policy.gguf_file",
            f"cannot load a model from {str(file)!r}: {one_line(error)}",
            "use a complete GGUF file of an architecture that transformers can read, or safetensors weights",
        ) from error
    _check_complete(str(file), report)
    with parameters_on_meta():
        model = AutoModelForCausalLM.from_config(
            read.config, dtype=read.dtype, attn_implementation=config.attn_implementation
        )
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    return model


def _check_complete(path: str, report: dict[str, Any]) -> None:
    if report["missing_keys"]:
        some = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError(
            "model.policy.path",
            f"{path!r} lacks {len(report['missing_keys'])} of the model's weights, which would be random: {some}",
            "use the weights of a causal language model",
        )


def read_architecture(config: PolicyConfig) -> PretrainedConfig:
    """The Hugging Face config at `path`, from ``config.json`` or the GGUF file.

    Raises:
        OSError, ValueError, ImportError: As transformers raises them.
        UserError: If the GGUF file is not found.
    """
    from transformers import AutoConfig

    if config.gguf_file is None:
        path = str(config.path)
        with hub.loading(path):
            return AutoConfig.from_pretrained(
                path, revision=config.revision, trust_remote_code=config.trust_remote_code
            )
    file = gguf.locate(str(config.path), config.gguf_file, revision=config.revision)
    return AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)


def empty_model(config: PolicyConfig) -> PreTrainedModel:
    """The architecture at `path` without weights, for callers that load the weights themselves."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    path = str(config.path)
    if config.gguf_file is None:
        _check_directory(path)
    try:
        architecture = read_architecture(config)
        model = AutoModelForCausalLM.from_config(
            architecture,
            dtype=architecture.dtype if config.dtype == "auto" else _dtype(config),
            attn_implementation=config.attn_implementation,
            trust_remote_code=config.trust_remote_code,
        )
    except Exception as error:  # as in `pretrained_model`
        raise UserError(
            "model.policy.path",
            f"cannot create a model from {path!r}: {one_line(error)}",
            _remedy(error),
        ) from error
    # Like `from_pretrained`: a model without a generation config uses the defaults.
    with suppress(OSError):
        if config.gguf_file is None:
            model.generation_config = GenerationConfig.from_pretrained(path, revision=config.revision)
    return model


def _dtype(config: PolicyConfig) -> torch.dtype | str:
    dtype: torch.dtype | str = "auto" if config.dtype == "auto" else getattr(torch, config.dtype)
    return dtype


def _remedy(error: BaseException) -> str:
    """How to fix a model that fails to load."""
    if needs_remote_code(error):
        return "review that code, and if you trust it, set model.policy.trust_remote_code: true"
    if has_mismatched_sizes(error):
        return "the sizes of weights and config.json differ (see the table above): use files that belong together"
    return "use a directory with config.json and matching safetensors weights, or an accessible hub id"


def _check_directory(path: str) -> None:
    local = Path(path)
    if (local / "adapter_config.json").exists() and not (local / "config.json").exists():
        raise UserError(
            "model.policy.path",
            f"{path} contains a LoRA adapter, not a model",
            "set path to its base model and model.policy.lora.adapter to this directory",
        )
    if local.is_dir() and not (local / "config.json").exists():
        raise UserError("model.policy.path", f"the directory {path} has no config.json", "use a Hugging Face directory")
    check_exists(path, "model.policy.path")
