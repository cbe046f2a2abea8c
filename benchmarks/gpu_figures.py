"""Parts of `gpu.py` that measure memory and speed.

    python benchmarks/gpu_figures.py memory --output memory.json [--rehearse]

A part writes what it has measured after every case, and fails at its end if a case did.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gpu import MISSING
from gpu_case import Report, run
from vs_trl import HEADS, MODELS, Ours, draw_pairs, matmul_peak, save_model, step_flops, timed_step

DENSE_BF16_FLOPS = {"H100": 989e12, "H200": 989e12}  # of the SXM modules, without sparsity, by NVIDIA's data sheets


def memory(report: Report) -> None:
    """Peak of a step above what is there before it, against the same of `estimate`."""
    from dataclasses import replace

    from adadpo_lightning.estimate.memory import GIB, RunShape, estimate
    from adadpo_lightning.losses import build_loss
    from adadpo_lightning.models.loading import LoraOptions, PolicyConfig
    from adadpo_lightning.training.module import PreferenceLitModule
    from adadpo_lightning.training.optim import OptimizerConfig, build_optimizer

    name = "tiny" if report.rehearse else "1b"
    heads, key_heads, mlp = HEADS[name]
    architecture = {
        "model_type": "llama", "intermediate_size": mlp, **MODELS[name], "num_attention_heads": heads,
        "num_key_value_heads": key_heads, "tie_word_embeddings": False,
    }  # fmt: skip
    plain = PolicyConfig(config=architecture, tokenizer="none", dtype="bfloat16")
    cases = {
        "bfloat16": plain,
        "float32": replace(plain, dtype="float32"),
        "bfloat16, checkpointed": replace(plain, gradient_checkpointing=True),
        "bfloat16, LoRA": replace(plain, lora=LoraOptions(r=16)),
    }
    pairs = draw_pairs("short", 2, MODELS[name]["vocab_size"])
    lengths = [tuple(len(pair[k]) for k in ("prompt", "chosen", "rejected")) for pair in pairs]

    def measure(config: Any) -> dict[str, float]:
        guess = estimate(RunShape(config, lengths)).gib  # type: ignore[arg-type]
        expected = {k: v for k, v in guess.items() if k not in ("weights", "optimizer")}
        result = {"estimate_gib": sum(guess.values()), "estimate_of_step_gib": sum(expected.values())}
        module = PreferenceLitModule(config, build_loss("simpo"))
        module.tokenizer = None
        module.configure_model()
        module.to(report.device)
        optimizer = build_optimizer(module, OptimizerConfig(lr=1e-5, fused=True))
        batch = encoded(pairs, module.layout).to(report.device)

        def step() -> None:
            module.step(batch)[0].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        step()
        if report.rehearse:
            return result
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        result["measured_gib"] = torch.cuda.max_memory_allocated() / GIB
        result["reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
        result["ratio"] = result["estimate_gib"] / result["measured_gib"]
        print(f"{result} by kind {guess}", flush=True)
        assert 0.85 <= result["ratio"] <= 1.15, f"the estimate is off: {result}"
        return result

    for case, config in cases.items():
        report.case(case, partial(measure, config))
        gc.collect()
        torch.cuda.empty_cache()  # does nothing without a GPU


def encoded(pairs: list[dict[str, list[int]]], layout: str) -> Any:
    """The pairs as one micro-batch that is a whole step."""
    from adadpo_lightning.data.collate import collate
    from adadpo_lightning.types import EncodedPair

    given = [EncodedPair(p["prompt"], p["chosen"], p["rejected"], row) for row, p in enumerate(pairs)]
    tokens = sum(len(pair.chosen_ids) for pair in given)
    return collate(given, layout=layout, pad_id=2, step_pairs=len(given), step_chosen_tokens=tokens)  # type: ignore[arg-type]


def speed(report: Report) -> None:
    """Step time and utilisation, plain and compiled."""
    name, dtype = ("tiny", "float32") if report.rehearse else ("1b", "bfloat16")
    pairs = draw_pairs("real", 4, MODELS[name]["vocab_size"])
    tokens = sum(len(p["prompt"]) + len(p["chosen"]) + len(p["rejected"]) + 2 for p in pairs)
    flops, best = step_flops(name, pairs), matmul_peak(name, tokens, report.device, dtype)
    card = torch.cuda.get_device_name() if report.device == "cuda" else ""
    sheet = next((value for key, value in DENSE_BF16_FLOPS.items() if key in card), None)

    def measure(compiled: bool) -> dict[str, float | None]:
        side = Ours(Path(folder), pairs, "packed", report.device, dtype, compile=compiled)
        seconds = [timed_step(side, report.device)[0] for _ in range(2 if report.rehearse else 13)]
        step_s = statistics.median(seconds[-10:])
        return {
            "step_s": step_s,
            "first_step_s": seconds[0],  # with compilation
            "tokens_per_s": tokens / step_s,
            "mfu_of_measured_peak": flops / step_s / best,
            "mfu_of_data_sheet": None if sheet is None else flops / step_s / sheet,
        }

    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), name)
        report.case("plain", partial(measure, False))
        if not report.rehearse:  # compiling takes a minute on a CPU; tests/models/test_compile.py has it
            report.case("compiled", partial(measure, True))


def four_bit(report: Report) -> None:
    """LoRA over nf4: the base model's bytes, and the first losses beside those over bfloat16."""
    if find_spec("bitsandbytes") is None:
        print("bitsandbytes is not installed")
        raise SystemExit(MISSING)
    from adadpo_lightning.losses import build_loss
    from adadpo_lightning.models.loading import LoraOptions, PolicyConfig
    from adadpo_lightning.training.module import PreferenceLitModule

    pairs = draw_pairs("short", 2, MODELS["1b"]["vocab_size"])
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), "1b")

        def measure(quantize: Any) -> dict[str, float]:
            torch.cuda.empty_cache()
            before = torch.cuda.memory_allocated()
            lora = LoraOptions(r=16, quantize=quantize)
            config = PolicyConfig(path=folder, dtype="bfloat16", lora=lora)
            module = PreferenceLitModule(config, build_loss("dpo"))
            module.configure_model()
            module.to("cuda")
            weights = torch.cuda.memory_allocated() - before
            batch = encoded(pairs, module.layout).to("cuda")
            optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-3)
            losses = []
            for _ in range(5):
                share, _ = module.step(batch)
                share.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(share))
            # The reference is the same model without the adapter, quantised alike.
            assert abs(losses[0] - 0.6931) < 0.01, f"the first loss is not log 2: {losses}"
            assert losses[-1] < losses[0], f"the loss does not fall: {losses}"
            return {"weights_gib": weights / 2**30, "first_loss": losses[0], "last_loss": losses[-1]}

        report.case("bfloat16", partial(measure, None))
        report.case("nf4", partial(measure, "nf4"))


def end_to_end(report: Report) -> None:
    """The rehearsal of `end_to_end.py`: on a random model, as the real one may have to be fetched."""
    import end_to_end as benchmark

    from tests.support.tiny import make_model_dir

    with tempfile.TemporaryDirectory() as folder:
        model = make_model_dir(Path(folder))
        given = {"kinds": "full", "rounds": 1, "pairs": 4, "step_pairs": 2, "longest": 20, "threads": 1}
        given |= {"model": model, "output": report.path}
        sys.argv[1:] = [f"--{name}={value}" for name, value in given.items()]
        benchmark.main()


def main() -> None:
    """Run one part."""
    run({f.__name__: f for f in (memory, speed, four_bit, end_to_end)}, str(__doc__))


if __name__ == "__main__":
    main()
