"""How evenly the plan shares real lengths over 8, 64 and 512 ranks, in tokens and in the work of an 8B model.

    python benchmarks/balance.py

Pairs are drawn with replacement from `real_lengths.json`, so that a step has as many long ones as the judged data have.
`by step` is the slowest rank over the mean, minus 1, where ranks wait for each other once per optimizer step (DDP);
`in lockstep` where they wait in each micro-batch (FSDP2). In FLOP attention is quadratic in length. `least` is the
least that `in lockstep` can be in tokens, where it is known: with one pair per micro-batch, that of pairs sorted by
length. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from generated_pairs import REAL_LENGTHS

from adadpo_lightning.data.plan import StepPlan
from adadpo_lightning.estimate.architecture import pair_flops
from adadpo_lightning.estimate.balance import imbalance
from adadpo_lightning.models.loading import PolicyConfig

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
RANKS = (8, 64, 512)
MICRO_BATCHES = 4
STEPS = 20
# Pairs per micro-batch, or tokens of it (and pairs per micro-batch on average).
SPLITS: tuple[tuple[str, dict[str, int], int], ...] = (
    ("1 pair", {"micro_batch_size": 1}, 1),
    ("2 pairs", {"micro_batch_size": 2}, 2),
    ("4 pairs", {"micro_batch_size": 4}, 4),
    ("8 pairs", {"micro_batch_size": 8}, 8),
    ("4096 tokens", {"max_tokens": 4096}, 4),
    ("8192 tokens", {"max_tokens": 8192}, 8),
)


def rows(scale: int, seed: int) -> list[dict[str, Any]]:
    """One row for each number of ranks and each split.

    Args:
        scale: Factor on all lengths.
        seed: Seed of the pairs.
    """
    lengths = scale * np.array(json.loads(REAL_LENGTHS.read_text(encoding="utf-8"))["lengths"])
    flops = np.array(
        pair_flops(PolicyConfig(config=LLAMA_8B, tokenizer="none"), [tuple(row) for row in lengths.tolist()])
    )
    tokens = lengths.sum(1)
    found = []
    for ranks in RANKS:
        for name, split, pairs in SPLITS:
            size = ranks * MICRO_BATCHES * pairs
            drawn = np.random.default_rng(seed).integers(len(lengths), size=STEPS * size)
            options: dict[str, Any] = {
                key: value * (scale if key == "max_tokens" else 1) for key, value in split.items()
            }
            plan = StepPlan(tokens[drawn], lengths[drawn, 1], size, ranks=ranks, seed=seed, **options)
            by_tokens = imbalance(plan, tokens[drawn].astype(float), range(STEPS))
            by_flops = imbalance(plan, flops[drawn], range(STEPS))
            least = least_in_lockstep(plan, ranks) if split.get("micro_batch_size") == 1 else None
            found.append(
                {
                    "ranks": ranks,
                    "micro_batch": name if scale == 1 else name.replace("tokens", f"x {scale} tokens"),
                    "micro_batches": plan.accumulate,
                    "pairs_a_step": size,
                    "tokens_by_step": by_tokens.by_step,
                    "tokens_in_lockstep": by_tokens.in_lockstep,
                    "flop_by_step": by_flops.by_step,
                    "flop_in_lockstep": by_flops.in_lockstep,
                    "least": least,
                }
            )
    return found


def least_in_lockstep(plan: StepPlan, ranks: int) -> float:
    """The least imbalance in lockstep of micro-batches of one pair: the longest run at one time, then the next ones."""
    order, found = plan.order(0), []
    for step in range(STEPS):
        longest_first = -np.sort(-plan.lengths[plan.step_rows(order, step)])
        found.append(longest_first[::ranks].mean() / longest_first.mean() - 1)
    return float(np.mean(found))


def table(found: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    head = (
        "| ranks | micro-batch | micro-batches | tokens: by step | in lockstep | FLOP: by step | in lockstep | least |"
    )
    lines = [head, "|" + "---|" * 8]
    for row in found:
        shares = ["" if value is None else f"{100 * value:.1f} %" for value in list(row.values())[4:]]
        lines.append(
            "| " + " | ".join([str(row["ranks"]), row["micro_batch"], str(row["micro_batches"]), *shares]) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the tables, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", type=int, nargs="+", default=[1, 4], help="factors on all lengths")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "balance.json")
    args = parser.parse_args()
    record = {}
    for scale in args.scales:
        record[f"lengths x {scale}"] = found = rows(scale, args.seed)
        print(f"lengths x {scale}\n\n{table(found)}\n")
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
