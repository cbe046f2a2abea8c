"""One training step of DPO, here and in TRL's DPOTrainer: the same model, pairs, reference and optimizer.

    python benchmarks/vs_trl.py  # CPU, both small models, writes the committed results
    python benchmarks/vs_trl.py --device cuda --dtype bfloat16 --models 1b --output results.json

Each variant runs in its own process. The processes take turns (A B C D A B C D ...), so that drift in the machine's
speed affects all of them equally. Ratios are computed per round; their median and range are reported. After the same
number of steps from the same weights the losses must agree, or the benchmark fails.

Variants: `trl` (default settings, reference log-probabilities precomputed), `trl_chunked` (its path that skips masked
tokens in the head, otherwise used with Triton only, forced on), `padded` and `packed` (this package), and `ungrouped`
(packed, but pairs that share a prompt are computed one by one). With more answers to each prompt, all of their pairs:

    python benchmarks/vs_trl.py --answers 4 --pairs 6 --models v4k --variants trl ungrouped packed --output groups.json
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import math
import multiprocessing as mp
import os
import platform
import random
import statistics
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from generated_pairs import REAL_LENGTHS

MODELS = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 512},  # to try a benchmark out
    "v32k": {"hidden_size": 512, "num_hidden_layers": 8, "vocab_size": 32000},
    "v4k": {"hidden_size": 512, "num_hidden_layers": 12, "vocab_size": 4096},
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "vocab_size": 32000, "intermediate_size": 8192},
}
HEADS = {"tiny": (4, 2, 128), "v32k": (8, 4, 1408), "v4k": (8, 4, 1408), "1b": (32, 8, 8192)}
# Mean tokens of (prompt, answer), drawn log-normal with sigma 0.5, answers cut at the maximum.
LENGTHS = {"short": (180, 250), "long": (600, 250)}
MAX_LENGTH = 1024
LEARNING_RATE = 1e-5
VARIANTS = ("trl", "trl_chunked", "padded", "packed", "ungrouped")


def draw_pairs(lengths: str, count: int, vocabulary: int, answers: int = 2) -> list[dict[str, list[int]]]:
    """Random token ids of the requested lengths; `real` uses the lengths of judged pairs.

    With more than two answers, the pairs are all pairs of the answers to as many prompts as are needed.
    """
    if answers > 2:
        groups = -(-count // math.comb(answers, 2))
        drawn = draw_pairs(lengths, groups * -(-answers // 2), vocabulary)
        pairs = []
        for group in range(groups):
            own = drawn[group::groups]
            sides = [pair[side] for pair in own for side in ("chosen", "rejected")][:answers]
            room = MAX_LENGTH - len(own[0]["prompt"]) - 1
            pairs += [
                {"prompt": own[0]["prompt"], "chosen": a[:room], "rejected": b[:room]}
                for a, b in itertools.combinations(sides, 2)
            ]
        return pairs[:count]
    rng = random.Random(0)

    def log_normal(mean: float) -> int:
        return max(1, round(rng.lognormvariate(math.log(mean) - 0.125, 0.5)))

    def ids(length: int) -> list[int]:
        return [rng.randrange(3, vocabulary) for _ in range(length)]

    if lengths == "real":
        sizes = rng.sample(json.loads(REAL_LENGTHS.read_text(encoding="utf-8"))["lengths"], count)
    else:
        prompt, answer = LENGTHS[lengths]
        sizes = [(log_normal(prompt), log_normal(answer), log_normal(answer)) for _ in range(count)]
    pairs = []
    for prompt, chosen, rejected in sizes:
        prompt = min(prompt, MAX_LENGTH // 2 + MAX_LENGTH // 4)
        # One token is left for the terminator that TRL adds.
        room = MAX_LENGTH - prompt - 1
        sides = {"chosen": ids(min(chosen, room)), "rejected": ids(min(rejected, room))}
        pairs.append({"prompt": ids(prompt), **sides})
    return pairs


def save_model(path: Path, name: str) -> None:
    """Save a random Llama and a tokenizer with one token per word, so that both sides see exactly these ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    heads, key_heads, mlp = HEADS[name]
    values = {"intermediate_size": mlp, **MODELS[name]}
    config = LlamaConfig(
        **values,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(path)
    # No special token may be a prefix of a word: it would be split off.
    vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2} | {f"t{i}": i for i in range(3, config.vocab_size)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(path)


class Ours:
    """This package's module, stepped by hand with the metrics that it logs by default."""

    def __init__(
        self, model: Path, pairs: list[dict[str, list[int]]], layout: str, device: str, dtype: str, **policy: Any
    ) -> None:
        from adadpo_lightning.data.collate import collate
        from adadpo_lightning.losses import DPO
        from adadpo_lightning.metrics import WeightedMeans
        from adadpo_lightning.models.loading import PolicyConfig
        from adadpo_lightning.training.module import PreferenceLitModule
        from adadpo_lightning.training.optim import OptimizerConfig, build_optimizer
        from adadpo_lightning.types import EncodedPair

        end = [1]
        encoded = [EncodedPair(p["prompt"], p["chosen"] + end, p["rejected"] + end, row) for row, p in enumerate(pairs)]
        tokens = sum(len(p.chosen_ids) for p in encoded)
        share, layout = layout != "ungrouped", "padded" if layout == "padded" else "packed"
        batch = collate(encoded, layout=layout, pad_id=2, step_pairs=len(pairs), step_chosen_tokens=tokens, share=share)
        config = PolicyConfig(path=str(model), dtype=dtype, layout=layout, **policy)
        self.module = PreferenceLitModule(config, DPO(beta=0.1), reference="frozen")
        self.module.configure_model()
        self.module.to(device)
        self.batch = batch.to(device)
        with torch.no_grad():
            self.batch.ref_logps = self.module(self.batch)
        self.module._reference = None
        self.optimizer = build_optimizer(self.module, OptimizerConfig(lr=LEARNING_RATE, fused=True))
        self.means = WeightedMeans().to(device)

    def gradients(self) -> torch.Tensor:
        """Forward and backward."""
        from adadpo_lightning.metrics import step_statistics

        loss, output = self.module.step(self.batch)
        loss.backward()
        self.means.update(step_statistics(output, self.batch))
        return output.share

    def update(self) -> None:
        """Optimizer step."""
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Theirs:
    """TRL's DPOTrainer: its own dataset preparation, precomputed reference, collator and training step."""

    def __init__(self, model: Path, pairs: list[dict[str, list[int]]], chunked: bool, device: str, dtype: str) -> None:
        import trl.trainer.utils as trl_utils
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl import DPOConfig, DPOTrainer

        if chunked:
            trl_utils._use_triton = lambda device: True
        text = [
            {
                "prompt": " ".join(f"t{i}" for i in p["prompt"]),
                **{side: " " + " ".join(f"t{i}" for i in p[side]) + " " for side in ("chosen", "rejected")},
            }
            for p in pairs
        ]
        args = DPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=len(pairs),
            precompute_ref_log_probs=True,
            max_length=2 * MAX_LENGTH,
            beta=0.1,
            learning_rate=LEARNING_RATE,
            optim="adamw_torch_fused",
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            use_cpu=device == "cpu",
        )
        policy = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        trainer = DPOTrainer(
            model=policy,
            args=args,
            train_dataset=Dataset.from_list(text),
            processing_class=AutoTokenizer.from_pretrained(model),
        )
        trainer.create_optimizer()
        self.batch = next(iter(trainer.get_train_dataloader()))
        self.trainer = trainer
        self.trainer.model.train()
        self.trainer.current_gradient_accumulation_steps = 1

    def gradients(self) -> torch.Tensor:
        """Forward and backward."""
        return self.trainer.training_step(self.trainer.model, dict(self.batch))

    def update(self) -> None:
        """Optimizer step."""
        torch.nn.utils.clip_grad_norm_(self.trainer.model.parameters(), 1.0)
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad(set_to_none=True)


def build(variant: str, model: Path, pairs: list[dict[str, list[int]]], device: str, dtype: str) -> Ours | Theirs:
    """The variant, ready to take steps."""
    if variant in ("trl", "trl_chunked"):
        return Theirs(model, pairs, variant == "trl_chunked", device, dtype)
    return Ours(model, pairs, variant, device, dtype)


def serve(pipe: Any, variant: str, model: Path, pairs: Any, device: str, dtype: str, threads: int) -> None:
    """The process of a variant: executes orders until it receives "stop"."""
    torch.set_num_threads(threads)
    try:
        side = build(variant, model, pairs, device, dtype)
        pipe.send("ready")
        while (order := pipe.recv()) != "stop":
            pipe.send(ORDERS[order](side, device))
    except Exception as error:
        pipe.send(error)
        raise


def timed_step(side: Ours | Theirs, device: str) -> tuple[float, float]:
    """One optimizer step."""
    synchronize(device)
    start = time.perf_counter()
    loss = side.gradients()
    side.update()
    synchronize(device)
    return time.perf_counter() - start, float(loss)


def peak_memory(side: Ours | Theirs, device: str) -> float:
    """Peak memory of forward and backward above the idle model, MiB; the optimizer step follows."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        idle = torch.cuda.memory_allocated()
        side.gradients()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        idle = proc_status("VmRSS")
        side.gradients()
        peak = proc_status("VmHWM")
    side.update()
    return (peak - idle) / 2**20


def profile_step(side: Ours | Theirs, device: str) -> dict[str, float]:
    """Shares of one step's time by kind of operator."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as profiler:
        timed_step(side, device)
    shares: dict[str, float] = dict.fromkeys((*KINDS, "other"), 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, names in KINDS.items() if any(n in event.key for n in names)), "other")
        shares[kind] += event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
    total = sum(shares.values())
    return {kind: round(share / total, 4) for kind, share in shares.items()}


ORDERS: dict[str, Any] = {"step": timed_step, "memory": peak_memory, "profile": profile_step}
# Operators by substrings of their names.
KINDS = {
    "attention": ("attention", "flash", "Tree", "_varlen"),
    "matmul": ("aten::mm", "aten::addmm", "aten::bmm", "gemm", "aten::linear"),
    "softmax": ("softmax", "aten::exp", "gather", "scatter"),
    "optimizer": ("adam", "Optimizer", "_foreach", "linalg_vector_norm"),
}


def proc_status(key: str) -> int:
    """A size from /proc/self/status, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def step_flops(name: str, pairs: list[dict[str, list[int]]]) -> float:
    """Least FLOP of one step: distinct prompts and answers once, the head on scored tokens, times 3 with backward."""
    hidden, layers, vocabulary = (MODELS[name][k] for k in ("hidden_size", "num_hidden_layers", "vocab_size"))
    heads, key_heads, mlp = HEADS[name]
    width = hidden // heads
    per_token = hidden * width * (2 * heads + 2 * key_heads) + 3 * hidden * mlp
    answers: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for pair in pairs:
        answers.setdefault(tuple(pair["prompt"]), set()).update(tuple(pair[side]) for side in ("chosen", "rejected"))
    total = 0.0
    for prompt, own in answers.items():
        sizes = [len(answer) + 1 for answer in own]
        total += 2 * per_token * layers * (len(prompt) + sum(sizes))
        total += 2 * hidden * vocabulary * sum(sizes)
        seen = len(prompt) ** 2 / 2 + sum(size * len(prompt) + size**2 / 2 for size in sizes)
        total += 2 * 2 * seen * hidden * layers
    return 3 * total


def matmul_peak(name: str, tokens: int, device: str, dtype: str) -> float:
    """Best FLOP/s of matrix products of the model's sizes on this machine."""
    hidden, mlp = MODELS[name]["hidden_size"], HEADS[name][2]
    best = 0.0
    for inner, outer in ((hidden, mlp), (mlp, hidden), (hidden, hidden)):
        a = torch.randn(tokens, inner, device=device, dtype=getattr(torch, dtype))
        b = torch.randn(inner, outer, device=device, dtype=getattr(torch, dtype))
        for _ in range(7):
            synchronize(device)
            start = time.perf_counter()
            for _ in range(10):
                a @ b
            synchronize(device)
            best = max(best, 10 * 2 * tokens * inner * outer / (time.perf_counter() - start))
    return best


def compare(name: str, lengths: str, args: argparse.Namespace, model: Path) -> dict[str, dict[str, Any]]:
    """Run all variants in turn."""
    pairs = draw_pairs(lengths, args.pairs, MODELS[name]["vocab_size"], args.answers)
    tokens = sum(len(p["prompt"]) + len(p["chosen"]) + len(p["rejected"]) + 2 for p in pairs)
    peak = matmul_peak(name, tokens, args.device, args.dtype)
    context = mp.get_context("spawn")
    pipes, processes = {}, []
    for variant in args.variants:
        pipes[variant], there = context.Pipe()
        job = (there, variant, model, pairs, args.device, args.dtype, args.threads)
        processes.append(context.Process(target=serve, args=job, daemon=True))
        processes[-1].start()
    for pipe in pipes.values():
        receive(pipe)
    times: dict[str, list[float]] = {variant: [] for variant in args.variants}
    # The step that measures memory also serves as warm-up.
    memory = {variant: ask(pipe, "memory") for variant, pipe in pipes.items()}
    for _ in range(args.rounds):
        losses = {}
        for variant, pipe in pipes.items():
            seconds, losses[variant] = ask(pipe, "step")
            times[variant].append(seconds)
        spread = max(losses.values()) - min(losses.values())
        assert spread < args.tolerance, f"the losses of the variants differ: {losses}"
    profile = ask(pipes["packed"], "profile") if "packed" in pipes else {}
    for pipe in pipes.values():
        pipe.send("stop")
    for process in processes:
        process.join()
    peak = max(peak, matmul_peak(name, tokens, args.device, args.dtype))
    rows = {v: summary(v, times, memory, step_flops(name, pairs) / peak) for v in args.variants}
    if profile:
        rows["packed"]["profile"] = profile
    return rows


def summary(variant: str, times: dict[str, list[float]], memory: dict[str, float], ideal_s: float) -> dict[str, Any]:
    """A variant's row."""
    row: dict[str, Any] = {"step_s": statistics.median(times[variant]), "memory_mib": memory[variant]}
    for peer in ("trl", "trl_chunked", "padded", "ungrouped"):
        if peer in times:
            ratios = [a / b for a, b in zip(times[variant], times[peer], strict=True)]
            row[f"step_ratio_to_{peer}"] = statistics.median(ratios)
            row[f"step_ratio_to_{peer}_range"] = [min(ratios), max(ratios)]
            row[f"memory_ratio_to_{peer}"] = memory[variant] / memory[peer]
    row["mfu"] = ideal_s / row["step_s"]
    return row


def ask(pipe: Any, order: str) -> Any:
    """Send an order and wait for the answer."""
    pipe.send(order)
    return receive(pipe)


def receive(pipe: Any) -> Any:
    """The next answer; an exception of the other process is raised here."""
    answer = pipe.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer


def machine(device: str) -> dict[str, str]:
    """Hardware and versions."""
    from importlib.metadata import version

    name = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    versions = {package: version(package) for package in ("torch", "transformers", "trl")}
    return {
        "device": name,
        "cores": str(os.cpu_count()),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "python": platform.python_version(),
        **versions,
    }


def cpu_name() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def print_table(results: dict[str, Any]) -> None:
    """Print one row per variant."""
    print(
        f"{'model':6}{'lengths':9}{'variant':13}{'step s':>9}{'/trl':>7}{'/chunked':>9}{'MiB':>8}{'/trl':>7}{'MFU':>6}"
    )
    for name, by_length in results.items():
        for lengths, rows in by_length.items():
            for variant, row in rows.items():
                ratio = [row.get(f"step_ratio_to_{p}", math.nan) for p in ("trl", "trl_chunked")]
                print(
                    f"{name:6}{lengths:9}{variant:13}{row['step_s']:9.3f}{ratio[0]:7.2f}{ratio[1]:9.2f}"
                    f"{row['memory_mib']:8.0f}{row.get('memory_ratio_to_trl', math.nan):7.2f}{row['mfu']:6.2f}"
                )


def draw(measured: dict[str, Any], path: Path) -> None:
    """Step time and peak memory of each variant as a share of TRL's."""
    bars = [(name, lengths) for name, by_length in measured.items() for lengths in by_length]
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.9 + 0.62 * len(bars)), sharey=True, layout="constrained")
    for axis, key, title in zip(
        axes,
        ("step_ratio_to_trl", "memory_ratio_to_trl"),
        ("time of a step", "peak memory above the idle model"),
        strict=True,
    ):
        shown = {v: c for v, c in COLOURS.items() if any(v in measured[name][lengths] for name, lengths in bars)}
        for row, (variant, colour) in enumerate(shown.items()):
            values = [measured[name][lengths].get(variant, {}).get(key, math.nan) for name, lengths in bars]
            places = [i + (row - 1) * 0.27 for i in range(len(bars))]
            drawn = axis.barh(places, values, height=0.25, color=colour, label=LABELS[variant])
            axis.bar_label(drawn, fmt="%.2f", padding=3, fontsize=8)
        axis.axvline(1.0, color="black", linewidth=1)
        axis.set_xlim(0, 1.15)
        axis.set_xlabel(f"{title}, TRL as shipped = 1")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(bars)), [f"{name}, {lengths}" for name, lengths in bars])
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(COLOURS), frameon=False)
    figure.savefig(path)
    figure.savefig(path.with_suffix(".png"), dpi=130)


# Okabe and Ito's palette, suitable for colour-blind readers.
COLOURS = {"trl_chunked": "#999999", "padded": "#56B4E9", "ungrouped": "#0072B2", "packed": "#D55E00"}
LABELS = {
    "trl_chunked": "TRL, chunked head forced",
    "padded": "padded",
    "ungrouped": "packed, pair by pair",
    "packed": "packed (default)",
}


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["v32k", "v4k"], choices=MODELS)
    parser.add_argument("--lengths", nargs="+", default=["short", "long", "real"], choices=[*LENGTHS, "real"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS[:4]), choices=VARIANTS)
    parser.add_argument("--answers", type=int, default=2, help="answers to each prompt, of which all pairs are taken")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference of the losses")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/vs_trl_cpu.json"))
    args = parser.parse_args()
    measured: dict[str, Any] = {}
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            save_model(Path(folder), name)
            measured[name] = {lengths: compare(name, lengths, args, Path(folder)) for lengths in args.lengths}
        print_table({name: measured[name]})
    first, *others = args.models
    record = {
        "model": first,
        **measured[first],
        **{name: measured[name] for name in others},
        "pairs": args.pairs,
        "answers": args.answers,
        "rounds": args.rounds,
        "machine": machine(args.device),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    figure = args.output.with_suffix(".svg")
    draw(measured, figure)
    print(f"written: {args.output}, {figure}")


if __name__ == "__main__":
    main()
