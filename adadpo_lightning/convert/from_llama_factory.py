"""Convert a config of LLaMA-Factory's DPO stage into a config of this package, and report what has no counterpart.

What each key does was read in LLaMA-Factory's `CustomDPOTrainer`, `create_ref_model` and argument classes of August
2026, and for its losses in the `dpo_loss` of the TRL versions that it builds on (0.18 to 0.24).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adadpo_lightning.convert import training_arguments
from adadpo_lightning.convert.converted import (
    Converted,
    checked_numbers,
    mapping_of,
    mixture,
    names_of,
    read_text,
    shown,
    spec,
)
from adadpo_lightning.convert.llama_factory_keys import (
    COUNTS,
    FACTORY_DEFAULTS,
    NEEDLESS,
    NEUTRAL,
    NULLABLE,
    NUMBERS,
    SAME,
    known_keys,
)
from adadpo_lightning.errors import UserError

ATTENTION = {"sdpa": "sdpa", "fa2": "flash_attention_2", "disabled": "eager"}


def convert(given: dict[str, Any], ranks: int = 1) -> Converted:
    """Convert the arguments of LLaMA-Factory's ``train``.

    Args:
        given: Its arguments in one mapping.
        ranks: Number of devices, for the global batch size.

    Returns:
        The config of this package, and notes.

    Raises:
        UserError: For another stage than ``dpo``, or if a loss or a form of training has no counterpart.
    """
    values = checked_numbers(FACTORY_DEFAULTS | given, NUMBERS, NULLABLE, COUNTS)
    if values["stage"] != "dpo":
        raise UserError("stage", f"expected dpo, got {shown(values['stage'])}", "other stages have no counterpart")
    out = Converted()
    for key, name in SAME.items():
        if values.get(key) is not None:
            out.put(name, values[key])
    out.put("model.loss", _loss(values, out))
    training_arguments.optimization(values, ranks, out)
    training_arguments.duration(values, out)
    _model(values, out)
    _data(values, out)
    for key, value in given.items():
        if key in NEEDLESS:
            out.needless[key] = NEEDLESS[key]
        elif key in NEUTRAL and value != NEUTRAL[key]:
            out.dropped[key] = f"{value} has no counterpart"
        elif key not in known_keys():
            out.dropped[key] = "no counterpart"
    return out


def from_llama_factory_file(path: str, ranks: int = 1) -> tuple[str, Converted]:
    """Convert a file.

    Args:
        path: YAML or JSON.
        ranks: As for `convert`.

    Returns:
        The config as YAML, with omitted keys as comments, and the conversion.

    Raises:
        UserError: As for `convert`, or if the file is no mapping.
    """
    given = mapping_of(read_text(path, "a LLaMA-Factory config as YAML or JSON"), path)
    converted = convert(given, ranks)
    heading = (
        f"Converted from LLaMA-Factory's {Path(path).name}; for an adaptive twin, change the loss to its Ada twin."
    )
    return converted.as_yaml(heading), converted


def _loss(values: dict[str, Any], out: Converted) -> dict[str, Any]:
    kind, beta, smoothing = values["pref_loss"], values["pref_beta"], values["dpo_label_smoothing"]
    made = {
        "sigmoid": lambda: spec("dpo", beta=beta, label_smoothing=smoothing),
        "hinge": lambda: spec("hinge", beta=beta),
        "ipo": lambda: spec("ipo", tau=beta, length_normalize=True),
        "orpo": lambda: spec("orpo", lam=beta),
        "simpo": lambda: spec("simpo", beta=beta, gamma_beta_ratio=values["simpo_gamma"] / beta, label_smoothing=0.0),
    }
    if kind == "kto_pair":
        raise UserError("pref_loss", "'kto_pair' has no counterpart: its baseline is a batch statistic", "use sigmoid")
    if str(kind) not in made:
        raise UserError("pref_loss", f"unknown loss {shown(kind)}", f"choose from {', '.join(made)}")
    if smoothing and kind != "sigmoid":
        raise UserError("dpo_label_smoothing", f"is only for sigmoid, got {kind!r}", "set it to 0, as it must be there")
    if values["pref_bco_weight"] > 1e-6 and kind not in ("orpo", "simpo"):
        problem = "has no counterpart: its baseline is a running mean of the rewards of earlier batches"
        raise UserError(
            "pref_bco_weight", problem, "set it to 0, or train bco or a Mixture with it, without a baseline"
        )
    if values["ld_alpha"] not in (None, 1):
        problem = "weights the policy's log-probabilities and not the reference's there, so that rewards start above 0"
        raise UserError("ld_alpha", problem, "remove it and set model.loss to lddpo, which weights both")
    main = made[kind]()
    if kind == "orpo":
        out.differs.append("ORPO's likelihood term: mean over the tokens of the batch here, over its answers there")
    if (weight := values["pref_ftx"]) <= 1e-6:
        return main
    out.differs.append(f"pref_ftx {weight:g}: mean over the tokens of the batch here, over its answers there")
    return mixture([main, spec("sft")], [1.0, float(weight)])


def _model(values: dict[str, Any], out: Converted) -> None:
    kind = values["finetuning_type"]
    if kind not in ("full", "lora"):
        raise UserError("finetuning_type", f"{shown(kind)} has no counterpart", "use full or lora")
    half = "bfloat16" if values["bf16"] else "float16" if values.get("fp16") else "auto"
    # Weights that train are kept in float32 there, unless pure_bf16; a frozen base model in the compute type.
    out.put("model.policy.dtype", half if kind == "lora" else "float32")
    if values.get("pure_bf16"):
        out.put("model.policy.dtype", "bfloat16")
        out.put("trainer.precision", "bf16-true")
    out.put("model.policy.gradient_checkpointing", not values["disable_gradient_checkpointing"])
    attention = values.get("flash_attn", "auto")
    if attention in ATTENTION:
        out.put("model.policy.attn_implementation", ATTENTION[attention])
    elif attention != "auto":
        out.dropped["flash_attn"] = f"{attention}: left to the package, which packs pairs by itself"
    if reference := values.get("ref_model"):
        out.put("model.reference_path", reference)
    if kind == "lora":
        _adapter(values, out)
    elif values.get("quantization_bit"):
        raise UserError("quantization_bit", "is only for LoRA", "remove it")


def _adapter(values: dict[str, Any], out: Converted) -> None:
    rank, target = int(values["lora_rank"]), values["lora_target"]
    out.put("model.policy.lora.r", rank)
    out.put("model.policy.lora.alpha", int(values["lora_alpha"] or 2 * rank))
    out.put("model.policy.lora.dropout", 0.0)
    if values["lora_dropout"]:
        out.differs.append(
            f"lora_dropout {values['lora_dropout']:g}: LLaMA-Factory switches the adapters' dropout off too; 0 here"
        )
    names = names_of("lora_target", target)
    out.put("model.policy.lora.target_modules", "all-linear" if names == ["all"] else names)
    if values.get("adapter_name_or_path") is None:
        _peft(values, out)
    _trained_adapter(values, out)
    bits = values.get("quantization_bit")
    if bits == 4:
        out.put("model.policy.lora.quantize", "nf4")
        if (kind := values.get("quantization_type", "nf4")) != "nf4":
            out.dropped["quantization_type"] = f"{kind}: replaced by nf4"
    elif bits:
        out.dropped["quantization_bit"] = f"{bits}: the base model is not quantized; needs more memory"


def _peft(values: dict[str, Any], out: Converted) -> None:
    for name in ("use_rslora", "use_dora"):
        if values.get(name):
            out.put(f"model.policy.lora.peft.{name}", True)
    if saved := values.get("additional_target"):
        names = names_of("additional_target", saved)
        out.put("model.policy.lora.peft.modules_to_save", names)


def _trained_adapter(values: dict[str, Any], out: Converted) -> None:
    path = values.get("adapter_name_or_path")
    if path is None:
        return
    if "," in str(path) or values.get("create_new_adapter"):
        problem = "adapters that are merged before a new one starts have no counterpart"
        raise UserError("adapter_name_or_path", problem, "merge them first, and set model_name_or_path to the result")
    out.put("model.policy.lora.adapter", path)
    if "model.reference_path" not in out.config and values.get("ref_model") is None:
        out.put("model.reference", "adapter_off")
        out.differs.append(
            "the reference is the base model without the trained adapter, as there, so rewards do not start at 0; "
            "with model.reference: auto it is the policy's start"
        )


def _data(values: dict[str, Any], out: Converted) -> None:
    out.differs.append(
        "pairs above cutoff_len: LLaMA-Factory cuts prompt and answer in proportion, here keep_start cuts the answers"
    )
    out.dropped["template"] = (
        f"{values.get('template')}: the tokenizer's own chat template is used; compare with inspect-data"
    )
    if values.get("enable_thinking") is not None:
        out.put("data.chat_template_kwargs", {"enable_thinking": values["enable_thinking"]})
    if values.get("disable_shuffling"):
        out.put("data.shuffle", False)
    train = _sources("dataset", values, out)
    val = _sources("eval_dataset", values, out)
    if train:
        out.put("data.train", train)
    if val:
        out.put("data.val", val)
    if values["val_size"]:
        out.put("data.val_size", values["val_size"])
    if training_arguments.strategy_of(values["eval_strategy"]) != "no" and not (val or values["val_size"]):
        out.differs.append("eval_strategy without eval_dataset or val_size: set data.val or data.val_size")
        values = values | {"eval_strategy": "no"}
    training_arguments.validation(values, out)


def _sources(key: str, values: dict[str, Any], out: Converted) -> list[dict[str, Any]]:
    """The sources of a list of dataset names, as far as ``dataset_info.json`` is at hand."""
    names = names_of(key, values.get(key) or [])
    folder = values.get("dataset_dir", "data")
    if folder == "ONLINE":
        return [_sliced({"path": name, "split": "train"}, values) for name in names]
    table = Path(str(folder)) / "dataset_info.json"
    known = mapping_of(table.read_text(encoding="utf-8"), str(table)) if table.is_file() else {}
    found = []
    for name in names:
        if isinstance(entry := known.get(name), dict):
            found.append(_entry(name, entry, values, out))
        else:
            out.dropped[f"{key} {name}"] = (
                f"not in {table}: set data.{'train' if key == 'dataset' else 'val'} to its file"
            )
    return found


def _entry(name: str, entry: dict[str, Any], values: dict[str, Any], out: Converted) -> dict[str, Any]:
    """One dataset of ``dataset_info.json``."""
    columns = entry.get("columns", {})
    if entry.get("formatting", "alpaca") != "alpaca" or columns.get("query"):
        out.differs.append(
            f"dataset {name}: rows of the form {json.dumps(entry.get('formatting', 'alpaca'))} must be rewritten with "
            "the columns prompt, chosen and rejected first"
        )
        columns = {}
    renamed = {ours: columns[ours] for ours in ("prompt", "chosen", "rejected", "system") if ours in columns}
    extra = {"columns": renamed} if renamed else {}
    if hub := entry.get("hf_hub_url"):
        subset = {"subset": entry["subset"]} if entry.get("subset") else {}
        return _sliced({"path": hub, **subset, "split": entry.get("split", "train"), **extra}, values)
    if values.get("max_samples"):
        out.dropped["max_samples"] = f"{values['max_samples']} of a local file: shorten the file"
    return {"path": str(Path(str(values.get("dataset_dir", "data"))) / str(entry.get("file_name", name))), **extra}


def _sliced(source: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The first ``max_samples`` rows of a hub dataset."""
    limit = values.get("max_samples")
    return source | {"split": f"{source['split']}[:{int(limit)}]"} if limit else source
