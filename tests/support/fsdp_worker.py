"""Runs that `test_fsdp` and `test_tensor_parallel` compare: in their process on one rank, and by torchrun on several.

``python -m tests.support.fsdp_worker FOLDER CASE...`` writes what each case comes to into ``FOLDER/CASE-RANKS.pt``.
"""

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.tensor import DTensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from adadpo_lightning.callbacks import ExpertLoad, GenerationCallback, ParameterGradientBalance, PreferenceMetrics
from adadpo_lightning.checkpoints.export import export_policy
from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.data.lists import ListOptions
from adadpo_lightning.losses import build_loss
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig
from adadpo_lightning.reference.sync import SyncOptions
from adadpo_lightning.strategies import FSDP2
from adadpo_lightning.training.module import PreferenceLitModule
from adadpo_lightning.training.optim import OptimizerConfig, SchedulerConfig
from adadpo_lightning.training.optimizer_class import ClassOptimizerConfig
from tests.support.runs import UNCOMPARED


@dataclass
class Case:
    """A loss, and what is special about the run."""

    loss: str
    model: str = "plain"
    policy: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    reference: str = "auto"
    reference_model: str | None = None
    adapter: str | None = None
    save: bool = False
    resume: str | None = None
    clip: float | None = 0.5
    max_length: int = 40
    dies: bool = False
    data: str = "pairs"
    optimizer: Any = None
    sets: tuple[str, ...] = ()
    exact: bool = False
    probed: bool = False
    router: float = 0.0


def split(loss, replicas, parts, model="plain", policy=None, **options):
    """A run in float64 on a mesh of data-parallel x tensor-parallel ranks."""
    strategy = {"data_parallel_size": replicas, "tensor_parallel_size": parts, "reduce_dtype": None}
    return Case(loss, model, {"dtype": "float64", **(policy or {})}, strategy, exact=True, **options)


def experts(**options):
    """A mixture of experts with its routers' loss."""
    return Case("adasimpo", model="experts", router=0.1, data="even", **options)


SGD = ClassOptimizerConfig("torch.optim.SGD", {"lr": 1e-1, "momentum": 0.9, "weight_decay": 0.1})
MUON = ClassOptimizerConfig("adadpo_lightning.MuonWithAdamW", {"lr": 1e-2, "eps": 1e-5, "weight_decay": 0.1})
# Adapters whose first values are those of the base model, which each rank reads a part of.
PEFT = {
    "use_rslora": True,
    "use_dora": True,
    "modules_to_save": ["lm_head", "embed_tokens"],
    "rank_pattern": {"q_proj": 4},
}


def peft(**options):
    return {"dtype": "float64", "lora": LoraOptions(r=2, peft=options)}


CASES = {
    "peft": Case("adadpo", policy=peft(**PEFT), save=True, exact=True),
    "peft-resumed": Case("adadpo", policy=peft(**PEFT), exact=True, resume="peft-2/step=3.ckpt"),
    "peft-checkpointing": Case("dpo", policy={**peft(**PEFT), "gradient_checkpointing": True}, exact=True),
    "peft-cached": Case("dpo", policy=peft(**PEFT), reference="cached", exact=True),
    "peft-synced": Case("dpo", policy=peft(**PEFT), reference="synced", save=True, exact=True),
    "peft-adapter": Case("dpo", policy={"dtype": "float64"}, adapter="peft-adapter", exact=True),
    "peft-offload": Case("dpo", policy=peft(**PEFT), strategy={"cpu_offload": True}, exact=True),
    "peft-hsdp": Case("dpo", policy=peft(**PEFT), strategy={"replicas": 2}, exact=True),
    "peft-tied": Case(
        "dpo", "tied", peft(modules_to_save=["embed_tokens"], ensure_weight_tying=True), save=True, exact=True
    ),
    "peft-tokens": Case("dpo", "tied", peft(trainable_token_indices=[3, 5]), exact=True),
    "peft-bias": Case("dpo", policy=peft(lora_bias=True, modules_to_save=["input_layernorm"]), exact=True),
    "qlora": Case("adadpo", "wide", {"lora": LoraOptions(r=2, quantize="nf4")}, save=True),
    "qlora-resumed": Case("adadpo", "wide", {"lora": LoraOptions(r=2, quantize="nf4")}, resume="qlora-2/step=3.ckpt"),
    "qlora-saving": Case(
        "dpo",
        "wide",
        {"lora": LoraOptions(r=2, quantize="nf4"), "gradient_checkpointing": True},
        {"replicas": 2},
        reference="cached",
    ),
    "qlora-bfloat16": Case(
        "dpo", "wide", {"lora": LoraOptions(r=2, quantize="nf4"), "dtype": "bfloat16"}, {"param_dtype": "bfloat16"}
    ),
    "qlora-options": Case(
        "dpo",
        "wide",
        {"lora": LoraOptions(r=2, quantize="nf4", peft={"use_dora": True, "modules_to_save": ["lm_head"]})},
    ),
    "qlora-offload": Case("dpo", "wide", {"lora": LoraOptions(r=2, quantize="nf4")}, strategy={"cpu_offload": True}),
    "dpo": Case("dpo", save=True),
    "adadpo": Case("adadpo", model="tied", policy={"gradient_checkpointing": True}),
    "cpo": Case("cpo"),
    "lora": Case("adadpo", policy={"lora": LoraOptions(r=2)}, save=True),
    "cached": Case("adadpo", reference="cached"),
    "adapter": Case("adadpo", policy={"dtype": "float64"}, adapter="adapter"),
    "adapter-cached": Case("dpo", policy={"dtype": "float64"}, adapter="adapter", reference="cached"),
    "path": Case("dpo", reference_model="other"),
    "synced": Case("dpo", reference="synced", save=True),
    "hsdp": Case("dpo", strategy={"replicas": 2}),
    "offload": Case("dpo", model="tied", strategy={"cpu_offload": True}),
    "saving": Case("adacpo", policy={"gradient_checkpointing": "selective", "offload_activations": True}),
    "grouped": Case("adadpo", data="lists"),
    "gguf": Case("adadpo", model="gguf/tiny.gguf", max_length=200),
    # Of an odd number of pairs, and of fewer pairs than ranks.
    "sets": Case("adadpo", sets=("many", "one")),
    "padded": Case("ipo", policy={"layout": "padded"}),
    "lddpo": Case("adalddpo", reference="cached"),
    "wpo": Case("wpo", policy={"lora": LoraOptions(r=2)}),
    "unclipped": Case("dpo", clip=None),
    # Full steps, of the same micro-batches on one rank and on two; and without a reference, from whose routing that of
    # the policy may differ by rounding.
    "experts": experts(save=True),
    "experts-saving": experts(policy={"gradient_checkpointing": True}),
    "experts-resumed": experts(resume="experts-2/step=3.ckpt"),
    "dies": Case("simpo", save=True, dies=True),
    "dpo-resumed": Case("dpo", resume="dpo-2/step=3.ckpt"),
    "synced-resumed": Case("dpo", reference="synced", resume="synced-2/step=3.ckpt"),
    "sgd": Case("dpo", optimizer=SGD, save=True),
    "sgd-resumed": Case("dpo", optimizer=SGD, resume="sgd-2/step=3.ckpt"),
    "muon": Case("adadpo", optimizer=MUON, save=True),
    "muon-resumed": Case("adadpo", optimizer=MUON, resume="muon-2/step=3.ckpt"),
    "lora-resumed": Case("adadpo", policy={"lora": LoraOptions(r=2)}, resume="lora-2/step=3.ckpt"),
}
# Cases that are started together, and by what they end: the mesh of data-parallel x tensor-parallel ranks.
SPLIT_GROUPS = [
    {
        f"{loss}-{model}-{data}x{parts}": split(loss, data, parts, model, save=(loss, model) == ("dpo", "plain"))
        for loss in ("dpo", "adacpo")
        for data, parts in ((2, 2), (2, 1), (1, 2))
    }
    for model in ("plain", "qwen3")
]
SPLIT_GROUPS[0]["resumed-4x1"] = split("dpo", 4, 1, resume="dpo-plain-2x2-4/step=3.ckpt", save=True)
SPLIT_GROUPS += [
    {
        "tied-2x2": split("adadpo", 2, 2, "tied", {"gradient_checkpointing": True}),
        "saving-2x2": split(
            "adacpo", 2, 2, policy={"gradient_checkpointing": "selective", "offload_activations": True}
        ),
        "padded-2x2": split("ipo", 2, 2, policy={"layout": "padded"}),
        "wpo-2x2": split("wpo", 2, 2, policy={"token_entropy": True}),
        "lddpo-2x2": split("adalddpo", 2, 2),
        "grouped-2x2": split("adadpo", 2, 2, data="lists"),
    },
    {
        "cached-2x2": split("adadpo", 2, 2, reference="cached"),
        "path-2x2": split("dpo", 2, 2, reference_model="other"),
        "synced-2x2": split("dpo", 2, 2, reference="synced"),
        "probed-2x2": split("adacpo", 2, 2, probed=True),
        "random-2x2": split("dpo", 2, 2, "plain/config.json"),
    },
]
SPLIT_CASES = {name: case for group in SPLIT_GROUPS for name, case in group.items()}
CASES |= SPLIT_CASES
# One process resumes what four have saved.
CASES["resumed-1x1"] = split("dpo", 1, 1, resume="resumed-4x1-4/step=4.ckpt")


class Recorder(Callback):
    """Keeps what was logged at each optimizer step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if not trainer.fit_loop._should_accumulate():
            logged = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")}
            self.steps.append({k: v for k, v in logged.items() if not k.endswith(UNCOMPARED)})


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def exact(norm, x):
    """An RMS norm in the dtype of its input, where transformers' own rounds to float32."""
    return norm.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon))


def run(folder: Path, name: str, ranks: int, strategy=None) -> dict[str, Any]:
    """Train five steps of 8, 8, 8, 8 and 5 pairs, clipped, with validation before and after."""
    with ExitStack() as stack:
        if (lora := CASES[name].policy.get("lora")) is not None and lora.quantize:
            stack.enter_context(patch("adadpo_lightning.models.lora._has_device", lambda: True))
            # On some CPUs it repacks weights in place in evaluation, and FSDP2 drops what it gathered.
            stack.enter_context(patch("bitsandbytes.nn.modules.has_avx512bf16", lambda: False))
        for norm in (LlamaRMSNorm, Qwen3RMSNorm) if CASES[name].exact else ():
            stack.enter_context(patch.object(norm, "forward", exact))
        return _run(folder, name, ranks, strategy)


def _run(folder, name, ranks, strategy):
    case = CASES[name]
    seed_everything(int(os.environ.get("RANK", 0)) if case.policy.get("lora") is None else 0)
    model = str(folder / case.model)
    source = {"config": model, "tokenizer": str(folder / "plain")} if model.endswith("json") else {"path": model}
    policy = PolicyConfig(**source, **{"dtype": "float32", **case.policy})
    if case.adapter:
        policy.lora = LoraOptions(adapter=str(folder / case.adapter))
    module = PreferenceLitModule(
        policy,
        build_loss(case.loss),
        case.optimizer or OptimizerConfig(lr=1e-2, eps=1e-5),
        SchedulerConfig(name="constant", warmup_ratio=0.0),
        reference=case.reference,
        reference_cache=str(folder / f"cache-{ranks}"),
        reference_path=str(folder / case.reference_model) if case.reference_model else None,
        sync=SyncOptions(alpha=0.5 if policy.lora is None else 1, every_n_steps=2),
        router_aux_loss_coef=case.router,
    )
    data = PreferenceDataModule(
        train=str(folder / f"{case.data}.jsonl"),
        val={name: str(folder / f"{name}.jsonl") for name in case.sets} or str(folder / "pairs.jsonl"),
        lists=ListOptions(pairs="all"),
        global_batch_size=8,
        # What is probed is the first micro-batch of all ranks: here all of the step.
        micro_batch_size=8 // (ranks // case.strategy.get("tensor_parallel_size", 1) or 1) if case.probed else 2,
        eval_batch_size=3,
        max_length=case.max_length,
    )
    recorder = Recorder()
    probes = [ParameterGradientBalance(2), GenerationCallback(3, max_new_tokens=5)] if case.probed else []
    callbacks = [PreferenceMetrics(), ExpertLoad(), *probes, recorder]
    if case.save:
        target = folder / f"{name}-{ranks}"
        callbacks.append(ModelCheckpoint(target, "{step}", every_n_train_steps=1, save_top_k=-1, save_last=True))
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy or "auto",
        max_epochs=1,
        gradient_clip_val=case.clip,
        log_every_n_steps=1,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=case.save,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=strategy is None,
        default_root_dir=folder,
    )
    checkpoint = folder / case.resume if case.resume else None
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    if case.model != "experts":  # whose files hold other tensors than its modules, so that it is gathered first
        export_policy(
            module.built_policy,
            module.tokenizer,
            folder / f"{name}-{ranks}-live",
            merge=False,
            write=trainer.is_global_zero,
        )
    prompt = torch.tensor([[1, 7, 8, 9]])
    with torch.no_grad(), module.policy.plain_attention() as model:
        answer = model.generate(prompt, max_new_tokens=4, do_sample=False)
    return {
        "steps": recorder.steps,
        "val": {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")},
        "weights": {n: whole(p) for n, p in module.named_parameters()},
        "local": {n: (p.to_local() if isinstance(p, DTensor) else p).numel() for n, p in module.named_parameters()},
        "answer": answer,
    }


class DiesWhileSaving(FSDP2):
    """Rank 1 is gone as soon as its shards of the second ``last.ckpt`` are written."""

    saved = 0

    def barrier(self, name=None):
        self.saved += name == "all shards are written"
        if self.saved == 4 and self.global_rank == 1:
            os._exit(1)
        super().barrier(name)


def main(folder: str, *names: str) -> None:
    torch.set_num_threads(1)
    ranks = int(os.environ["WORLD_SIZE"])
    for name in names:
        strategy = DiesWhileSaving() if CASES[name].dies else FSDP2(**CASES[name].strategy)
        result = run(Path(folder), name, ranks, strategy)
        if os.environ["RANK"] == "0":
            torch.save(result, Path(folder) / f"{name}-{ranks}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
