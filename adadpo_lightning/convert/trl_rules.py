"""The keys of TRL whose values change on the way: model, reference and data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from adadpo_lightning.convert.converted import NO_LIMIT, Converted
from adadpo_lightning.convert.training_arguments import strategy_of, validation
from adadpo_lightning.convert.trl_keys import Trainer
from adadpo_lightning.errors import UserError

MIXTURE_OF_EXPERTS = re.compile(r"moe|mixtral|-a\d+b\b|deepseek-v[23]|gpt-oss", re.IGNORECASE)


def with_model_options(given: dict[str, Any]) -> dict[str, Any]:
    """The config with what ``model_init_kwargs`` gives to `from_pretrained` as keys of its own."""
    options = given.get("model_init_kwargs")
    if not isinstance(options, dict):
        return given
    names = {"torch_dtype": "dtype", "revision": "model_revision"}
    rest = {key: value for key, value in given.items() if key != "model_init_kwargs"}
    return {names.get(key, str(key)): value for key, value in options.items()} | rest


def model(values: dict[str, Any], trainer: Trainer, out: Converted) -> None:
    """Weights' type, routers, reference and adapters.

    Raises:
        UserError: For a reference that TRL refuses as well.
    """
    out.put("model.policy.dtype", values["dtype"] or "auto")
    if (attention := values.get("attn_implementation")) not in (None, "sdpa", "eager", "flash_attention_2"):
        out.config["model"]["policy"].pop("attn_implementation")
        out.dropped["attn_implementation"] = f"{attention}: left to the package, which packs pairs by itself"
    _router_loss(values, trainer, out)
    _reference(values, out)
    if values.get("use_peft"):
        _adapter(values, out)
    elif values.get("load_in_4bit"):
        out.dropped["load_in_4bit"] = "only for LoRA"


def _router_loss(values: dict[str, Any], trainer: Trainer, out: Converted) -> None:
    """The load-balancing loss of a mixture of experts, whose coefficient DPOConfig may leave to the model's config."""
    coefficient = values.get("router_aux_loss_coef")
    if coefficient:
        out.put("model.router_aux_loss_coef", coefficient)
        out.differs.append(
            "router_aux_loss_coef: a prompt counts once for all of its answers here, and with each of them in TRL, as "
            "here with model.policy.layout: padded"
        )
    elif coefficient is None and MIXTURE_OF_EXPERTS.search(str(values.get("model_name_or_path"))):
        when = "" if trainer == "dpo" else ", where output_router_logits in it is true"
        out.differs.append(
            "router_aux_loss_coef is not set and the model's name says mixture of experts: TRL adds the load-balancing "
            f"loss of the routers with the router_aux_loss_coef of the model's config.json{when}; set "
            "model.router_aux_loss_coef to that number for the same here, where it is 0"
        )


def _reference(values: dict[str, Any], out: Converted) -> None:
    cached, synced = values.get("precompute_ref_log_probs"), values.get("sync_ref_model")
    if synced and (cached or values.get("use_peft")):
        other = "precompute_ref_log_probs" if cached else "use_peft"
        raise UserError("sync_ref_model", f"is true together with {other}, which TRL refuses too", "choose one")
    if synced:
        out.put("model.reference", "synced")
        out.put("model.sync.alpha", values["ref_model_mixup_alpha"])
        out.put("model.sync.every_n_steps", int(values["ref_model_sync_steps"]))
    if cached:
        out.put("model.reference", "cached")
        out.differs.append("precompute_ref_log_probs: kept on disk and shared by later runs over the same pairs")


def _adapter(values: dict[str, Any], out: Converted) -> None:
    out.put("model.policy.lora.r", values.get("lora_r", 16))
    out.put("model.policy.lora.alpha", values.get("lora_alpha", 32))
    dropout = values.get("lora_dropout", 0.05)
    disabled = values.get("disable_dropout", True)
    out.put("model.policy.lora.dropout", 0.0 if disabled else dropout)
    if dropout and disabled:
        out.differs.append(
            f"lora_dropout {dropout:g}: TRL's disable_dropout switches the adapters' dropout off; 0 here"
        )
    if not values.get("lora_target_modules"):
        out.differs.append("lora_target_modules: all-linear; TRL takes peft's choice, often only q_proj and v_proj")
    out.put("model.policy.lora.target_modules", values.get("lora_target_modules") or "all-linear")
    names = {"use_rslora": "use_rslora", "use_dora": "use_dora", "lora_modules_to_save": "modules_to_save"}
    for key, name in names.items():
        if values.get(key):
            out.put(f"model.policy.lora.peft.{name}", values[key])
    if values.get("load_in_4bit"):
        out.put("model.policy.lora.quantize", "nf4")
        if (kind := values.get("bnb_4bit_quant_type", "nf4")) != "nf4":
            out.dropped["bnb_4bit_quant_type"] = f"{kind}: replaced by nf4"


def data(values: dict[str, Any], out: Converted) -> None:
    """Datasets, limits of length, and how often to validate."""
    out.put("data.max_length", NO_LIMIT if values["max_length"] is None else values["max_length"])
    if values.get("train_sampling_strategy") == "sequential":
        out.put("data.shuffle", False)
    evaluates = strategy_of(values["eval_strategy"]) != "no"
    has_validation = _sources(values, evaluates, out)
    if evaluates and not has_validation:
        values = values | {"eval_strategy": "no"}
    validation(values, out)


def _sources(values: dict[str, Any], evaluates: bool, out: Converted) -> bool:
    """Set the sources; whether there are pairs to validate on."""
    mixture = values.get("dataset_mixture") or {key: values.get(key) for key in ("datasets", "test_split_size")}
    if mixture.get("datasets"):
        return _mixture(mixture, evaluates, out)
    if values.get("dataset_mixer"):
        return _mixer(values, evaluates, out)
    path = values.get("dataset_name")
    if path is None:
        out.differs.append("dataset_name is missing: set data.train" + (" and data.val" if evaluates else ""))
        return evaluates
    is_file = Path(path).is_file()
    subset = {"subset": values["dataset_config"]} if values.get("dataset_config") else {}
    out.put("data.train", {"path": path, **subset, **({} if is_file else {"split": values["dataset_train_split"]})})
    if evaluates and is_file:
        out.differs.append(f"eval_strategy: the file {path} has no test split; set data.val or data.val_size")
        return False
    if evaluates:
        out.put("data.val", {"path": path, **subset, "split": values["dataset_test_split"]})
    return True


def _mixture(mixture: dict[str, Any], evaluates: bool, out: Converted) -> bool:
    """``datasets`` of TRL and ``dataset_mixture`` of the handbook: entries with path or id, and a held-out part."""
    sources = []
    for entry in mixture["datasets"]:
        source = {"path": entry.get("path") or entry.get("id")}
        if subset := entry.get("name") or entry.get("config"):
            source["subset"] = subset
        source["split"] = entry.get("split", "train")
        if entry.get("weight", 1) != 1:
            source["weight"] = entry["weight"]
        for key in ("data_dir", "data_files", "fraction"):
            if entry.get(key) is not None:
                out.dropped[f"datasets.{key}"] = f"{entry[key]} has no counterpart; set data.train's path or weight"
        sources.append(source)
    out.put("data.train", sources)
    size = mixture.get("test_split_size")
    if size:
        out.put("data.val_size", size)
        out.differs.append("test_split_size: held out by prompt, so other pairs than TRL's; none shares its prompt")
    elif evaluates:
        out.differs.append("eval_strategy without test_split_size: set data.val or data.val_size")
    return bool(size)


def _mixer(values: dict[str, Any], evaluates: bool, out: Converted) -> bool:
    """The handbook's older form: a share of each dataset, and splits whose names say train or test."""
    splits = values.get("dataset_splits") or ["train", "test"]
    train = [name for name in splits if "train" in name]
    test = [name for name in splits if "test" in name]
    shares = values["dataset_mixer"]
    subset = values.get("dataset_configs") or [None] * len(shares)
    named = [{"path": path, **({"subset": each} if each else {})} for path, each in zip(shares, subset, strict=False)]
    weights = [{} if share == 1 else {"weight": share} for share in shares.values()]
    out.put(
        "data.train",
        [{**source, "split": split, **w} for source, w in zip(named, weights, strict=True) for split in train],
    )
    if evaluates and test:
        out.put("data.val", [{**source, "split": split} for source in named for split in test])
    return bool(test)
