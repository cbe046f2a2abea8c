"""Write a policy as a Hugging Face directory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adadpo_lightning.checkpoints.integrity import damage
from adadpo_lightning.checkpoints.shards import converts_weights, export_shards, is_sharded, read_weights, write_live
from adadpo_lightning.errors import UserError
from adadpo_lightning.models.adapters import TRAINED
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig, load_model, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from adadpo_lightning.models.policy import PolicyModel

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
    with new_directory(target) as partial:
        # A reference adapter beside the trained one stays where it is.
        only = {"selected_adapters": [TRAINED]} if hasattr(model, "peft_config") else {}
        model.save_pretrained(partial, safe_serialization=True, **only)
        tokenizer.save_pretrained(partial)


def export_policy(policy: PolicyModel, tokenizer: Any, path: str | Path, *, merge: bool, write: bool) -> None:
    """As `export_model`, for a policy that may be sharded: all ranks call it, and one of them writes.

    Args:
        policy: The policy.
        tokenizer: Its tokenizer.
        path: Directory to write; must not exist or be empty.
        merge: Merge adapters into the base model.
        write: Whether this rank writes.

    Raises:
        UserError: If the directory holds something already, or the model has to be whole for this.
    """
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(policy, FSDPModule):
        if write:
            export_model(policy.model, tokenizer, path, merge=merge)
        return
    check_export_path(Path(path))
    if merge or converts_weights(policy.causal_lm):
        raise UserError(
            "export", "the model is sharded and would have to be whole", "export a checkpoint with the command export"
        )
    torch.distributed.barrier()  # all have looked before one writes
    policy.reshard()  # what a last validation left gathered is in the type of the computation
    if not write:
        write_live(policy.model, None)
        return
    with new_directory(Path(path)) as partial:
        write_live(policy.model, partial)
        tokenizer.save_pretrained(partial)


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A directory to fill, which becomes `target` when all of it is there, and is removed if that fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename and not a copy that could stop half-way.
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield partial
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
    """Write the policy of a checkpoint of ``fit``, a file or a directory of shards, as a Hugging Face directory.

    Shards are put together one output file at a time; no more of the model is ever in memory.

    Raises:
        UserError: If the checkpoint is missing or was not written by this package.
    """
    source, target = Path(checkpoint), Path(output)
    check_export_path(target)
    sharded = is_sharded(source)
    if not sharded and not source.is_file():
        raise UserError(
            "checkpoint", f"there is no file or directory of shards {checkpoint}", "give one from a run's checkpoints/"
        )
    if (reason := damage(source)) is not None:
        raise UserError(
            "checkpoint", f"{checkpoint} is damaged: {reason}", "give another one of the run's checkpoints/"
        )
    content = torch.load(
        source / "meta.pt" if sharded else source, map_location="cpu", weights_only=True, mmap=not sharded
    )
    if "adadpo_lightning" not in content:
        raise UserError("checkpoint", f"{checkpoint} was not written by adadpo_lightning")
    values = dict(content["adadpo_lightning"]["policy"])
    values["lora"] = None if values["lora"] is None else LoraOptions(**values["lora"])
    config = PolicyConfig(**values)
    tokenizer = load_tokenizer(config)
    if sharded and config.lora is None and not config.trust_remote_code:
        empty = load_model(config, tokenizer, empty=True)
        if not converts_weights(empty):
            with new_directory(target) as partial:
                export_shards(source, empty, POLICY_PREFIX, partial)
                tokenizer.save_pretrained(partial)
            return
    model = load_model(config, tokenizer)
    load_policy_weights(model, read_weights(source) if sharded else content["state_dict"])
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
