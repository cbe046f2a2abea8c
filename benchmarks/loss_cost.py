"""What each loss costs: the loss itself in microseconds, and a whole training step relative to dpo's.

    python benchmarks/loss_cost.py

The loss itself runs forward and backward on 64 pairs of float32 numbers, in which no model is. Whole steps are measured
for dpo and for the losses that need more of a batch than dpo does; they alternate (A B A B ...) on one module and one
micro-batch, so that drift in the machine's speed affects all equally.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from vs_trl import MODELS, Ours, draw_pairs, machine, save_model, synchronize

from adadpo_lightning.losses import available_losses, build_loss
from adadpo_lightning.losses.testing import sample_pairs
from adadpo_lightning.losses.testing.autograd import as_leaf
from adadpo_lightning.losses.testing.samples import cast
from adadpo_lightning.metrics.aggregate import WeightedMeans


def microseconds(key: str, pairs: int, rounds: int) -> float:
    """Median time of a loss, forward and backward."""
    loss, x = build_loss(key), cast(sample_pairs(pairs), torch.float32)
    times = []
    for _ in range(rounds):
        leaf, _ = as_leaf(x)
        begin = time.perf_counter()
        loss(leaf).reduce(pairs, 100).backward()
        times.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(times)


def step_seconds(side: Ours, key: str, device: str) -> float:
    """Time of one training step."""
    side.module.loss = build_loss(key)
    synchronize(device)
    begin = time.perf_counter()
    side.gradients()
    side.update()
    synchronize(device)
    taken = time.perf_counter() - begin
    side.means = WeightedMeans().to(device)  # losses differ in what they report
    return taken


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="v4k", choices=MODELS)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/loss_cost_cpu.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), args.model)
        pairs = draw_pairs("short", args.pairs, MODELS[args.model]["vocab_size"])
        side = Ours(Path(folder), pairs, "packed", args.device, args.dtype)
    needy = [k for k in available_losses() if build_loss(k).needs_tails or build_loss(k).needs_collisions]
    keys = ["dpo", *(key for key in needy if not key.startswith("ada")), "dpo"]  # dpo twice: the noise
    for key in keys:
        step_seconds(side, key, args.device)
    rounds = [[step_seconds(side, key, args.device) for key in keys] for _ in range(args.rounds)]
    ratios = {
        key if i < len(keys) - 1 else "dpo again": statistics.median(times[i] / times[0] for times in rounds)
        for i, key in enumerate(keys)
    }
    record = {
        "model": args.model,
        "step_s": statistics.median(times[0] for times in rounds),
        "step_ratio_to_dpo": ratios,
        "loss_us": {key: microseconds(key, 64, 10 * args.rounds) for key in available_losses()},
        "machine": machine(args.device),
    }
    print(json.dumps(record, indent=1))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
