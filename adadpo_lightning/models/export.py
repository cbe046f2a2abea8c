"""Write a policy as a Hugging Face directory."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adadpo_lightning.errors import UserError
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig, load_model, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

POLICY_PREFIX = "policy.model."


def export_model(model: Any, tokenizer: Any, path: str | Path, *, merge: bool = False) -> None:
    """Write weights (safetensors), config and tokenizer, all or nothing.

    Args:
        model: Causal language model, with or without adapters.
        tokenizer: Its tokenizer.
        path: Directory to write; must not exist or be empty.
        merge: Merge adapters into the base model (which changes `model`) and not write them as adapters.

    Raises:
        UserError: If the directory holds something already.
    """
    target = Path(path)
    check_export_path(target)
    if merge and hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename and not a copy that could stop half-way.
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        model.save_pretrained(partial, safe_serialization=True)
        tokenizer.save_pretrained(partial)
        partial.chmod(0o755)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_export_path(target: Path) -> None:
    """Never write into a directory that holds something.

    Raises:
        UserError: If `target` is a file or a directory that is not empty.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError("output", f"{target} exists and is not empty", "choose another directory")


def export_checkpoint(checkpoint: str, output: str, *, merge: bool = False) -> None:
    """Write the policy of a checkpoint file of ``fit`` as a Hugging Face directory.

    Raises:
        UserError: If the checkpoint is missing or was not written by this package.
    """
    check_export_path(Path(output))
    if not Path(checkpoint).is_file():
        raise UserError("checkpoint", f"there is no file {checkpoint}", "give a .ckpt file from a run's checkpoints/")
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    if "adadpo_lightning" not in content:
        raise UserError("checkpoint", f"{checkpoint} was not written by adadpo_lightning")
    values = dict(content["adadpo_lightning"]["policy"])
    values["lora"] = None if values["lora"] is None else LoraOptions(**values["lora"])
    config = PolicyConfig(**values)
    tokenizer = load_tokenizer(config)
    model = load_model(config, tokenizer)
    load_policy_weights(model, content["state_dict"])
    export_model(model, tokenizer, output, merge=merge)


def load_policy_weights(model: Any, state_dict: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's policy weights into a model; with adapters the checkpoint holds these alone.

    Raises:
        UserError: If a trained weight is missing or one has no place.
    """
    weights = {k.removeprefix(POLICY_PREFIX): v for k, v in state_dict.items() if k.startswith(POLICY_PREFIX)}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    lost = trained.intersection(missing)
    if lost or unexpected:
        raise UserError(
            "checkpoint",
            f"does not fit the model it names: missing {sorted(lost)[:3]}, without a place {sorted(unexpected)[:3]}",
        )
