"""The keys of transformers' TrainingArguments, which TRL and LLaMA-Factory share: one function for each part."""

from __future__ import annotations

import math
from typing import Any

from adadpo_lightning.convert.converted import Converted
from adadpo_lightning.errors import UserError

SCHEDULERS = {"constant_with_warmup": "constant", "constant": "constant", "linear": "linear", "cosine": "cosine"}
# AdamW in one form or another: the same update as here.
SAME_OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "adamw_hf", "adamw_apex_fused")
# Optimizers that transformers takes from torch, with learning rate and weight decay alone.
TORCH_OPTIMIZERS = {"sgd": "SGD", "rmsprop": "RMSprop", "adagrad": "Adagrad"}
# Keys that need no counterpart, and why.
NEEDLESS: dict[str, str] = {
    "use_cache": "training uses no cache",
    "average_tokens_across_devices": "gradients are those of the global batch",
    "remove_unused_columns": "unused columns are ignored",
    "length_column_name": "micro-batches are already balanced by length",
    "do_train": "set by the subcommand",
    "do_eval": "set by the subcommand",
    "do_predict": "set by the subcommand",
    "logging_strategy": "trainer.log_every_n_steps",
    "log_level": "messages only",
    "run_name": "a name only; the output directory is the name here",
    "report_to": "TensorBoard and CSV; others with trainer.logger",
    "gradient_checkpointing_kwargs": "always non-reentrant",
    "eval_delay": "validation follows trainer.val_check_interval",
    "overwrite_output_dir": "a new run needs a new output_dir; auto_resume continues one",
}
# Values for which a key has no effect; other values are reported as having no counterpart.
NEUTRAL: dict[str, Any] = {"push_to_hub": False, "label_smoothing_factor": 0.0, "ddp_timeout": 1800}


def optimization(values: dict[str, Any], ranks: int, out: Converted) -> None:
    """Batch size, AdamW, schedule, precision, seeds and devices."""
    micro, accumulated = values["per_device_train_batch_size"], values["gradient_accumulation_steps"]
    out.put("data.global_batch_size", ranks * micro * accumulated)
    out.put("model.optimizer.betas", [values["adam_beta1"], values["adam_beta2"]])
    out.put("trainer.gradient_clip_val", values["max_grad_norm"])
    _optimizer(values, out)
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


def _optimizer(values: dict[str, Any], out: Converted) -> None:
    name = str(values.get("optim", SAME_OPTIMIZERS[0]))
    if name in SAME_OPTIMIZERS:
        return
    if name in TORCH_OPTIMIZERS and not values.get("optim_args"):
        given = {"lr": float(values["learning_rate"]), "weight_decay": float(values.get("weight_decay") or 0.0)}
        out.put("model.optimizer", {"class_path": f"torch.optim.{TORCH_OPTIMIZERS[name]}", "init_args": given})
        return
    if name.startswith("paged_adamw") and "8bit" not in name:
        out.dropped["optim"] = f"{name}: replaced by AdamW, whose states are not paged to the CPU; the same update"
    elif "adamw" in name:
        out.dropped["optim"] = f"{name}: replaced by AdamW with states in the dtype of the weights; needs more memory"
    else:
        out.dropped["optim"] = f"{name}: replaced by AdamW, another optimizer: choose the learning rate anew"


def _schedule(values: dict[str, Any], out: Converted) -> None:
    name = str(values["lr_scheduler_type"])
    if name not in SCHEDULERS:
        out.dropped["lr_scheduler_type"] = f"{name}: replaced by cosine"
    if values.get("lr_scheduler_kwargs"):
        out.dropped["lr_scheduler_kwargs"] = f"{values['lr_scheduler_kwargs']} has no counterpart"
    out.put("model.scheduler.name", SCHEDULERS.get(name, "cosine"))
    # transformers: steps win over the ratio, and steps below 1 are a ratio.
    steps, ratio = values["warmup_steps"], values.get("warmup_ratio") or 0.0
    if steps:
        steps, ratio = (0, steps) if steps < 1 else (steps, 0.0)
    if name == "constant":
        steps, ratio = 0, 0.0  # transformers warms up with constant_with_warmup alone
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
        out.dropped["resume_from_checkpoint"] = f"{resume} is a checkpoint of another program"


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


def validation(values: dict[str, Any], out: Converted) -> None:
    """How often to validate, if at all."""
    strategy = strategy_of(values["eval_strategy"])
    if strategy == "no":
        out.put("trainer.limit_val_batches", 0)
        return
    if strategy == "epoch":
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
    out.put("trainer.check_val_every_n_epoch", None)  # the interval counts across epochs, as transformers' does
