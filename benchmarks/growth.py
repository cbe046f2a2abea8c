"""Step time and peak memory as a function of layers, answer length and pairs.

    python benchmarks/growth.py

Each point runs in its own process, so that the allocator's state does not carry over. Cost should grow linearly with
layers and pairs, and slightly faster with length, because attention is quadratic in it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from vs_trl import MODELS, machine, receive, save_model, serve

BASE = {"layers": 4, "length": 256, "pairs": 4}
POINTS = {"layers": (2, 4, 8, 16), "length": (128, 256, 512, 1024), "pairs": (1, 2, 4, 8)}
PROMPT = 128


def point(values: dict[str, int], args: argparse.Namespace) -> dict[str, float]:
    """Time of the fastest step, which other load on the machine disturbed least, and peak memory of one point."""
    MODELS["v4k"]["num_hidden_layers"] = values["layers"]
    row = {"prompt": [5] * PROMPT, "chosen": [6] * (values["length"] - 1), "rejected": [7] * (values["length"] - 1)}
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), "v4k")
        here, there = mp.get_context("spawn").Pipe()
        job = (there, "packed", Path(folder), [row] * values["pairs"], args.device, args.dtype, args.threads)
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


def main() -> None:
    """Run, print, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--values", type=int, default=4, help="values on each axis, smallest first")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/growth_cpu.json"))
    args = parser.parse_args()
    record: dict[str, Any] = {"base": BASE, "prompt": PROMPT, "machine": machine(args.device)}
    for name, values in POINTS.items():
        record[name] = {value: point(BASE | {name: value}, args) for value in values[: args.values]}
        for value, row in record[name].items():
            print(f"{name:8}{value:6}{row['step_s']:9.3f} s{row['memory_mib']:9.0f} MiB", flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(record, args.output.with_suffix(".svg"))
    print(f"written: {args.output}, {args.output.with_suffix('.svg')}")


def draw(record: dict[str, Any], path: Path) -> None:
    """Plot both quantities on log-log axes, with a proportional line through the first point."""
    figure, axes = plt.subplots(2, len(POINTS), figsize=(10, 5.5), sharex="col", layout="constrained")
    for column, name in enumerate(POINTS):
        xs = list(record[name])
        for row, (key, label) in enumerate((("step_s", "step, s"), ("memory_mib", "peak memory, MiB"))):
            axis, ys = axes[row][column], [record[name][x][key] for x in xs]
            axis.loglog(xs, ys, "o-", color="#D55E00", label="measured")
            axis.loglog(xs, [ys[0] * x / xs[0] for x in xs], "--", color="#999999", label="in proportion")
            axis.set_xticks(xs, [str(x) for x in xs])
            axis.minorticks_off()
            shown = [ys[0] * 2**power for power in range(0, 5, 1 if row else 2)]
            axis.set_yticks(shown, [f"{y:.2g}" if row == 0 else f"{y:.0f}" for y in shown])
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_ylabel(label if column == 0 else "")
        axes[1][column].set_xlabel({"layers": "layers", "length": "tokens an answer", "pairs": "pairs"}[name])
    axes[0][0].legend()
    figure.savefig(path)
    figure.savefig(path.with_suffix(".png"), dpi=130)


if __name__ == "__main__":
    main()
