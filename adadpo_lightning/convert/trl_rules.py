"""The keys of TRL whose values change on the way: one function for each part of the config."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adadpo_lightning.convert.trl_keys import LOSSES, SCHEDULERS
from adadpo_lightning.errors import UserError

# Stands for TRL's null, "never truncate": no text has that many tokens.
NO_LIMIT = 2**31 - 1


@dataclass
class Converted:
    """A converted config, and the keys of the source without a place in it.

    Args:
        config: The nested config.
        dropped: Keys without a counterpart, with the reason.
        needless: Keys that need no counterpart, with the reason.
        differs: Differences in meaning, one sentence each.
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


def loss(values: dict[str, Any], out: Converted) -> None:
    """One loss, or a `Mixture` of several.

    Raises:
        UserError: If a loss has no counterpart.
    """
    types = values["loss_type"]
    types = [types] if isinstance(types, str) else list(types)
    if unknown := [kind for kind in types if kind not in LOSSES]:
        raise UserError("loss_type", f"{unknown[0]!r} has no counterpart", f"choose from {', '.join(LOSSES)}")
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


def optimization(values: dict[str, Any], ranks: int, out: Converted) -> None:
    """Batch size, AdamW, schedule, precision, seeds and devices."""
    micro, accumulated = values["per_device_train_batch_size"], values["gradient_accumulation_steps"]
    out.put("data.global_batch_size", ranks * micro * accumulated)
    out.put("model.optimizer.betas", [values["adam_beta1"], values["adam_beta2"]])
    out.put("trainer.gradient_clip_val", values["max_grad_norm"])
    _schedule(values, out)
    bf16 = not values.get("fp16") if values["bf16"] is None else values["bf16"]
    out.put("trainer.precision", "16-mixed" if values.get("fp16") else ("bf16-mixed" if bf16 else "32-true"))
    out.put("seed_everything", values["seed"])
    out.put("data.seed", values["seed"] if values.get("data_seed") is None else values["data_seed"])
    if values.get("use_cpu"):
        out.put("trainer.accelerator", "cpu")
    if ranks > 1:
        out.put("trainer.devices", ranks)
        out.differs.append("several ranks: add --config configs/strategy/ddp.yaml or fsdp2.yaml")


def _schedule(values: dict[str, Any], out: Converted) -> None:
    name = str(values["lr_scheduler_type"])
    if name not in SCHEDULERS:
        out.dropped["lr_scheduler_type"] = f"{name}: replaced by cosine"
    out.put("model.scheduler.name", SCHEDULERS.get(name, "cosine"))
    # transformers: steps win over the ratio, and steps below 1 are a ratio.
    steps, ratio = values["warmup_steps"], values.get("warmup_ratio") or 0.0
    if steps:
        steps, ratio = (0, steps) if steps < 1 else (steps, 0.0)
    if name == "constant":
        steps, ratio = 0, 0.0  # TRL warms up with constant_with_warmup alone
    out.put("model.scheduler.warmup_ratio", ratio)
    if not ratio:
        out.put("model.scheduler.warmup_steps", int(steps))


def duration(values: dict[str, Any], out: Converted) -> None:
    """Epochs and steps, and how often to log and to save."""
    epochs = values["num_train_epochs"]
    if has_steps(values):
        out.put("trainer.max_steps", int(values["max_steps"]))
        out.put("trainer.max_epochs", -1)
    else:
        out.put("trainer.max_epochs", math.ceil(epochs))
        if epochs != int(epochs):
            out.differs.append(f"num_train_epochs {epochs:g}: rounded up to whole epochs; or set trainer.max_steps")
    out.put("trainer.log_every_n_steps", _interval("logging_steps", values, 10, out))
    _checkpoints(values, out)


def _checkpoints(values: dict[str, Any], out: Converted) -> None:
    strategy = strategy_of(values["save_strategy"])
    if strategy == "steps":
        out.put("checkpoint.every_n_train_steps", _interval("save_steps", values, 500, out))
    elif strategy == "epoch":
        out.put("checkpoint.every_n_epochs", 1)
    elif strategy == "no":
        out.differs.append(
            "save_strategy no: last.ckpt is still written; to write none, set trainer.enable_checkpointing: false"
        )
    else:
        out.dropped["save_strategy"] = f"{strategy} has no counterpart; set checkpoint.monitor"
    limit = values.get("save_total_limit") or 0
    out.put("checkpoint.save_top_k", int(limit) if limit > 0 else -1)
    if limit > 1:
        # Lightning keeps the k best; by the step these are the k latest.
        out.put("checkpoint.monitor", "step")
        out.put("checkpoint.mode", "max")
    resume = values.get("resume_from_checkpoint")
    if str(resume).lower() == "true":
        out.put("auto_resume", True)
    elif resume and str(resume).lower() != "false":
        out.dropped["resume_from_checkpoint"] = f"{resume} is a checkpoint of TRL"


def has_steps(values: dict[str, Any]) -> bool:
    """Whether ``max_steps`` counts; transformers takes 0 and below for unset."""
    return bool(values["max_steps"] > 0)


def strategy_of(value: Any) -> str:
    """The name of a strategy; YAML 1.1 reads an unquoted ``no`` as false."""
    return "no" if value in (False, None) else str(value)


def _interval(key: str, values: dict[str, Any], default: int, out: Converted) -> int:
    """Steps between two events; a value below 1 is a fraction of all steps, known only with ``max_steps``."""
    every = values[key]
    if every >= 1:
        return int(every)
    if every > 0 and has_steps(values):
        steps: float = every * values["max_steps"]
        return math.ceil(steps)
    if every > 0:
        out.differs.append(f"{key} {every:g}: a fraction of all steps, not known before the data; set to {default}")
        return default
    raise UserError(key, f"expected a number above 0, got {every}")


def model(values: dict[str, Any], out: Converted) -> None:
    """Weights' type, reference and adapters."""
    out.put("model.policy.dtype", values["dtype"] or "auto")
    if values.get("precompute_ref_log_probs"):
        out.put("model.reference", "cached")
        out.differs.append("precompute_ref_log_probs: kept on disk and shared by later runs over the same pairs")
    if not values.get("use_peft"):
        if values.get("load_in_4bit"):
            out.dropped["load_in_4bit"] = "only for LoRA"
        return
    out.put("model.policy.lora.r", values.get("lora_r", 16))
    out.put("model.policy.lora.alpha", values.get("lora_alpha", 32))
    out.put("model.policy.lora.dropout", values.get("lora_dropout", 0.05))
    if not values.get("lora_target_modules"):
        out.differs.append("lora_target_modules: all-linear; TRL takes peft's choice, often only q_proj and v_proj")
    out.put("model.policy.lora.target_modules", values.get("lora_target_modules") or "all-linear")
    if values.get("load_in_4bit"):
        out.put("model.policy.lora.quantize", "nf4")
        if (kind := values.get("bnb_4bit_quant_type", "nf4")) != "nf4":
            out.dropped["bnb_4bit_quant_type"] = f"{kind}: replaced by nf4"


def data(values: dict[str, Any], out: Converted) -> None:
    """Datasets, limits of length, and how often to validate."""
    out.put("data.max_length", NO_LIMIT if values["max_length"] is None else values["max_length"])
    if values.get("train_sampling_strategy") == "sequential":
        out.put("data.shuffle", False)
    path = values.get("dataset_name")
    evaluates = strategy_of(values["eval_strategy"]) != "no"
    if path is None:
        out.differs.append("dataset_name is missing: set data.train")
    else:
        is_file = Path(path).is_file()
        subset = {"subset": values["dataset_config"]} if values.get("dataset_config") else {}
        out.put("data.train", {"path": path, **subset, **({} if is_file else {"split": values["dataset_train_split"]})})
        if evaluates and is_file:
            out.differs.append(f"eval_strategy: the file {path} has no test split; set data.val or data.val_size")
            evaluates = False
        elif evaluates:
            out.put("data.val", {"path": path, **subset, "split": values["dataset_test_split"]})
    if evaluates:
        _validation(values, out)
    else:
        out.put("trainer.limit_val_batches", 0)


def _validation(values: dict[str, Any], out: Converted) -> None:
    if strategy_of(values["eval_strategy"]) == "epoch":
        out.put("trainer.val_check_interval", 1.0)
        return
    every = values.get("eval_steps") or values["logging_steps"]  # transformers takes null and 0 for logging_steps
    if every < 1 and not has_steps(values):
        # Lightning's fraction is of an epoch, transformers' of the whole run.
        share = every * values["num_train_epochs"]
        out.put("trainer.val_check_interval", min(1.0, share))
        out.put("trainer.check_val_every_n_epoch", max(1, round(share)))
        out.differs.append(f"eval_steps {every:g}: a fraction of the run, here of each epoch")
        return
    steps = math.ceil(every * values["max_steps"]) if every < 1 else int(every)
    out.put("trainer.val_check_interval", steps * values["gradient_accumulation_steps"])
    out.put("trainer.check_val_every_n_epoch", None)  # the interval counts across epochs, as TRL's does
