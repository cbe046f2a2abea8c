"""What `model.policy.compile` costs and saves: CPU time of a training step with and without it, cold and warm.

    python benchmarks/compile.py

The model is a Llama of 4 layers with random weights, in float32. Each process builds it with and without compiled
blocks, takes two steps that compile (several pairs, then one), and then alternates (A B A B ...) steps over
micro-batches of ever other lengths, in which a further compilation is an error. `cold` is a process with an empty cache
of TorchInductor, `warm` the next one with what that has left. All figures are CPU times of the process and its
compilers, as multiples of a step without compilation.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from vs_trl import draw_pairs, machine

from adadpo_lightning.data.collate import collate
from adadpo_lightning.models.loading import PolicyConfig
from adadpo_lightning.models.policy import PolicyModel
from adadpo_lightning.types import EncodedPair, PreferenceBatch

VOCABULARY = 4096
COMPILING_STEPS = 2


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def batches(count: int) -> list[PreferenceBatch]:
    """Micro-batches of two to four pairs of other lengths; the second has one pair."""
    drawn = iter(draw_pairs("short", 4 * count, VOCABULARY))
    made = []
    for number in range(count):
        taken = [next(drawn) for _ in range(1 if number == 1 else 2 + number % 3)]
        pairs = [EncodedPair(p["prompt"], p["chosen"], p["rejected"], row) for row, p in enumerate(taken)]
        made.append(collate(pairs, layout="packed", pad_id=2, step_pairs=len(pairs), step_chosen_tokens=1))
    return made


class Side:
    """The same random model, with compiled blocks or without."""

    def __init__(self, compiled: bool) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "vocab_size": VOCABULARY}
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=4))
        self.policy = PolicyModel(model, PolicyConfig(path="random", compile=compiled))
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-5, fused=True)

    def step(self, batch: PreferenceBatch) -> float:
        """One training step; its CPU time, seconds."""
        begin = cpu_seconds()
        self.policy(batch).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return cpu_seconds() - begin


def measure(rounds: int) -> dict[str, float]:
    """One process: what the first steps take more than those without compilation, and the ratio of all later ones."""
    torch.set_num_threads(1)
    given = batches(COMPILING_STEPS + rounds)
    plain, compiled = Side(False), Side(True)
    extra = sum(compiled.step(batch) - plain.step(batch) for batch in given[:COMPILING_STEPS])
    with torch.compiler.set_stance("fail_on_recompile"):
        times = [(plain.step(batch), compiled.step(batch)) for batch in given[COMPILING_STEPS:]]
    step = statistics.mean(a for a, _ in times)
    ratio = statistics.median(b / a for a, b in times)
    return {"plain_step_s": step, "step_ratio_to_plain": ratio, "compilation_in_plain_steps": extra / step}


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/compile_cpu.json"))
    parser.add_argument("--process", action="store_true", help="measure in this process and print JSON")
    args = parser.parse_args()
    if args.process:
        print(json.dumps(measure(args.rounds)))
        return
    record: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as cache:
        # One process compiles, so that all its CPU time is counted.
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        for state in ("cold", "warm"):
            command = [sys.executable, __file__, "--process", "--rounds", str(args.rounds)]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
            found = record[state] = json.loads(done.stdout.splitlines()[-1])
            saved = 1 - found["step_ratio_to_plain"]
            found["pays_after_steps"] = found["compilation_in_plain_steps"] / saved if saved > 0 else None
            print(state, found, flush=True)
    record |= {"rounds": args.rounds, "machine": machine("cpu")}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
