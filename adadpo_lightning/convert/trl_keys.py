"""Tables that map the keys of TRL's DPO script to this package, with defaults and names."""

from __future__ import annotations

from typing import Any

# Defaults of TRL 1.16, which apply to keys missing in a config if this package's default differs.
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
    "max_steps": -1,
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
    "save_strategy": "steps",
    "save_steps": 500,
    "loss_type": ["sigmoid"],
    "bf16": True,
    "dtype": "float32",
    "dataset_train_split": "train",
    "dataset_test_split": "test",
    "eval_strategy": "no",
}
# Keys whose value is passed on unchanged; null leaves this package's default.
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
    "max_prompt_length": "data.max_prompt_length",
    "truncation_mode": "data.truncation",
    "per_device_train_batch_size": "data.micro_batch_size",
    "per_device_eval_batch_size": "data.eval_batch_size",
    "dataloader_num_workers": "data.num_workers",
    "dataloader_drop_last": "data.drop_last",
    "dataset_num_proc": "data.num_proc",
    "output_dir": "output_dir",
}
# Keys that set several of this package's keys, or one through a rule of `trl_rules`.
BY_RULE: dict[str, str] = {
    "loss_type": "model.loss",
    "loss_weights": "model.loss (Mixture)",
    "beta": "model.loss.beta; tau of ipo",
    "label_smoothing": "model.loss.label_smoothing",
    "precompute_ref_log_probs": "model.reference: cached",
    "gradient_accumulation_steps": "data.global_batch_size = ranks x micro-batch x this",
    "lr_scheduler_type": "model.scheduler.name",
    "warmup_steps": "model.scheduler.warmup_steps; below 1 warmup_ratio",
    "warmup_ratio": "model.scheduler.warmup_ratio, unless warmup_steps is above 0",
    "adam_beta1": "model.optimizer.betas",
    "adam_beta2": "model.optimizer.betas",
    "max_grad_norm": "trainer.gradient_clip_val; null and 0 do not clip",
    "max_length": "data.max_length; null sets no limit",
    "num_train_epochs": "trainer.max_epochs",
    "max_steps": "trainer.max_steps, if above 0",
    "logging_steps": "trainer.log_every_n_steps; below 1 a fraction of max_steps",
    "save_strategy": "checkpoint.every_n_train_steps or every_n_epochs; last.ckpt is always kept",
    "save_steps": "checkpoint.every_n_train_steps; below 1 a fraction of max_steps",
    "save_total_limit": "checkpoint.save_top_k of the latest steps; null and 0 keep all",
    "resume_from_checkpoint": "auto_resume, if true; a checkpoint of TRL cannot be resumed",
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
    "train_sampling_strategy": "data.shuffle: false for sequential",
    "eval_strategy": "data.val and trainer.val_check_interval",
    "eval_steps": "trainer.val_check_interval (in micro-batches); below 1 a fraction of all steps",
}
# Keys that need no counterpart, and why.
NEEDLESS: dict[str, str] = {
    "padding_free": "nothing is padded",
    "pad_to_multiple_of": "nothing is padded",
    "pad_token": "nothing is padded",
    "use_liger_kernel": "full logits are never materialized",
    "precompute_ref_batch_size": "the cache is filled in micro-batches",
    "use_cache": "training uses no cache",
    "average_tokens_across_devices": "gradients are those of the global batch",
    "remove_unused_columns": "unused columns are ignored",
    "length_column_name": "micro-batches are already balanced by length",
    "do_train": "set by the subcommand",
    "do_eval": "set by the subcommand",
    "do_predict": "set by the subcommand",
    "logging_strategy": "trainer.log_every_n_steps",
    "report_to": "TensorBoard and CSV; others with trainer.logger",
    "lora_task_type": "always CAUSAL_LM",
    "ref_model_sync_steps": "only for sync_ref_model",
    "ref_model_mixup_alpha": "only for sync_ref_model",
    "discopop_tau": "only for its loss",
    "f_alpha_divergence_coef": "only for its divergence",
    "gradient_checkpointing_kwargs": "always non-reentrant",
    "eval_delay": "validation follows trainer.val_check_interval",
}
# Values for which a TRL key has no effect; other values are reported as having no counterpart.
NEUTRAL: dict[str, Any] = {
    "f_divergence_type": "reverse_kl",
    "ld_alpha": None,
    "use_weighting": False,
    "sync_ref_model": False,
    "use_rslora": False,
    "use_dora": False,
    "load_in_8bit": False,
    "dataset_streaming": False,
    "disable_dropout": True,
    "optim": "adamw_torch_fused",
    "push_to_hub": False,
    "label_smoothing_factor": 0.0,
    "ddp_timeout": 1800,
}
LOSSES = {"sigmoid": "DPO", "ipo": "IPO", "sft": "SFT"}
SCHEDULERS = {"constant_with_warmup": "constant", "constant": "constant", "linear": "linear", "cosine": "cosine"}
# Keys that hold a number. YAML 1.1 reads 5e-7 as text; transformers' own parser converts it, and so does this one.
NUMBERS = (
    *(key for key, default in TRL_DEFAULTS.items() if type(default) in (int, float)),
    *("warmup_ratio", "eval_steps", "data_seed", "save_total_limit", "lora_r", "lora_alpha", "lora_dropout"),
)
# Numbers that may be null.
NULLABLE = ("max_length", "max_grad_norm", "warmup_ratio", "eval_steps", "data_seed", "save_total_limit")
COUNTS = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")


def known_keys() -> set[str]:
    """Every key of TRL that these tables cover."""
    return {*SAME, *BY_RULE, *NEEDLESS, *NEUTRAL}


def key_table() -> str:
    """The table of keys for the documentation."""
    lines = ["| TRL | here |", "|---|---|"]
    lines += [f"| `{key}` | `{name}` |" for key, name in sorted(SAME.items())]
    lines += [f"| `{key}` | {name} |" for key, name in sorted(BY_RULE.items())]
    lines += [f"| `{key}` | not needed: {why} |" for key, why in sorted(NEEDLESS.items())]
    lines += [f"| `{key}` | none; only `{value}` behaves the same here |" for key, value in sorted(NEUTRAL.items())]
    return "\n".join(lines)
