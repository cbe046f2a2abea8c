"""Runs of the command line that tests interrupt, and what is compared of them."""

import csv
import math
import os
import sys

import torch

from adadpo_lightning.cli import main

# What the clock decides, and what Lightning counts.
UNCOMPARED = ("tokens_per_second", "pairs_per_second", "memory_gib", "slowest_rank_over_median", "epoch")
PAIRS, STEP, MICRO = 23, 8, 2  # an epoch is 4, 4 and 4 micro-batches, the last step has 7 pairs


def arguments(model_dir, pairs_file, out, *options, loss="adadpo"):
    """A run of 2 epochs: 6 optimizer steps of up to 4 micro-batches, validated in the middle of each epoch."""
    return [
        "fit",
        f"--output_dir={out}",
        f"--model.policy.path={model_dir}",
        f"--data.train={pairs_file}",
        f"--data.val={pairs_file}",
        f"--data.global_batch_size={STEP}",
        f"--data.micro_batch_size={MICRO}",
        "--data.max_length=40",
        f"--model.loss={loss}",
        "--model.optimizer.lr=1e-2",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--trainer.max_epochs=2",
        "--trainer.log_every_n_steps=2",
        "--trainer.val_check_interval=0.5",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        *options,
    ]


def run(args):
    """Run a command line; a run that ends itself gives its status too."""
    try:
        return main(args)
    except SystemExit as end:
        return end.code


def curves(out):
    """From (metric, step) to value, over all CSV files of a run; later files win, as a resumed run goes over them."""
    found = {}
    files = sorted(out.glob("csv/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    for file in files:
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                for name, value in row.items():
                    if value and name != "step" and not name.endswith(UNCOMPARED):
                        found[name, int(row["step"])] = float(value)
    return found


def weights(checkpoint):
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def assert_same(out, expected):
    """Every logged number and every weight, to the last bit."""
    here, there = curves(out), curves(expected)
    assert here.keys() == there.keys(), sorted(here.keys() ^ there.keys())[:6]
    different = {
        key: (here[key], there[key])
        for key in there
        if here[key] != there[key] and not (math.isnan(here[key]) and math.isnan(there[key]))
    }
    assert not different, list(different.items())[:6]
    ours, theirs = weights(out / "checkpoints/last.ckpt"), weights(expected / "checkpoints/last.ckpt")
    assert ours.keys() == theirs.keys()
    assert not [name for name in theirs if not torch.equal(ours[name], theirs[name])]


def main_of_child(args):
    """Run as a process of its own would, in a forked child: with standard streams of its own."""
    status = run(args)
    sys.stdout.flush()
    os._exit(status)
