"""The peer of `end_to_end.py`: a plain DPO script for TRL, as its documentation has it.

    python benchmarks/trl_dpo.py SETTINGS.json

`SETTINGS.json` holds the fields of `Settings`. The script writes ``metrics.json``, TRL's log of every step, to the
output directory, and moments of the run to the file that STEP_CLOCK names.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def note(name: str) -> None:
    """Append a moment of the run to the file that the environment variable STEP_CLOCK names."""
    with Path(os.environ["STEP_CLOCK"]).open("a", encoding="utf-8") as file:
        file.write(f"{name}\t{time.time()}\n")


def note_memory() -> None:
    """Append the highest GPU memory so far, bytes; nothing without a GPU."""
    import torch

    if torch.cuda.is_initialized():
        with Path(os.environ["STEP_CLOCK"]).open("a", encoding="utf-8") as file:
            file.write(f"device memory\t{torch.cuda.max_memory_allocated()}\n")


@dataclass(frozen=True)
class Settings:
    """What both sides of a comparison are told.

    Args:
        model: Directory of the model and its tokenizer.
        pairs: JSONL file of rendered prompts and answers, taken in the order of the file.
        output: Directory to write to.
        loss: TRL's name of the loss.
        step_pairs: Pairs of an optimizer step.
        micro_pairs: Pairs of a forward pass.
        lr: Constant learning rate.
        lora: Train adapters of rank 16 on all linear layers instead of the full model.
        checkpointing: Recompute activations in the backward pass.
        device: ``cpu`` or ``cuda``.
        options: Further options of the loss, by TRL's names.
    """

    model: str
    pairs: str
    output: str
    loss: str = "sigmoid"
    step_pairs: int = 8
    micro_pairs: int = 8
    lr: float = 1e-5
    lora: bool = False
    checkpointing: bool = False
    device: str = "cpu"
    options: dict[str, Any] = field(default_factory=dict)


def train(settings: Settings, callbacks: list[Any] | None = None) -> list[dict[str, float]]:
    """Train one epoch in float32.

    Returns:
        TRL's logged metrics of each optimizer step.
    """
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    args = DPOConfig(
        output_dir=settings.output,
        loss_type=[settings.loss],
        learning_rate=settings.lr,
        lr_scheduler_type="constant",
        num_train_epochs=1,
        per_device_train_batch_size=settings.micro_pairs,
        gradient_accumulation_steps=settings.step_pairs // settings.micro_pairs,
        train_sampling_strategy="sequential",
        max_length=None,
        max_grad_norm=1.0,
        activation_checkpointing=settings.checkpointing,
        use_cpu=settings.device == "cpu",
        bf16=False,
        logging_steps=1,
        report_to="none",
        seed=0,
        **settings.options,
    )
    adapters = None
    if settings.lora:
        from peft import LoraConfig

        adapters = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32)
    torch.manual_seed(0)  # new adapters are drawn from here
    trainer = DPOTrainer(
        model=model,
        args=args,
        train_dataset=load_dataset("json", data_files=settings.pairs, split="train"),
        processing_class=AutoTokenizer.from_pretrained(settings.model),
        peft_config=adapters,
        callbacks=callbacks,
    )
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


def clock() -> Any:
    """A callback that notes the moments of the run."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            note("step begins")

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            note("step ends")
            note_memory()

    return Clock()


def main() -> None:
    """Train as the file says, and write the metrics."""
    settings = Settings(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    rows = train(settings, [clock()])
    (Path(settings.output) / "metrics.json").write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
