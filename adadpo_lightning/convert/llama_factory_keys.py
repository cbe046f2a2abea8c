"""Tables that map the keys of LLaMA-Factory's DPO stage to this package, with defaults and names."""

from __future__ import annotations

from typing import Any

from adadpo_lightning.convert import training_arguments

# Defaults of LLaMA-Factory (August 2026) and of transformers' TrainingArguments under it.
FACTORY_DEFAULTS: dict[str, Any] = {
    "stage": "sft",
    "finetuning_type": "lora",
    "pref_loss": "sigmoid",
    "pref_beta": 0.1,
    "pref_ftx": 0.0,
    "pref_bco_weight": 0.0,
    "dpo_label_smoothing": 0.0,
    "simpo_gamma": 0.5,
    "ld_alpha": None,
    "lora_rank": 8,
    "lora_alpha": None,
    "lora_dropout": 0.0,
    "lora_target": "all",
    "cutoff_len": 2048,
    "val_size": 0.0,
    "disable_gradient_checkpointing": False,
    "learning_rate": 5e-5,
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
    "seed": 42,
    "logging_steps": 500,
    "save_strategy": "steps",
    "save_steps": 500,
    "bf16": False,
    "eval_strategy": "no",
}
SAME: dict[str, str] = {
    "model_name_or_path": "model.policy.path",
    "model_revision": "model.policy.revision",
    "trust_remote_code": "model.policy.trust_remote_code",
    "torch_compile": "model.policy.compile",
    "learning_rate": "model.optimizer.lr",
    "weight_decay": "model.optimizer.weight_decay",
    "adam_epsilon": "model.optimizer.eps",
    "cutoff_len": "data.max_length",
    "per_device_train_batch_size": "data.micro_batch_size",
    "per_device_eval_batch_size": "data.eval_batch_size",
    "dataloader_num_workers": "data.num_workers",
    "dataloader_drop_last": "data.drop_last",
    "preprocessing_num_workers": "data.num_proc",
    "output_dir": "output_dir",
}
BY_RULE: dict[str, str] = {
    "stage": "must be dpo",
    "pref_loss": "model.loss: dpo, hinge, ipo, orpo or simpo; kto_pair is an error",
    "pref_beta": "model.loss.beta; tau of ipo, lam of orpo",
    "simpo_gamma": "model.loss.gamma_beta_ratio = simpo_gamma / pref_beta",
    "pref_ftx": "model.loss: a Mixture with sft; a mean over tokens here, over answers there",
    "pref_bco_weight": "an error above 0: its baseline is a running mean over batches",
    "dpo_label_smoothing": "model.loss.label_smoothing of dpo",
    "ld_alpha": "an error: only the policy's log-probabilities are weighted there, not the reference's",
    "ref_model": "model.reference_path",
    "finetuning_type": "full, or model.policy.lora; freeze and oft are errors",
    "lora_rank": "model.policy.lora.r",
    "lora_alpha": "model.policy.lora.alpha; null is twice the rank",
    "lora_dropout": "model.policy.lora.dropout: 0, since LLaMA-Factory's trainer switches dropout off",
    "lora_target": "model.policy.lora.target_modules; all is all-linear",
    "use_rslora": "model.policy.lora.peft.use_rslora",
    "use_dora": "model.policy.lora.peft.use_dora",
    "additional_target": "model.policy.lora.peft.modules_to_save",
    "adapter_name_or_path": "model.policy.lora.adapter and model.reference: adapter_off",
    "create_new_adapter": "an error with adapter_name_or_path: merge that adapter first",
    "quantization_bit": "4 is model.policy.lora.quantize: nf4",
    "quantization_type": "model.policy.lora.quantize",
    "flash_attn": "model.policy.attn_implementation of the padded layout",
    "disable_gradient_checkpointing": "model.policy.gradient_checkpointing, its opposite",
    "pure_bf16": "model.policy.dtype: bfloat16 and trainer.precision: bf16-true",
    "bf16": "trainer.precision: bf16-mixed; with LoRA, model.policy.dtype: bfloat16",
    "fp16": "trainer.precision: 16-mixed; with LoRA, model.policy.dtype: float16",
    "dataset": "data.train; names are looked up in dataset_info.json",
    "eval_dataset": "data.val",
    "dataset_dir": "where dataset_info.json is",
    "val_size": "data.val_size",
    "max_samples": "data.train.split of hub datasets",
    "template": "none: the tokenizer's own chat template, or data.chat_template",
    "enable_thinking": "data.chat_template_kwargs",
    "disable_shuffling": "data.shuffle: false",
    "optim": "AdamW; said if it was another",
    **dict.fromkeys(("gradient_accumulation_steps",), "data.global_batch_size = ranks x micro-batch x this"),
    **dict.fromkeys(("lr_scheduler_type",), "model.scheduler.name"),
    **dict.fromkeys(("warmup_steps", "warmup_ratio"), "model.scheduler.warmup_steps and warmup_ratio"),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), "model.optimizer.betas"),
    "lr_scheduler_kwargs": "none",
    "max_grad_norm": "trainer.gradient_clip_val",
    "num_train_epochs": "trainer.max_epochs",
    "max_steps": "trainer.max_steps, if above 0",
    "logging_steps": "trainer.log_every_n_steps",
    "save_strategy": "checkpoint.every_n_train_steps or every_n_epochs",
    "save_steps": "checkpoint.every_n_train_steps",
    "save_total_limit": "checkpoint.save_top_k of the latest steps",
    "resume_from_checkpoint": "auto_resume, if true",
    "seed": "seed_everything and data.seed",
    "data_seed": "data.seed",
    "use_cpu": "trainer.accelerator: cpu",
    "eval_strategy": "data.val and trainer.val_check_interval",
    "eval_steps": "trainer.val_check_interval",
}
NEEDLESS: dict[str, str] = {
    **training_arguments.NEEDLESS,
    "enable_liger_kernel": "full logits are never materialized",
    "use_unsloth_gc": "model.policy.gradient_checkpointing",
    "use_fast_tokenizer": "always",
    "overwrite_cache": "the cache is keyed by content",
    "preprocessing_batch_size": "set by the package",
    "plot_loss": "the subcommand plot",
    "save_only_model": "checkpoints are whole; the subcommand export writes the model",
    "print_param_status": "the run summary",
    "double_quantization": "always, with quantize",
    "low_cpu_mem_usage": "always",
    "split_special_tokens": "data.special_tokens",
    "moe_aux_loss_coef": "without effect on DPO there; here model.router_aux_loss_coef",
    "use_swanlab": "other loggers with trainer.logger",
    "compute_accuracy": "logged as rewards/accuracies",
}
NEUTRAL: dict[str, Any] = {
    **training_arguments.NEUTRAL,
    "pissa_init": False,
    "loraplus_lr_ratio": None,
    "rope_scaling": None,
    "shift_attn": False,
    "streaming": False,
    "packing": False,
    "train_on_prompt": False,
    "mask_history": False,
    "mix_strategy": "concat",
    "use_galore": False,
    "use_apollo": False,
    "use_badam": False,
    "use_adam_mini": False,
    "use_muon": False,
    "use_unsloth": False,
    "upcast_layernorm": False,
    "freeze_vision_tower": True,
    "default_system": None,
    "deepspeed": None,
    "fsdp": None,
    "fsdp_config": None,
    "resize_vocab": False,
    "add_tokens": None,
    "add_special_tokens": None,
    "ref_model_adapters": None,
    "ref_model_quantization_bit": None,
}
NUMBERS = (
    *(key for key, default in FACTORY_DEFAULTS.items() if type(default) in (int, float)),
    *("ld_alpha", "lora_alpha", "moe_aux_loss_coef", "quantization_bit", "max_samples"),
    *("warmup_ratio", "eval_steps", "data_seed", "save_total_limit"),
)
NULLABLE = (
    *("ld_alpha", "lora_alpha", "moe_aux_loss_coef", "quantization_bit", "max_samples"),
    *("max_grad_norm", "warmup_ratio", "eval_steps", "data_seed", "save_total_limit"),
)
COUNTS = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")


def known_keys() -> set[str]:
    """Every key of LLaMA-Factory that these tables cover."""
    return {*SAME, *BY_RULE, *NEEDLESS, *NEUTRAL}


def key_table() -> str:
    """The table of keys for the documentation."""
    lines = ["| LLaMA-Factory | here |", "|---|---|"]
    lines += [f"| `{key}` | `{name}` |" for key, name in sorted(SAME.items())]
    lines += [f"| `{key}` | {name} |" for key, name in sorted(BY_RULE.items())]
    lines += [f"| `{key}` | not needed: {why} |" for key, why in sorted(NEEDLESS.items())]
    lines += [f"| `{key}` | none; only `{value}` behaves the same here |" for key, value in sorted(NEUTRAL.items())]
    return "\n".join(lines)
