"""From a config of TRL's DPO script to one of this package, and what of it has no counterpart."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from adadpo_lightning.errors import UserError, did_you_mean

# TRL 1.16's own defaults, which count where a config leaves a key out and ours would differ.
TRL_DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-6,
    "beta": 0.1,
    "label_smoothing": 0.0,
    "max_length": 1024,
    "truncation_mode": "keep_start",
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "gradient_checkpointing": True,
    "seed": 42,
    "logging_steps": 10,
    "save_steps": 500,
    "loss_type": ["sigmoid"],
    "bf16": True,
    "dataset_train_split": "train",
}
# Keys with one counterpart of the same meaning.
SAME: dict[str, str] = {
    "model_name_or_path": "model.policy.path",
    "model_revision": "model.policy.revision",
    "trust_remote_code": "model.policy.trust_remote_code",
    "attn_implementation": "model.policy.attn_implementation",
    "torch_compile": "model.policy.compile",
    "activation_offloading": "model.policy.offload_activations",
    "gradient_checkpointing": "model.policy.gradient_checkpointing",
    "learning_rate": "model.optimizer.lr",
    "weight_decay": "model.optimizer.weight_decay",
    "adam_epsilon": "model.optimizer.eps",
    "lr_scheduler_type": "model.scheduler.name",
    "max_length": "data.max_length",
    "max_prompt_length": "data.max_prompt_length",
    "truncation_mode": "data.truncation",
    "per_device_train_batch_size": "data.micro_batch_size",
    "per_device_eval_batch_size": "data.eval_batch_size",
    "dataloader_num_workers": "data.num_workers",
    "dataloader_drop_last": "data.drop_last",
    "dataset_num_proc": "data.num_proc",
    "max_grad_norm": "trainer.gradient_clip_val",
    "max_steps": "trainer.max_steps",
    "num_train_epochs": "trainer.max_epochs",
    "logging_steps": "trainer.log_every_n_steps",
    "output_dir": "output_dir",
    "resume_from_checkpoint": "ckpt_path",
    "save_steps": "checkpoint.every_n_train_steps",
    "save_total_limit": "checkpoint.save_top_k",
    "ddp_timeout": "trainer.strategy.timeout",
}
# Keys that go into several of ours, or into one by a rule; `convert` says how.
BY_RULE: dict[str, str] = {
    "loss_type": "model.loss",
    "loss_weights": "model.loss (Mixture)",
    "beta": "model.loss.beta; tau of ipo",
    "label_smoothing": "model.loss.label_smoothing",
    "precompute_ref_log_probs": "model.reference: cached",
    "gradient_accumulation_steps": "data.global_batch_size = ranks x micro-batch x this",
    "warmup_steps": "model.scheduler.warmup_steps; below 1 warmup_ratio",
    "warmup_ratio": "model.scheduler.warmup_ratio",
    "adam_beta1": "model.optimizer.betas",
    "adam_beta2": "model.optimizer.betas",
    "bf16": "trainer.precision: bf16-mixed",
    "fp16": "trainer.precision: 16-mixed",
    "seed": "seed_everything and data.seed",
    "data_seed": "data.seed",
    "use_cpu": "trainer.accelerator: cpu",
    "use_peft": "model.policy.lora",
    "lora_r": "model.policy.lora.r",
    "lora_alpha": "model.policy.lora.alpha",
    "lora_dropout": "model.policy.lora.dropout",
    "lora_target_modules": "model.policy.lora.target_modules",
    "load_in_4bit": "model.policy.lora.quantize: nf4",
    "bnb_4bit_quant_type": "model.policy.lora.quantize",
    "dtype": "model.policy.dtype",
    "dataset_name": "data.train.path",
    "dataset_config": "data.train.subset",
    "dataset_train_split": "data.train.split",
    "dataset_test_split": "data.val.split",
    "eval_strategy": "data.val and trainer.val_check_interval",
    "eval_steps": "trainer.val_check_interval (in micro-batches)",
}
# Keys that need no counterpart, and why.
NEEDLESS: dict[str, str] = {
    "padding_free": "nothing is padded",
    "pad_to_multiple_of": "nothing is padded",
    "pad_token": "nothing is padded",
    "use_liger_kernel": "full logits never exist",
    "precompute_ref_batch_size": "the cache is filled in micro-batches",
    "disable_dropout": "dropout is off",
    "use_cache": "training uses no cache",
    "average_tokens_across_devices": "gradients are those of the global batch",
    "remove_unused_columns": "unread columns are left alone",
    "length_column_name": "micro-batches are balanced by length already",
    "train_sampling_strategy": "micro-batches are balanced by length already",
    "do_train": "the command says so",
    "do_eval": "the command says so",
    "do_predict": "the command says so",
    "save_strategy": "last.ckpt is always kept",
    "logging_strategy": "trainer.log_every_n_steps",
    "report_to": "TensorBoard and CSV; others by trainer.logger",
    "lora_task_type": "always CAUSAL_LM",
    "ref_model_sync_steps": "only for sync_ref_model",
    "ref_model_mixup_alpha": "only for sync_ref_model",
    "discopop_tau": "only for its loss",
    "f_alpha_divergence_coef": "only for its divergence",
    "gradient_checkpointing_kwargs": "non-reentrant always",
    "eval_delay": "validation begins with the interval",
}
# Values at which a key of TRL changes nothing; other values are reported as without a counterpart.
NEUTRAL: dict[str, Any] = {
    "f_divergence_type": "reverse_kl",
    "ld_alpha": None,
    "use_weighting": False,
    "sync_ref_model": False,
    "use_rslora": False,
    "use_dora": False,
    "load_in_8bit": False,
    "dataset_streaming": False,
    "optim": "adamw_torch_fused",
    "push_to_hub": False,
    "label_smoothing_factor": 0.0,
}
LOSSES = {"sigmoid": "DPO", "ipo": "IPO", "sft": "SFT"}
SCHEDULERS = {"constant_with_warmup": "constant", "constant": "constant", "linear": "linear", "cosine": "cosine"}


@dataclass
class Converted:
    """A config of ours, and what became of the keys that are not in it.

    Args:
        config: Nested, as YAML has it.
        dropped: Keys without a counterpart, and why; they were in the given config.
        needless: Keys that need none, and why.
        differs: What means something else here, in a sentence each.
    """

    config: dict[str, Any] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    needless: dict[str, str] = field(default_factory=dict)
    differs: list[str] = field(default_factory=list)

    def put(self, name: str, value: Any) -> None:
        """Set a dotted key."""
        *sections, last = name.split(".")
        place = self.config
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value


def known_keys() -> set[str]:
    """Every key of TRL that this module says something about."""
    return {*SAME, *BY_RULE, *NEEDLESS, *NEUTRAL}


def convert(given: dict[str, Any], ranks: int = 1) -> Converted:
    """Translate the keys of a TRL config (DPOConfig, ModelConfig and ScriptArguments in one mapping).

    Args:
        given: The config.
        ranks: Devices that it is run on, for the global batch.

    Returns:
        Our config and notes.

    Raises:
        UserError: If a loss of it is not one of ours.
    """
    values = TRL_DEFAULTS | given
    out = Converted()
    for key, name in SAME.items():
        if values.get(key) is not None:
            out.put(name, values[key])
    _loss(values, out)
    _optimisation(values, ranks, out)
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


def _loss(values: dict[str, Any], out: Converted) -> None:
    types = values["loss_type"]
    types = [types] if isinstance(types, str) else list(types)
    if unknown := [kind for kind in types if kind not in LOSSES]:
        raise UserError("loss_type", f"{unknown[0]!r} has no counterpart", f"there are {', '.join(LOSSES)}")
    options = {
        "DPO": {"beta": values["beta"], "label_smoothing": values["label_smoothing"]},
        "IPO": {"tau": values["beta"]},
        "SFT": {},
    }
    specs = [
        {"class_path": f"adadpo_lightning.losses.{LOSSES[kind]}", "init_args": options[LOSSES[kind]]} for kind in types
    ]
    if len(specs) == 1:
        out.put("model.loss", specs[0])
        return
    weights = values.get("loss_weights") or [1.0] * len(specs)
    mixture = {"losses": specs, "weights": weights}
    out.put("model.loss", {"class_path": "adadpo_lightning.losses.Mixture", "init_args": mixture})


def _optimisation(values: dict[str, Any], ranks: int, out: Converted) -> None:
    micro, accumulated = values["per_device_train_batch_size"], values["gradient_accumulation_steps"]
    out.put("data.global_batch_size", ranks * micro * accumulated)
    out.put("model.optimizer.betas", [values["adam_beta1"], values["adam_beta2"]])
    name = str(values["lr_scheduler_type"])
    if name not in SCHEDULERS:
        out.dropped["lr_scheduler_type"] = f"{name}: cosine is taken"
    out.put("model.scheduler.name", SCHEDULERS.get(name, "cosine"))
    warmup = values["warmup_steps"]
    ratio = values.get("warmup_ratio") or (warmup if 0 < warmup < 1 else None)
    if name == "constant":
        warmup, ratio = 0, None  # TRL warms up with constant_with_warmup alone
    out.put("model.scheduler.warmup_ratio", ratio or 0.0)
    if ratio is None:
        out.put("model.scheduler.warmup_steps", int(warmup))
    precision = "16-mixed" if values.get("fp16") else ("bf16-mixed" if values["bf16"] else "32-true")
    out.put("trainer.precision", precision)
    if values.get("max_steps", -1) and values.get("max_steps", -1) > 0:
        out.put("trainer.max_epochs", -1)
    if float(values["num_train_epochs"]) != int(values["num_train_epochs"]):
        out.differs.append(f"num_train_epochs {values['num_train_epochs']}: whole epochs only; set trainer.max_steps")
        out.put("trainer.max_epochs", int(-(-values["num_train_epochs"] // 1)))
    elif out.config["trainer"].get("max_epochs") != -1:
        out.put("trainer.max_epochs", int(values["num_train_epochs"]))
    out.put("seed_everything", values["seed"])
    out.put("data.seed", values.get("data_seed") or values["seed"])
    if values.get("use_cpu"):
        out.put("trainer.accelerator", "cpu")
    if ranks > 1:
        out.put("trainer.devices", ranks)
        out.differs.append("several ranks: add --config configs/strategy/ddp.yaml or fsdp2.yaml")


def _model(values: dict[str, Any], out: Converted) -> None:
    out.put("model.policy.dtype", values.get("dtype") or "float32")
    if values.get("precompute_ref_log_probs"):
        out.put("model.reference", "cached")
        out.differs.append("precompute_ref_log_probs: kept on disk and shared by later runs over the same pairs")
    if not values.get("use_peft"):
        return
    out.put("model.policy.lora.r", values.get("lora_r", 16))
    out.put("model.policy.lora.alpha", values.get("lora_alpha", 32))
    out.put("model.policy.lora.dropout", values.get("lora_dropout", 0.05))
    out.put("model.policy.lora.target_modules", values.get("lora_target_modules") or "all-linear")
    if values.get("load_in_4bit"):
        out.put("model.policy.lora.quantize", "nf4")


def _data(values: dict[str, Any], out: Converted) -> None:
    if (path := values.get("dataset_name")) is None:
        out.differs.append("dataset_name is missing: set data.train")
        return
    local = Path(path).is_file()
    subset = {"subset": values["dataset_config"]} if values.get("dataset_config") else {}
    out.put("data.train", {"path": path, **subset, **({} if local else {"split": values["dataset_train_split"]})})
    if str(values.get("eval_strategy", "no")) != "no":
        split = values.get("dataset_test_split", "test")
        out.put("data.val", {"path": path, **subset, "split": split})
        if values.get("eval_steps"):
            every = values["eval_steps"] * values["gradient_accumulation_steps"]
            out.put("trainer.val_check_interval", int(every))
    else:
        out.put("trainer.limit_val_batches", 0)


def from_trl_file(path: str, ranks: int = 1) -> tuple[str, Converted]:
    """Convert a file.

    Args:
        path: YAML or JSON.
        ranks: As of `convert`.

    Returns:
        Our YAML, with what was left out as comments, and the parts.

    Raises:
        UserError: If the file is no mapping, or a loss has no counterpart.
    """
    if not Path(path).is_file():
        raise UserError(path, "no such file", "give TRL's config as YAML or JSON")
    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(path, f"is no YAML: {' '.join(str(error).split())}", "mend the file") from error
    if not isinstance(given, dict):
        raise UserError(path, f"expected keys and values, got {type(given).__name__}")
    for key in given:
        advice = did_you_mean(str(key), known_keys()).partition("available")[0]
        if advice and key not in known_keys() and key not in _training_arguments():
            raise UserError(f"{path}: {key}", "is no key of TRL's DPO script", advice.strip())
    converted = convert(given, ranks)
    notes = [f"# Converted from TRL's {Path(path).name}; beside it: an adaptive twin is --model.loss=adadpo."]
    notes += [f"# left out: {key} ({why})" for key, why in (converted.dropped | converted.needless).items()]
    notes += [f"# note: {text}" for text in converted.differs]
    return "\n".join(notes) + "\n" + yaml.safe_dump(converted.config, sort_keys=False), converted


def _training_arguments() -> set[str]:
    from dataclasses import fields

    from transformers import TrainingArguments

    return {each.name for each in fields(TrainingArguments)}


def key_table() -> str:
    """The table of keys for the documentation."""
    lines = ["| TRL | here |", "|---|---|"]
    lines += [f"| `{key}` | `{name}` |" for key, name in sorted(SAME.items())]
    lines += [f"| `{key}` | {name} |" for key, name in sorted(BY_RULE.items())]
    lines += [f"| `{key}` | not needed: {why} |" for key, why in sorted(NEEDLESS.items())]
    lines += [f"| `{key}` | nothing; only `{value}` is the same here |" for key, value in sorted(NEUTRAL.items())]
    return "\n".join(lines)
