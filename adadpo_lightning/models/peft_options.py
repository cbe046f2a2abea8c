"""Which options of peft's LoraConfig a config may set, and why not the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from adadpo_lightning.errors import UserError, did_you_mean

FIELD = "model.policy.lora.peft"


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _are_wholes(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_whole, value))


def _is_pattern(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and _is_whole(v) and v > 0 for k, v in value.items())


def _are_tokens(value: Any) -> bool:
    return _are_wholes(value) or (isinstance(value, dict) and bool(value) and all(map(_are_wholes, value.values())))


_FLAG = ("true or false", _is_flag)
_PATTERN = ("a mapping of module names or patterns to whole numbers of at least 1", _is_pattern)
_NAMES_OR_PATTERN = ("a list of names or a pattern", lambda value: isinstance(value, str) or _are_names(value))
# What each accepted option has to be. Peft checks little: of a name in place of a list, it would take the letters.
ACCEPTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "use_rslora": _FLAG,
    "use_dora": _FLAG,
    "lora_bias": _FLAG,
    "fan_in_fan_out": _FLAG,
    "ensure_weight_tying": _FLAG,
    "modules_to_save": ("a list of module names", _are_names),
    "rank_pattern": _PATTERN,
    "alpha_pattern": _PATTERN,
    "exclude_modules": _NAMES_OR_PATTERN,
    "layers_to_transform": ("a layer or a list of layers", lambda value: _is_whole(value) or _are_wholes(value)),
    "layers_pattern": _NAMES_OR_PATTERN,
    "trainable_token_indices": ("a list of token ids, or a mapping of module names to such lists", _are_tokens),
    "init_lora_weights": ("true, gaussian or orthogonal", lambda value: value in (True, "gaussian", "orthogonal")),
    "bias": ("none", lambda value: value == "none"),
}
OWN = {
    "r": "set model.policy.lora.r",
    "lora_alpha": "set model.policy.lora.alpha",
    "lora_dropout": "set model.policy.lora.dropout",
    "target_modules": "set model.policy.lora.target_modules",
    "base_model_name_or_path": "set model.policy.path",
    "revision": "set model.policy.revision",
    "task_type": "leave it out: it is always CAUSAL_LM",
    "peft_type": "leave it out: it is always LORA",
    "inference_mode": "leave it out: the adapter is trained",
    "auto_mapping": "leave it out: peft writes it",
    "peft_version": "leave it out: peft writes it",
    "runtime_config": "leave it out: it is for inference",
}
_BASE = "changes the base model's weights, so that with the adapter switched off the reference is another model"
_UNTRIED = "has not been compared with peft here"
REFUSED = {
    "kasa_config": _BASE,
    "loftq_config": _BASE,
    "corda_config": _BASE,
    "lora_ga_config": _BASE,
    "layer_replication": "makes another model than the one at model.policy.path",
    "eva_config": "needs activations of the training data before the adapter exists",
    "velora_config": "approximates the gradient",
    "monteclora_config": "draws random weights, which makes rewards noisy, and adds a term to the loss",
    "alora_invocation_tokens": "finds its tokens in the input of the whole model, which several answers share here",
    "arrow_config": "routes between several adapters, and one is trained here",
    "use_qalora": "is for weights that GPTQ has quantized",
    "qalora_group_size": "is for weights that GPTQ has quantized",
    "megatron_config": "needs Megatron's parallel layers",
    "megatron_core": "needs Megatron's parallel layers",
    "use_bdlora": _UNTRIED,
    "target_parameters": _UNTRIED,
}
_BIASES = "trains biases of the base model, which the reference would share"
# Initial weights by their names, which need not be those that peft spells out (pissa_niter_16).
_INITS = {
    **dict.fromkeys(("pissa", "olora", "corda", "loftq", "lora_ga"), _BASE),
    "mica": "freezes one of the two matrices, which checkpoints would then lack",
    "eva": REFUSED["eva_config"],
    "false": "starts from a random update, so that the reference is not the initial policy",
}


def check(options: Mapping[str, Any]) -> None:
    """Check what a config sets of peft's LoraConfig, before anything is loaded; null leaves peft's default.

    Raises:
        UserError: For an option that peft does not know, that is set elsewhere, that has a wrong value, or that this
            package cannot train with.
    """
    for name, value in options.items():
        if name in OWN:
            raise UserError(f"{FIELD}.{name}", "is not set here", OWN[name])
        if name not in ACCEPTED and name not in REFUSED:
            raise UserError(f"{FIELD}.{name}", "peft's LoraConfig has no such option", did_you_mean(name, ACCEPTED))
        if value is None:
            continue
        if (reason := unusable(name, value)) is not None:
            raise UserError(f"{FIELD}.{name}", f"{value!r} {reason}", "leave it out")
        expected, fits = ACCEPTED[name]
        if not fits(value):
            raise UserError(f"{FIELD}.{name}", f"expected {expected}, got {value!r}")


def unusable(name: str, value: Any) -> str | None:
    """Why this package cannot train with an option of peft's LoraConfig; None if it can.

    Example:
        >>> unusable("use_dora", True)
        >>> unusable("bias", "all")
        'trains biases of the base model, which the reference would share'
    """
    if name == "bias" and value in ("all", "lora_only"):
        return _BIASES
    if name == "init_lora_weights":
        text = str(value).lower()
        return next((reason for start, reason in _INITS.items() if text.startswith(start)), None)
    return REFUSED.get(name)


def check_loaded(path: str, config: Any) -> None:
    """Check the LoraConfig of an adapter that was trained elsewhere.

    Raises:
        UserError: If this package cannot train with it.
    """
    defaults = type(config)()
    for name in (*REFUSED, "bias", "init_lora_weights"):
        value = getattr(config, name, None)
        # Random initial weights are replaced by those of the file.
        if value == getattr(defaults, name, None) or (name == "init_lora_weights" and value in (False, "eva")):
            continue
        if (reason := unusable(name, value)) is not None:
            raise UserError(
                "model.policy.lora.adapter",
                f"the adapter in {path} has {name} {value!r}, which {reason}",
                "merge it into its base model, and set model.policy.path to the result",
            )
