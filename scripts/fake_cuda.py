"""Forward passes on fake CUDA tensors: wrong devices and host synchronisation, found without a GPU.

    python scripts/fake_cuda.py  # needs the CUDA build of torch, but no GPU

The padded layout and `varlen`, in float32 and bfloat16, over pairs and over groups of several answers: the policy, its
loss, the metrics of the step and those of the gradient's hook. Under `FakeTensorMode` nothing is computed; a tensor on
another device, or a value that the host would have to wait for, raises.

Not covered: `flex` and the backward pass, whose code asks the driver for a context; `segments`, because torch cannot
make its `CausalBias` under `FakeTensorMode`.

Exit status: 0 if all pass, 1 if one fails, 3 if this build of torch has no CUDA.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parent.parent
NO_CUDA = 3
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 20},
    "gemma2": {"sliding_window": 20, "attn_logit_softcapping": 30.0, "final_logit_softcapping": 20.0},
}
SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
BACKENDS = ("padded", "varlen")
# One loss of each kind of input: sums, tails beyond the shorter answer, an NLL term, collisions of the vocabulary.
LOSSES = ("adadpo", "lddpo", "cpo", "wpo")


def batch(answers: int, layout: str) -> Any:
    """Two prompts with all pairs of their `answers`, as the loader would hand them over."""
    from itertools import combinations

    from adadpo_lightning.data.collate import collate
    from adadpo_lightning.types import EncodedPair

    pairs = []
    for group, prompt in enumerate(([5] * 40, [6] * 13)):
        sides = [[10 + group, *range(20, 20 + 7 * n), 2] for n in range(1, answers + 1)]
        pairs += [EncodedPair(prompt, w, r, group, margin=0.5, weight=2.0) for w, r in combinations(sides, 2)]
    tokens = sum(len(pair.chosen_ids) for pair in pairs)
    return collate(pairs, layout=layout, pad_id=0, step_pairs=len(pairs), step_chosen_tokens=tokens)


def forward(kind: str, backend: str, dtype: str, answers: int, device: str = "cuda") -> None:
    """Build a model, and run the parts of a training step; on another device than `cuda` the backward pass as well.

    Raises:
        Exception: From torch, for tensors on different devices and for a host synchronisation.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from adadpo_lightning.losses import build_loss
    from adadpo_lightning.metrics import WeightedMeans
    from adadpo_lightning.metrics.gradients import gradient_squares
    from adadpo_lightning.metrics.preference import gradient_statistics, step_statistics
    from adadpo_lightning.models.loading import PolicyConfig, load_model
    from adadpo_lightning.models.policy import PolicyModel
    from adadpo_lightning.training.module import PreferenceLitModule

    layout = "padded" if backend == "padded" else "packed"
    config = PolicyConfig(
        config={"model_type": kind, **SIZES, **ARCHITECTURES[kind]},
        tokenizer="unused",
        dtype=dtype,  # type: ignore[arg-type]
        layout=layout,  # type: ignore[arg-type]
        packed_attention="auto" if backend == "padded" else backend,  # type: ignore[arg-type]
        token_entropy=True,
        head_chunk_size=32,
    )
    host = batch(answers, layout)

    def observe(given: Any, gradient: torch.Tensor) -> None:
        gradient_squares(given, gradient)  # what an observer returns would replace the gradient

    # A fake tensor has no memory to pin, and torch's own deep copy of one reads memory that is not there.
    unpinned = mock.patch.object(torch.Tensor, "pin_memory", lambda x: x)
    copied = mock.patch.object(torch.Tensor, "__deepcopy__", lambda x, memo: x.detach().clone())
    with FakeTensorMode(allow_non_fake_inputs=True), unpinned, copied:
        with torch.device(device):
            policy = PolicyModel(load_model(config), config)
        given = host.to(device, non_blocking=True)
        for name in LOSSES:
            module = PreferenceLitModule(config, build_loss(name), reference="auto")
            module.tokenizer = None
            module.policy = policy
            given.ref_logps = torch.zeros(len(given.targets), device=device) if module.loss.needs_reference else None
            share, output = module.step(given)
            squares = gradient_squares(given, torch.zeros(len(given.targets), SIZES["hidden_size"], device=device))
            if device != "cuda":
                policy.gradient_observer = observe
                share.backward()
            means = WeightedMeans().to(device)
            means.update(step_statistics(output, given, 0.1) | gradient_statistics(squares, given))


def main() -> int:
    """Run every case, print one line for each."""
    if torch.version.cuda is None:
        print(f"fake_cuda: not run: torch {torch.__version__} is the CPU build; install the CUDA build (2.5 GB)")
        return NO_CUDA
    sys.path.insert(0, str(ROOT))
    from adadpo_lightning.models.attention.registry import choose_backend

    failed = 0
    for kind in ARCHITECTURES:
        for dtype in ("float32", "bfloat16"):
            for backend in BACKENDS:
                for answers in (2, 4):
                    case = f"{kind:8} {dtype:9} {backend:9} {answers} answers"
                    try:
                        if backend != "padded":
                            choose_backend(backend, "cuda", getattr(torch, dtype), capped=kind == "gemma2")
                    except Exception as reason:
                        print(f"-     {case}: not served ({reason})")
                        continue
                    try:
                        forward(kind, backend, dtype, answers)
                        print(f"ok    {case}")
                    except Exception:
                        failed += 1
                        print(f"FAIL  {case}\n{traceback.format_exc(limit=-6)}")
    print(f"fake_cuda: {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
