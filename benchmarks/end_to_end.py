"""Whole processes: `fit` of this package and a plain TRL script, from start to saved checkpoint, on a real model.

    python benchmarks/end_to_end.py  # full and LoRA, writes the committed results
    python benchmarks/end_to_end.py --kinds full --rounds 1 --pairs 16 --output /tmp/end_to_end.json

The model is SmolLM2-135M-Instruct in float32, from a package of the registry. The text is made from common words; its
lengths are those of judged pairs (`real_lengths.json`), uncut. Both sides read the same rows in the same order, with
the same optimizer, and save a checkpoint with optimizer state at the end. The two processes take turns (A B A B ...);
ratios are computed per round, and their median is reported. Losses, margins and gradient norms must agree at every
step, or the benchmark fails.

Wall time is that of the whole process. Start-up ends where the first training step begins. Peak memory is the
high-water mark of resident memory, summed over the process and its descendants.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from generated_pairs import write_pairs
from process import run_process
from trl_dpo import Settings
from vs_trl import machine

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SIDES = ("ours", "trl")
# Names of our metrics by TRL's.
METRICS = {
    "loss": "train/loss",
    "rewards/chosen": "train/rewards/chosen",
    "rewards/rejected": "train/rewards/rejected",
    "rewards/margins": "train/rewards/margins",
    "grad_norm": "train/grad_norm/total",
}
OUR_LOSS = {"sigmoid": "dpo"}  # where the two have different names
# Largest differences, relative to 1 or to the value where it is above 1. Of pairs of about a thousand tokens, rewards
# in float32 were off by up to 2e-5 of those in float64 here and by 4e-5 in plain transformers; losses after a step
# differed by up to 5e-5 between both.
TOLERANCES = {"loss": 2e-4, "rewards/margins": 1e-3, "grad_norm": 2e-3}
# Sums on a GPU are in another order in each kernel.
LOOSER = {"cpu": 1.0, "cuda": 10.0}


@dataclass(frozen=True)
class Measured:
    """One run of one side.

    Args:
        wall_s: From the start of the process to its end.
        startup_s: To the beginning of the first training step.
        first_step_s: To the end of the first training step.
        step_s: Median time from the end of one step to that of the next.
        memory_gib: Peak resident memory of the process and its descendants.
        device_gib: Peak memory of the tensors on the GPU by the end of a step; 0 on a CPU.
        metrics: Of each step, by TRL's names.
    """

    wall_s: float
    startup_s: float
    first_step_s: float
    step_s: float
    memory_gib: float
    device_gib: float
    metrics: list[dict[str, float]]


def fit_arguments(settings: Settings) -> list[str]:
    """Arguments of the command line of this package that train as `trl_dpo.py` does."""
    loss = OUR_LOSS.get(settings.loss, settings.loss)
    overlays = ["base", f"loss/{loss}", *(["model/lora"] if settings.lora else [])]
    options = {
        "model.policy.path": settings.model,
        "model.policy.gradient_checkpointing": str(settings.checkpointing).lower(),
        "model.optimizer.lr": settings.lr,
        "model.scheduler.name": "constant",
        "model.scheduler.warmup_ratio": 0.0,
        "data.train": settings.pairs,
        "data.shuffle": "false",
        "data.chat": "never",
        "data.special_tokens": "parse",
        "data.max_length": 1 << 16,
        "data.global_batch_size": settings.step_pairs,
        "data.micro_batch_size": settings.micro_pairs,
        "trainer.accelerator": settings.device,
        "trainer.devices": 1,
        "trainer.log_every_n_steps": 1,
        "output_dir": settings.output,
        **{f"model.loss.init_args.{name}": value for name, value in settings.options.items()},
    }
    given = [f"--config={ROOT}/configs/{name}.yaml" for name in overlays]
    return ["fit", *given, *(f"--{name}={value}" for name, value in options.items())]


def our_metrics(output: Path) -> list[dict[str, float]]:
    """Metrics of each step of a run of this package, by TRL's names."""
    with next(output.glob("csv/version_*/metrics.csv")).open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return [{name: float(row[key]) for name, key in METRICS.items()} for row in rows]


def differences(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, float]:
    """Largest difference of each metric over the steps, relative where the value is above 1."""
    return {
        name: max(abs(a[name] - b[name]) / max(1.0, abs(b[name])) for a, b in zip(ours, theirs, strict=True))
        for name in METRICS
    }


def run(side: str, settings: Settings, folder: Path, threads: int) -> Measured:
    """Run one side in a process of its own.

    Raises:
        RuntimeError: If it fails; the message has the end of its output.
    """
    folder.mkdir(parents=True)
    settings = replace(settings, output=str(folder / "run"))
    if side == "ours":
        clock = "--trainer.callbacks=[{class_path: step_clock.StepClock}]"
        command = [sys.executable, "-m", "adadpo_lightning", *fit_arguments(settings), clock]
    else:
        (folder / "settings.json").write_text(json.dumps(asdict(settings)), encoding="utf-8")
        command = [sys.executable, str(HERE / "trl_dpo.py"), str(folder / "settings.json")]
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": f"{HERE}{os.pathsep}{ROOT}",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"),  # neither side finds rows that it has tokenised before
        "STEP_CLOCK": str(folder / "clock"),
    }
    ended = run_process(command, folder, environment)
    moments = [line.split("\t") for line in (folder / "clock").read_text().splitlines()]
    begins = [float(when) - ended.start for name, when in moments if name == "step begins"]
    ends = [float(when) - ended.start for name, when in moments if name == "step ends"]
    metrics = (
        our_metrics(folder / "run") if side == "ours" else json.loads((folder / "run" / "metrics.json").read_text())
    )
    return Measured(
        wall_s=ended.wall_s,
        startup_s=begins[0],
        first_step_s=ends[0],
        step_s=statistics.median(b - a for a, b in pairwise(ends)) if len(ends) > 1 else math.nan,
        memory_gib=ended.memory_gib,
        device_gib=max((float(size) for name, size in moments if name == "device memory"), default=0.0) / 2**30,
        metrics=metrics,
    )


def compare(kind: str, args: argparse.Namespace, model: Path, pairs: Path, folder: Path) -> dict[str, Any]:
    """Both sides in turn, `rounds` times."""
    lora = kind == "lora"
    settings = Settings(
        str(model), str(pairs), "", step_pairs=args.step_pairs, micro_pairs=args.micro_pairs,
        lr=1e-4 if lora else 1e-5, lora=lora, checkpointing=args.checkpointing,
        device=args.device,
    )  # fmt: skip
    rounds = []
    for number in range(args.rounds):
        both = {side: run(side, settings, folder / f"{kind}-{number}-{side}", args.threads) for side in SIDES}
        found = differences(both["ours"].metrics, both["trl"].metrics)
        for side, row in both.items():
            print(
                f"{kind:5}{number:3} {side:5}wall {row.wall_s:7.1f} s, start-up {row.startup_s:5.1f} s, first step "
                f"after {row.first_step_s:6.1f} s, step {row.step_s:6.2f} s, memory {row.memory_gib:6.2f} GiB",
                flush=True,
            )
        wrong = {
            name: found[name] for name, limit in TOLERANCES.items() if not found[name] <= limit * LOOSER[args.device]
        }
        steps = [[row["loss"] for row in both[side].metrics] for side in SIDES]
        assert not wrong, f"the two sides train differently: {wrong}; losses {steps}"
        rounds.append((both, found))
    return summary(rounds)


def summary(rounds: list[tuple[dict[str, Measured], dict[str, float]]]) -> dict[str, Any]:
    """Medians of both sides, ratios per round and the largest differences."""
    figures = ("wall_s", "startup_s", "first_step_s", "step_s", "memory_gib")
    figures += ("device_gib",) if all(side.device_gib for both, _ in rounds for side in both.values()) else ()
    table: dict[str, Any] = {
        side: {name: statistics.median(getattr(both[side], name) for both, _ in rounds) for name in figures}
        for side in SIDES
    }
    ratios = {
        name: [getattr(both["ours"], name) / getattr(both["trl"], name) for both, _ in rounds] for name in figures
    }
    table["ratio"] = {name: statistics.median(values) for name, values in ratios.items()}
    table["ratio_range"] = {name: [min(values), max(values)] for name, values in ratios.items()}
    table["largest_difference"] = {name: max(found[name] for _, found in rounds) for name in METRICS}
    return table


def table(kinds: dict[str, Any]) -> str:
    """The medians in Markdown."""
    head = ["", "wall, s", "start-up, s", "first step after, s", "step, s", "peak memory, GiB"]
    head += ["of the GPU, GiB"] if any("device_gib" in found["ours"] for found in kinds.values()) else []
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for kind, found in kinds.items():
        for side in (*SIDES, "ratio"):
            values = " | ".join(f"{value:.{1 if side != 'ratio' else 2}f}" for value in found[side].values())
            lines.append(f"| {kind}, {side} | {values} |")
    return "\n".join(lines)


def draw(record: dict[str, Any], path: Path) -> None:
    """Time of both sides by phase, and their memory."""
    import matplotlib.pyplot as plt

    rows = [(kind, side) for kind in record["kinds"] for side in SIDES]
    figure, (times, memory) = plt.subplots(1, 2, figsize=(10, 0.9 + 0.5 * len(rows)), sharey=True, layout="constrained")
    for place, (kind, side) in enumerate(rows):
        found = record["kinds"][kind][side]
        first = found["first_step_s"] - found["startup_s"]
        phases = (found["startup_s"], first, found["wall_s"] - found["first_step_s"])
        left = 0.0
        for value, colour in zip(phases, COLOURS, strict=True):
            times.barh(place, value, left=left, height=0.7, color=colour)
            left += value
        times.text(left, place, f" {left:.0f} s", va="center", fontsize=9)
        memory.barh(place, found["memory_gib"], height=0.7, color="#0072B2" if side == "ours" else "#999999")
        memory.text(found["memory_gib"], place, f" {found['memory_gib']:.1f}", va="center", fontsize=9)
    times.set_yticks(
        range(len(rows)), [f"{kind}, {'this package' if side == 'ours' else 'TRL'}" for kind, side in rows]
    )
    times.invert_yaxis()
    times.set_xlabel("whole process, s")
    memory.set_xlabel("peak memory, GiB")
    for axis in (times, memory):
        axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS]
    figure.legend(handles, PHASES, loc="outside upper center", ncols=len(PHASES), frameon=False)
    figure.savefig(path)
    figure.savefig(path.with_suffix(".png"), dpi=130)
    plt.close(figure)


PHASES = ("start-up", "first step", "further steps and checkpoint")
COLOURS = ("#E69F00", "#56B4E9", "#009E73")


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["full", "lora"], choices=["full", "lora"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--step_pairs", type=int, default=8, help="pairs of an optimizer step")
    parser.add_argument("--micro_pairs", type=int, default=1, help="pairs of a forward pass, on both sides")
    parser.add_argument("--longest", type=int, help="cut texts to this many tokens, to try the benchmark out")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations, on both sides")
    parser.add_argument("--model", type=Path, help="another model's directory, in place of SmolLM2-135M-Instruct")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/end_to_end_cpu.json"))
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from transformers import AutoTokenizer

    from tests.support.real_model import model_directory

    model = args.model or model_directory()
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.jsonl"
        lengths = write_pairs(pairs, AutoTokenizer.from_pretrained(model), args.pairs, longest=args.longest)
        kinds = {kind: compare(kind, args, model, pairs, Path(folder)) for kind in args.kinds}
    record = {
        "model": model.name,
        "pairs": args.pairs,
        **{
            name: getattr(args, name)
            for name in ("step_pairs", "micro_pairs", "rounds", "checkpointing", "device", "threads")
        },
        "mean_tokens": dict(
            zip(("prompt", "chosen", "rejected"), map(statistics.mean, zip(*lengths, strict=True)), strict=True)
        ),
        "kinds": kinds,
        "machine": machine(args.device),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(record, args.output.with_suffix(".svg"))
    print(table(kinds))
    print(f"written: {args.output}, {args.output.with_suffix('.svg')}")


if __name__ == "__main__":
    main()
