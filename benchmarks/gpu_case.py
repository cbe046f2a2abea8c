"""What the parts of `gpu.py` share: their report, and a small model with its batches."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from gpu import ROOT

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 100},
    "gemma2": {"sliding_window": 100, "attn_logit_softcapping": 30.0, "final_logit_softcapping": 20.0},
}


@dataclass
class Report:
    """What a part has measured, written to a file after every case.

    Args:
        path: JSON file.
        rehearse: Whether this is a CPU and sizes are tiny.
    """

    path: Path
    rehearse: bool
    values: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    @property
    def device(self) -> str:
        """Device type of the part."""
        return "cpu" if self.rehearse else "cuda"

    def case(self, name: str, measure: Callable[[], Any]) -> None:
        """Run one case. One that raises is recorded, and the others still run."""
        try:
            self.values[name] = measure()
        except Exception as error:
            traceback.print_exc()
            self.failed.append(name)
            self.values[name] = f"FAILED: {type(error).__name__}: {str(error)[:300]}"
        self.path.write_text(json.dumps(self.values, indent=1) + "\n", encoding="utf-8")


def small_policy(kind: str, dtype: str, backend: str, rehearse: bool) -> Any:
    """A random model whose heads flash kernels take; the same weights for every dtype and backend."""
    from adadpo_lightning.models.loading import PolicyConfig, load_model
    from adadpo_lightning.models.policy import PolicyModel

    heads, width = (4, 16) if rehearse else (8, 64)
    sizes = {
        "vocab_size": 97 if rehearse else 1000,
        "hidden_size": heads * width,
        "intermediate_size": 2 * heads * width,
        "num_hidden_layers": 2 if rehearse else 4,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": width,
        "max_position_embeddings": 2048,
        "initializer_range": 0.05,
    }
    config = PolicyConfig(
        config={"model_type": kind, **sizes, **ARCHITECTURES[kind]},
        tokenizer="unused",
        layout="padded" if backend == "padded" else "packed",
        packed_attention="auto" if backend == "padded" else backend,  # type: ignore[arg-type]
    )
    model = load_model(config)
    # Drawn in float32 and then converted, as the same seed gives other numbers in another data type. Parameters alone:
    # the frequencies of rotary positions stay in float32, as in a model that is loaded in `dtype`.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return PolicyModel(model, config)


def batch_of(answers: int, layout: str, rehearse: bool) -> Any:
    """Two prompts with all pairs of their `answers`."""
    from adadpo_lightning.data.collate import collate
    from adadpo_lightning.types import EncodedPair

    scale = 1 if rehearse else 12
    pairs = []
    for group, prompt in enumerate((17, 5)):
        sides = [[3 + (group + n + i * i) % 90 for i in range(scale * (3 + 5 * n))] + [2] for n in range(answers)]
        prompt_ids = [3 + (group + 7 * i) % 90 for i in range(scale * prompt)]
        pairs += [EncodedPair(prompt_ids, w, r, group) for w, r in combinations(sides, 2)]
    tokens = sum(len(pair.chosen_ids) for pair in pairs)
    return collate(pairs, layout=layout, pad_id=0, step_pairs=len(pairs), step_chosen_tokens=tokens)  # type: ignore[arg-type]


def run(parts: dict[str, Callable[[Report], None]], description: str) -> None:
    """The command line of a script of parts: run one of them.

    Raises:
        SystemExit: If a case of the part failed.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    report = Report(args.output, args.rehearse)
    parts[args.part](report)
    if report.failed:
        raise SystemExit(f"failed: {', '.join(report.failed)}")
