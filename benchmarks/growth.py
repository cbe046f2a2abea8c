"""Step time and peak memory as a function of layers, answer length, pairs, vocabulary and ranks.

    python benchmarks/growth.py

Each point runs in its own process, so that the allocator's state does not carry over. Cost should grow linearly with
layers and pairs, and slightly faster with length, because attention is quadratic in it. `exponent` is the slope of a
least-squares line through the logarithms of all points but the first, where fixed costs weigh most.

Ranks are processes of `fit` under FSDP2 with gloo, with one thread and the same number of pairs each. There the time is
CPU time of a rank, which does not depend on how many cores the ranks share, and memory is that of a rank.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from process import run_process
from vs_trl import MODELS, machine, receive, save_model, serve

HERE = Path(__file__).resolve().parent
BASE = {"layers": 4, "length": 256, "pairs": 4, "vocabulary": 4096}
POINTS = {
    "layers": (2, 4, 8, 16),
    "length": (128, 256, 512, 1024),
    "pairs": (1, 2, 4, 8, 16),
    "vocabulary": (4096, 16384, 65536, 131072),
    "ranks": (1, 2, 4),
}
LABELS = {"length": "tokens an answer"}
PROMPT = 128
# Steps of the ranks, of which the first, with its allocations, is left out.
STEPS = 4


def point(values: dict[str, int], args: argparse.Namespace) -> dict[str, float]:
    """Time of the fastest step, which other load on the machine disturbed least, and peak memory of one point."""
    MODELS["v4k"].update(num_hidden_layers=values["layers"], vocab_size=values["vocabulary"])
    sizes = {"prompt": PROMPT, "chosen": values["length"] - 1, "rejected": values["length"] - 1}
    # Of other tokens in each pair: what pairs share is computed once.
    rows = [
        {name: [5 + 3 * pair + side] * size for side, (name, size) in enumerate(sizes.items())}
        for pair in range(values["pairs"])
    ]
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), "v4k")
        here, there = mp.get_context("spawn").Pipe()
        job = (there, "packed", Path(folder), rows, args.device, args.dtype, args.threads)
        process = mp.get_context("spawn").Process(target=serve, args=job, daemon=True)
        process.start()
        receive(here)
        answers = []
        for order in ["memory", *["step"] * args.rounds, "stop"]:
            here.send(order)
            if order != "stop":
                answers.append(receive(here))
        process.join()
    memory, *steps = answers
    return {"step_s": min(seconds for seconds, _ in steps), "memory_mib": memory}


def ranks_point(ranks: int, args: argparse.Namespace) -> dict[str, float]:
    """CPU time of a step and peak memory of a rank, median over ranks, with `BASE` pairs for each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        MODELS["v4k"].update(num_hidden_layers=BASE["layers"], vocab_size=BASE["vocabulary"])
        save_model(folder / "model", "v4k")
        words = {"prompt": " t5" * PROMPT, "chosen": " t6" * BASE["length"], "rejected": " t7" * BASE["length"]}
        lines = [json.dumps(words | {"prompt": words["prompt"] + f" t{i + 8}"}) for i in range(BASE["pairs"] * ranks)]
        (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        options = {
            "model.policy.path": folder / "model",
            "model.policy.dtype": args.dtype,
            "data.train": folder / "pairs.jsonl",
            "data.chat": "never",
            "data.global_batch_size": BASE["pairs"] * ranks,
            "data.micro_batch_size": BASE["pairs"],
            "trainer.accelerator": args.device.replace("cuda", "gpu"),
            "trainer.devices": ranks,
            "trainer.max_epochs": STEPS,
            "trainer.enable_checkpointing": "false",
            "trainer.limit_val_batches": 0,
            "trainer.callbacks": "[{class_path: rank_clock.RankClock}]",
            "output_dir": folder / "run",
        }
        overlays = [f"--config={HERE.parent}/configs/{part}.yaml" for part in ("base", "loss/dpo", "strategy/fsdp2")]
        given = [*overlays, *(f"--{key}={value}" for key, value in options.items())]
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}", "RANK_CLOCK": name}
        run_process([sys.executable, "-m", "adadpo_lightning", "fit", *given], folder, environment)
        notes = [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]
    assert len(notes) == ranks
    return {
        "step_s": statistics.median(min(note["step_cpu_s"][1:]) for note in notes),
        "memory_mib": statistics.median(note["memory_mib"] for note in notes),
    }


def exponent(rows: dict[int, dict[str, float]], key: str) -> float:
    """Slope of the logarithm of a quantity over that of the axis, without the first point."""
    xs, ys = zip(*[(x, row[key]) for x, row in rows.items()][1:], strict=True)
    return round(float(np.polyfit(np.log(xs), np.log(ys), 1)[0]), 3)


def main() -> None:
    """Run, print, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--values", type=int, default=5, help="values on each axis, smallest first; at least 3")
    parser.add_argument("--axes", nargs="+", default=list(POINTS), choices=POINTS)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/growth_cpu.json"))
    args = parser.parse_args()
    record: dict[str, Any] = {"base": BASE, "prompt": PROMPT, "machine": machine(args.device)}
    record["exponent"] = {}
    for name in args.axes:
        record[name] = {}
        for value in POINTS[name][: args.values]:
            row = ranks_point(value, args) if name == "ranks" else point(BASE | {name: value}, args)
            record[name][value] = row
            print(f"{name:10}{value:7}{row['step_s']:9.3f} s{row['memory_mib']:9.0f} MiB", flush=True)
        record["exponent"][name] = {key: exponent(record[name], key) for key in ("step_s", "memory_mib")}
        print(f"{name:10} exponents: {record['exponent'][name]}", flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(record, args.output.with_suffix(".svg"))
    print(f"written: {args.output}, {args.output.with_suffix('.svg')}")


def draw(record: dict[str, Any], path: Path) -> None:
    """Plot both quantities on log-log axes, with a proportional line through the first point."""
    names = list(record["exponent"])
    size = (1 + 2.8 * len(names), 5.5)
    figure, axes = plt.subplots(2, len(names), figsize=size, sharex="col", layout="constrained", squeeze=False)
    for column, name in enumerate(names):
        xs = list(record[name])
        for row, (key, label) in enumerate((("step_s", "step, s"), ("memory_mib", "peak memory, MiB"))):
            axis, ys = axes[row][column], [record[name][x][key] for x in xs]
            axis.loglog(xs, ys, "o-", color="#D55E00", label="measured")
            axis.loglog(xs, [ys[0] * x / xs[0] for x in xs], "--", color="#999999", label="in proportion")
            axis.set_title(f"exponent {record['exponent'][name][key]:.2f}", fontsize=9)
            axis.set_xticks(xs, [str(x) for x in xs])
            axis.minorticks_off()
            shown = [ys[0] * 2**power for power in range(0, 5, 1 if row else 2)]
            axis.set_yticks(shown, [f"{y:.2g}" if row == 0 else f"{y:.0f}" for y in shown])
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_ylabel(label if column == 0 else "")
        axes[1][column].set_xlabel(LABELS.get(name, name))
    axes[0][0].legend()
    figure.savefig(path)
    figure.savefig(path.with_suffix(".png"), dpi=130)


if __name__ == "__main__":
    main()
