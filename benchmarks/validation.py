"""What a validation pair costs beside a training pair, with a live and with a cached reference.

    python benchmarks/validation.py

Runs `fit` of the small model over pairs of real lengths, which are training and validation data at once, validates
after every epoch, and times each training epoch and each validation as a whole. Epochs and validations alternate, so
that drift in the machine's speed affects both; the first of each is left out. The share of a run's time that
validation takes is ratio * V / (T + ratio * V) for T training pairs between two validations of V pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from vs_trl import MODELS, draw_pairs, machine, save_model

TOKENS = 4096


class Clock(Callback):
    """Seconds of each training epoch without its validation, and of each validation."""

    def __init__(self) -> None:
        self.train: list[float] = []
        self.validation: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        """The epoch begins."""
        self.begun = time.perf_counter()

    def on_validation_start(self, trainer: Any, *_: Any) -> None:
        """The steps of the epoch end."""
        now = time.perf_counter()
        if not trainer.sanity_checking:
            self.train.append(now - self.begun)
        self.begun = now

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        """The validation ends."""
        if not trainer.sanity_checking:
            self.validation.append(time.perf_counter() - self.begun)


def run(reference: str, pairs: Path, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of both and their ratio by epoch."""
    from lightning.pytorch import Trainer

    from adadpo_lightning.data.datamodule import PreferenceDataModule
    from adadpo_lightning.losses import DPO
    from adadpo_lightning.models.loading import PolicyConfig
    from adadpo_lightning.training.module import PreferenceLitModule

    config = PolicyConfig(path=str(folder / "model"))
    module = PreferenceLitModule(config, DPO(), reference=reference, reference_cache=str(folder / "cache"))
    data = PreferenceDataModule(
        train=str(pairs),
        val=str(pairs),
        global_batch_size=8,
        max_tokens=TOKENS,
        eval_max_tokens=TOKENS,
        max_length=4096,
    )
    clock = Clock()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=args.rounds + 1, callbacks=[clock], num_sanity_val_steps=0,
        default_root_dir=folder, **quiet,
    )  # fmt: skip
    trainer.fit(module, data)
    ratios = [v / t for v, t in zip(clock.validation[1:], clock.train[1:], strict=True)]
    return {
        "train_s": statistics.median(clock.train[1:]),
        "validation_s": statistics.median(clock.validation[1:]),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="v4k", choices=MODELS)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/validation_cpu.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record: dict[str, Any] = {"model": args.model, "pairs": args.pairs, "machine": machine("cpu")}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_model(folder / "model", args.model)
        pairs = folder / "pairs.jsonl"
        text = [
            {side: "".join(f"t{token} " for token in tokens) for side, tokens in pair.items()}
            for pair in draw_pairs("real", args.pairs, MODELS[args.model]["vocab_size"])
        ]
        pairs.write_text("".join(json.dumps(row) + "\n" for row in text), encoding="utf-8")
        for reference in ("frozen", "cached"):
            record[reference] = run(reference, pairs, folder, args)
    print(json.dumps(record, indent=1))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
