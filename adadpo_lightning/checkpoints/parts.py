"""Whether a loaded checkpoint has the parts that are needed, before anything reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from adadpo_lightning.errors import UserError

ANY = {"state_dict": Mapping, "global_step": int, "epoch": int, "pytorch-lightning_version": str}
# Where Lightning's `WeightAveraging` keeps the weights that training continues from; ``state_dict`` is their average.
CURRENT_WEIGHTS = "current_model_state"
RESUMED = {"loops": Mapping, "lr_schedulers": list, "callbacks": Mapping}


def read_checkpoint(path: Path) -> Any:
    """What a checkpoint holds; its weights are mapped and not read. Of a directory of shards, what is not sharded."""
    sharded = path.is_dir()
    return torch.load(path / "meta.pt" if sharded else path, map_location="cpu", weights_only=True, mmap=not sharded)


def check_parts(checkpoint: Any, *, resume: bool, path: str | None = None) -> None:
    """Stop at a checkpoint that lacks what Lightning reads.

    Args:
        checkpoint: What a file holds, or ``meta.pt`` of a directory of shards.
        resume: Whether training continues from it, which needs more than the weights.
        path: Where it was read from, for the message.

    Raises:
        UserError: Naming the part.
    """
    name = "the checkpoint" if path is None else path
    if not isinstance(checkpoint, Mapping):
        raise UserError(
            "ckpt_path",
            f"{name} holds a {type(checkpoint).__name__}, not a checkpoint",
            "give a file from a run's checkpoints directory",
        )
    if resume and "lr_schedulers" not in checkpoint and "state_dict" in checkpoint:
        raise UserError(
            "ckpt_path",
            f"{name} holds weights only (checkpoint.save_weights_only), and training needs the optimizer's state",
            "resume from a full checkpoint, or start a new run from these weights: "
            "export them and set model.policy.path to the export",
        )
    for part, kind in {**ANY, **(RESUMED if resume else {})}.items():
        if part == "state_dict" and part not in checkpoint:
            continue  # a directory of shards keeps the weights in its other files
        found = checkpoint.get(part)
        if not isinstance(found, kind) or isinstance(found, bool):
            problem = "is missing" if part not in checkpoint else f"is a {type(found).__name__}"
            raise UserError("ckpt_path", f"{name} is not a checkpoint of fit: {part} {problem}", "give another one")
    if resume and not isinstance(checkpoint["loops"].get("fit_loop"), Mapping):
        raise UserError(
            "ckpt_path", f"{name} is not a checkpoint of fit: loops.fit_loop is missing", "give another one"
        )
