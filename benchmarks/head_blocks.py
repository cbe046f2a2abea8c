"""How much of the head's backward pass could be skipped: blocks of the softmax below float rounding.

    python benchmarks/head_blocks.py MODEL --data pairs.jsonl
    python benchmarks/head_blocks.py MODEL  # text of this repository's documentation

The gradient of the logits is the softmax minus the one-hot target, times the gradient of the token. A block of it, some
tokens by some entries of the vocabulary, adds nothing that the sums of the two matrix products could hold if all its
entries are below the rounding of the largest (2^-24 in float32, 2^-9 in bfloat16), and could be left out (Wijmans et
al., arXiv 2411.09009, which does so in a GPU kernel with 2^-12). MODEL is a directory or hub id.

Three things are reported for each size of block: the share of blocks below a limit, with the vocabulary in its own
order and sorted by the mean logit of the other half of the text; and the time of both products where only the
columns of the sorted vocabulary that have a block above the limit are computed, over the time of the whole products.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

LIMITS = {"2^-24": 2.0**-24, "2^-12": 2.0**-12}
TOKENS, COLUMNS = (128, 1024), (128, 1024)


def texts(data: Path | None) -> list[str]:
    """Texts to read: answers of pairs, or pages of the documentation."""
    if data is None:
        return [page.read_text(encoding="utf-8") for page in sorted((Path(__file__).parents[1] / "docs").glob("*.md"))]
    rows = (json.loads(line) for line in data.read_text(encoding="utf-8").splitlines())
    sides = (row["chosen"] for row in rows)
    return [side if isinstance(side, str) else side[-1]["content"] for side in sides]


@torch.no_grad()
def hidden_states(model: torch.nn.Module, tokenizer: Any, found: list[str], count: int) -> torch.Tensor:
    """Hidden states of `count` tokens, shape (count, D)."""
    rows, have = [], 0
    for text in found:
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=512).input_ids
        rows.append(model.base_model(ids).last_hidden_state[0])
        have += len(rows[-1])
        if have >= count:
            return torch.cat(rows)[:count]
    raise SystemExit(f"the text has {have} tokens, of {count}")


def below(softmax: torch.Tensor, tokens: int, columns: int, limit: float) -> torch.Tensor:
    """Which blocks have no entry of `limit` or more, shape (token blocks, column blocks)."""
    n, v = len(softmax) // tokens * tokens, softmax.shape[1] // columns * columns
    blocks = softmax[:n, :v].reshape(n // tokens, tokens, v // columns, columns)
    return blocks.amax((1, 3)) < limit


def products(errors: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor, chunk: int, widths: list[int]) -> float:
    """Seconds of both products of the backward pass over the first `widths[i]` columns of each chunk `i`."""
    grad = torch.zeros_like(weight)
    begin = time.perf_counter()
    for part, width in zip(range(0, len(errors), chunk), widths, strict=True):
        some, head = errors[part : part + chunk, :width], weight[:width]
        _ = some @ head
        grad[:width].addmm_(some.T, hidden[part : part + chunk])
    return time.perf_counter() - begin


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--count", type=int, default=4096, help="tokens; half of them order the vocabulary")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    hidden = hidden_states(model, AutoTokenizer.from_pretrained(args.model), texts(args.data), args.count)
    weight = model.get_output_embeddings().weight
    first, hidden = hidden.chunk(2)
    order = sum((part @ weight.T).sum(0) for part in first.split(256)).argsort(descending=True)
    softmax = torch.softmax(hidden @ weight.T, -1)
    ordered, head = softmax[:, order], weight[order]
    found = []
    for tokens in TOKENS:
        for columns in COLUMNS:
            for name, limit in LIMITS.items():
                share = [below(p, tokens, columns, limit).float().mean().item() for p in (softmax, ordered)]
                kept = ~below(ordered, tokens, columns, limit)
                last = [int(row.nonzero().max().item() + 1) * columns if row.any() else columns for row in kept]
                whole = [len(head)] * len(last)
                ratios = [
                    products(ordered, hidden, head, tokens, last) / products(ordered, hidden, head, tokens, whole)
                    for _ in range(args.rounds)
                ]
                found.append(
                    {
                        "tokens": tokens,
                        "columns": columns,
                        "limit": name,
                        "share_below": round(share[0], 4),
                        "share_below_sorted": round(share[1], 4),
                        "time_of_kept_columns": round(statistics.median(ratios), 3),
                    }
                )
                print(json.dumps(found[-1]))


if __name__ == "__main__":
    main()
