"""Tables that map the keys of TRL's configs to this package, with defaults and names."""

from __future__ import annotations

from typing import Any, Literal

from adadpo_lightning.convert import training_arguments

Trainer = Literal["dpo", "cpo", "orpo", "simpo"]
# Defaults of TRL 1.16, which apply to keys missing in a config if this package's default differs.
TRL_DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-6,
    "beta": 0.1,
    "label_smoothing": 0.0,
    "max_length": 1024,
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
    "bf16": True,
    "dtype": "float32",
    "dataset_train_split": "train",
    "dataset_test_split": "test",
    "eval_strategy": "no",
}
# Defaults of one trainer's own keys. SimPO's repository builds on transformers' defaults of its time.
DEFAULTS: dict[Trainer, dict[str, Any]] = {
    "dpo": {
        "loss_type": ["sigmoid"],
        "truncation_mode": "keep_start",
        "discopop_tau": 0.05,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "ld_alpha": None,
        "use_weighting": False,
        "ref_model_mixup_alpha": 0.6,
        "ref_model_sync_steps": 512,
    },
    "cpo": {
        "loss_type": "sigmoid",
        "cpo_alpha": 1.0,
        "simpo_gamma": 0.5,
        "alpha": 0.0,
        "truncation_mode": "keep_start",
    },
    "orpo": {"truncation_mode": "keep_start"},
    "simpo": {
        "beta": 2.0,
        "gamma_beta_ratio": 0.25,
        "sft_weight": 0.0,
        "loss_type": "sigmoid",
        "truncation_mode": "keep_end",
        "max_length": 512,
        "max_prompt_length": 128,
        "learning_rate": 5e-5,
        "gradient_checkpointing": False,
        "bf16": False,
        "logging_steps": 500,
    },
}
# Names of older versions of TRL and transformers, and of the alignment handbook.
OLD_NAMES: dict[str, str] = {
    "torch_dtype": "dtype",
    "evaluation_strategy": "eval_strategy",
    "preprocessing_num_workers": "dataset_num_proc",
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
    "chat_template": "data.chat_template",
    "per_device_train_batch_size": "data.micro_batch_size",
    "per_device_eval_batch_size": "data.eval_batch_size",
    "dataloader_num_workers": "data.num_workers",
    "dataloader_drop_last": "data.drop_last",
    "dataset_num_proc": "data.num_proc",
    "output_dir": "output_dir",
}
# Keys that set several of this package's keys, or one through a rule.
BY_RULE: dict[str, str] = {
    "loss_type": "model.loss, see the table above",
    "loss_weights": "model.loss (Mixture)",
    "beta": "model.loss.beta; tau of ipo, lam of orpo",
    "label_smoothing": "model.loss.label_smoothing of robust, exo_pair, cpo and simpo; sigmoid ignores it, as in TRL",
    "discopop_tau": "model.loss.tau of discopop",
    "f_divergence_type": "model.loss: fdpo, for sigmoid",
    "f_alpha_divergence_coef": "model.loss.alpha of fdpo = 1 - this, the paper's alpha",
    "ld_alpha": "model.loss: lddpo, for sigmoid",
    "use_weighting": "model.loss: wpo, for sigmoid",
    "rpo_alpha": "model.loss: a Mixture with sft (older versions of TRL)",
    "cpo_alpha": "model.loss.nll_weight of cpo; a Mixture with sft for simpo",
    "simpo_gamma": "model.loss.gamma_beta_ratio = simpo_gamma / beta",
    "alpha": "model.loss: alphapo, for CPOConfig's simpo",
    "gamma_beta_ratio": "model.loss.gamma_beta_ratio (SimPO's own configs)",
    "sft_weight": "model.loss: a Mixture with sft (SimPO's own configs)",
    "sync_ref_model": "model.reference: synced",
    "ref_model_mixup_alpha": "model.sync.alpha",
    "ref_model_sync_steps": "model.sync.every_n_steps",
    "router_aux_loss_coef": "model.router_aux_loss_coef; null, which is the model config's own number there, is said",
    "model_init_kwargs": "its keys, as if they were given themselves",
    "optim": "AdamW; said if it was another",
    "precompute_ref_log_probs": "model.reference: cached",
    "gradient_accumulation_steps": "data.global_batch_size = ranks x micro-batch x this",
    "lr_scheduler_type": "model.scheduler.name",
    "lr_scheduler_kwargs": "none",
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
    "disable_dropout": "always; with true, TRL switches the adapters' dropout off too",
    "use_peft": "model.policy.lora",
    "lora_r": "model.policy.lora.r",
    "lora_alpha": "model.policy.lora.alpha",
    "lora_dropout": "model.policy.lora.dropout: 0, unless disable_dropout is false",
    "lora_target_modules": "model.policy.lora.target_modules",
    "use_rslora": "model.policy.lora.peft.use_rslora",
    "use_dora": "model.policy.lora.peft.use_dora",
    "lora_modules_to_save": "model.policy.lora.peft.modules_to_save",
    "load_in_4bit": "model.policy.lora.quantize: nf4",
    "bnb_4bit_quant_type": "model.policy.lora.quantize",
    "dtype": "model.policy.dtype",
    "dataset_name": "data.train.path",
    "dataset_config": "data.train.subset",
    "dataset_train_split": "data.train.split",
    "dataset_test_split": "data.val.split",
    "datasets": "data.train, a list of sources",
    "test_split_size": "data.val_size",
    "dataset_mixture": "data.train and data.val_size (the alignment handbook)",
    "dataset_mixer": "data.train and data.val, with weights (the alignment handbook)",
    "dataset_splits": "data.train.split and data.val.split (the alignment handbook)",
    "train_sampling_strategy": "data.shuffle: false for sequential",
    "eval_strategy": "data.val and trainer.val_check_interval",
    "eval_steps": "trainer.val_check_interval (in micro-batches); below 1 a fraction of all steps",
}
# Keys that need no counterpart, and why.
NEEDLESS: dict[str, str] = {
    **training_arguments.NEEDLESS,
    "padding_free": "nothing is padded",
    "padding_value": "nothing is padded",
    "pad_to_multiple_of": "nothing is padded",
    "pad_token": "nothing is padded",
    "use_liger_kernel": "full logits are never materialized",
    "precompute_ref_batch_size": "the cache is filled in micro-batches",
    "lora_task_type": "always CAUSAL_LM",
}
# Values for which a TRL key has no effect; other values are reported as having no counterpart.
NEUTRAL: dict[str, Any] = {
    **training_arguments.NEUTRAL,
    "load_in_8bit": False,
    "dataset_streaming": False,
    "generate_during_eval": False,
    "is_encoder_decoder": None,
    "max_completion_length": None,
}
# Keys that hold a number.
NUMBERS = (
    *(key for key, default in TRL_DEFAULTS.items() if type(default) in (int, float)),
    *("warmup_ratio", "eval_steps", "data_seed", "save_total_limit", "lora_r", "lora_alpha", "lora_dropout"),
    *("discopop_tau", "f_alpha_divergence_coef", "ld_alpha", "ref_model_mixup_alpha", "ref_model_sync_steps"),
    *("cpo_alpha", "simpo_gamma", "alpha", "gamma_beta_ratio", "sft_weight", "rpo_alpha", "router_aux_loss_coef"),
)
# Numbers that may be null.
NULLABLE = (
    *("max_length", "max_grad_norm", "warmup_ratio", "eval_steps", "data_seed", "save_total_limit"),
    *("ld_alpha", "rpo_alpha", "router_aux_loss_coef"),
)
COUNTS = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")


def known_keys() -> set[str]:
    """Every key of TRL that these tables cover."""
    return {*SAME, *BY_RULE, *NEEDLESS, *NEUTRAL, *OLD_NAMES}


def key_table() -> str:
    """The table of keys for the documentation."""
    lines = ["| TRL | here |", "|---|---|"]
    lines += [f"| `{key}` | `{name}` |" for key, name in sorted(SAME.items())]
    lines += [f"| `{key}` | {name} |" for key, name in sorted(BY_RULE.items())]
    lines += [f"| `{key}` | an older name of `{name}` |" for key, name in sorted(OLD_NAMES.items())]
    lines += [f"| `{key}` | not needed: {why} |" for key, why in sorted(NEEDLESS.items())]
    lines += [f"| `{key}` | none; only `{value}` behaves the same here |" for key, value in sorted(NEUTRAL.items())]
    return "\n".join(lines)
