"""What the diagnostics that are on by default add to a training step.

    python benchmarks/diagnostics_cost.py

Steps with and without diagnostics alternate (A B A B ...) on one module and one micro-batch, so that drift in the
machine's speed affects both equally. The share of the step spent inside the diagnostics is reported as well: it is
less noisy than the difference of two long times. Metrics are computed at every tenth step; every step is checked for a
non-finite gradient.
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

LOG_EVERY = 10


class Diagnosed:
    """A module stepped by hand, with its diagnostics on or off."""

    def __init__(self, side: Ours, device: str) -> None:
        self.side, self.device = side, device
        self.inside = 0.0
        self.squares: torch.Tensor | None = None
        self.count = 0

    def observe(self, batch: object, gradient: torch.Tensor) -> None:
        """The hook in the backward pass."""
        from adadpo_lightning.metrics.gradients import gradient_squares

        start = time.perf_counter()
        self.squares = gradient_squares(batch, gradient)
        self.inside += time.perf_counter() - start

    def step(self, on: bool) -> tuple[float, float]:
        """Seconds of a step, and of them those inside the diagnostics."""
        from adadpo_lightning.metrics.gradients import parameter_gradient_norms, total_norm
        from adadpo_lightning.metrics.preference import finish, gradient_statistics, step_statistics

        side, self.inside = self.side, 0.0
        side.module.built_policy.gradient_observer = self.observe if on else None
        synchronize(self.device)
        begin = time.perf_counter()
        loss, output = side.module.step(side.batch)
        loss.backward()
        if on:
            start = time.perf_counter()
            extra = gradient_statistics(self.squares, side.batch)
            side.means.update(step_statistics(output, side.batch, 0.1) | extra)
            self.count += 1
            bool(total_norm(parameter_gradient_norms(side.module.built_policy.parameters())).isfinite())
            if self.count % LOG_EVERY == 0:
                torch.nn.utils.get_total_norm([p.grad for p in side.module.parameters() if p.grad is not None])
                finish(side.means.compute())
                side.means.reset()
            self.inside += time.perf_counter() - start
        side.update()
        synchronize(self.device)
        return time.perf_counter() - begin, self.inside


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="v4k", choices=MODELS)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/diagnostics_cost_cpu.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), args.model)
        pairs = draw_pairs("short", args.pairs, MODELS[args.model]["vocab_size"])
        side = Diagnosed(Ours(Path(folder), pairs, "packed", args.device, args.dtype), args.device)
    for on in (True, False):
        side.step(on)
    rounds = [(side.step(True), side.step(False)) for _ in range(args.rounds)]
    ratios = [with_[0] / without[0] for with_, without in rounds]
    record = {
        "model": args.model,
        "step_s": statistics.median(without[0] for _, without in rounds),
        "step_ratio_with_to_without": statistics.median(ratios),
        "step_ratio_range": [min(ratios), max(ratios)],
        "share_inside_diagnostics": sum(w[1] for w, _ in rounds) / sum(w[0] for w, _ in rounds),
        "machine": machine(args.device),
    }
    print(json.dumps(record, indent=1))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
