"""Whether a loaded checkpoint has the parts that are needed, before anything reads them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from packaging.version import InvalidVersion, Version

from adadpo_lightning.errors import UserError

# The entry of this package in a checkpoint.
KEY = "adadpo_lightning"
ANY = {"state_dict": Mapping, "global_step": int, "epoch": int, "pytorch-lightning_version": str}
# Where Lightning's `WeightAveraging` keeps the weights that training continues from; ``state_dict`` is their average.
CURRENT_WEIGHTS = "current_model_state"
RECORD: dict[str, type] = {
    **{"format": int, "version": str, "run": str, "seed": int},
    **dict.fromkeys(("policy", "module", "fingerprint"), Mapping),
}
FINGERPRINT = {"options": Mapping, "inputs": Mapping}
# Parts that a directory of shards does not have in `meta.pt`.
SHARDED = ("state_dict", "optimizer_states")
RESUMED = {"loops": Mapping, "optimizer_states": list, "lr_schedulers": list, "callbacks": Mapping}


def read_checkpoint(path: Path) -> Any:
    """What a checkpoint holds; its weights are mapped and not read. Of a directory of shards, what is not sharded."""
    return mapped(path / "meta.pt" if path.is_dir() else path)


def mapped(file: Path) -> Any:
    """What a file of ``torch.save`` holds, without running code of it; tensors are mapped and not read.

    Raises:
        UserError: If it holds tensors of torchao, which is not installed.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        if "torchao." not in str(error):
            raise
    try:
        import_module("torchao.optim")  # which tells torch that its types are safe
    except ImportError as error:
        raise UserError(
            "torchao", f"{file} has the 8-bit state of its optimizers", "pip install 'adadpo-lightning[torchao]'"
        ) from error
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


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
        if part in SHARDED and part not in checkpoint:
            continue  # a directory of shards keeps it in its other files
        found = checkpoint.get(part)
        if not isinstance(found, kind) or isinstance(found, bool):
            raise _not_of_fit(name, part, "is missing" if part not in checkpoint else f"is a {type(found).__name__}")
        if isinstance(found, int) and found < 0:
            raise _not_of_fit(name, part, f"is {found}")
    try:
        Version(checkpoint["pytorch-lightning_version"])
    except InvalidVersion as error:
        raise _not_of_fit(name, "pytorch-lightning_version", f"is {str(error)!r}") from error
    if resume:
        _check_state(checkpoint, name)
    check_record(checkpoint, "ckpt_path", name)


def _check_state(checkpoint: Mapping[str, Any], name: str) -> None:
    """Stop at parts that Lightning would pass over: the optimizer or the schedule would silently start anew."""
    if not isinstance(checkpoint["loops"].get("fit_loop"), Mapping):
        raise _not_of_fit(name, "loops.fit_loop", "is missing")
    for part in ("optimizer_states", "lr_schedulers"):
        if part in checkpoint and len(checkpoint[part]) != 1:
            raise _not_of_fit(name, part, f"has {len(checkpoint[part])} entries instead of 1")
    if checkpoint["global_step"] and _lacks_moments(checkpoint.get("optimizer_states", [None])[0]):
        raise _not_of_fit(name, "optimizer_states", "has no moments")
    position = checkpoint["loops"]["fit_loop"].get("epoch_loop.batch_progress", {})
    for counts in (position.get("current"), position.get("total")) if isinstance(position, Mapping) else ():
        for what, count in counts.items() if isinstance(counts, Mapping) else ():
            if not isinstance(count, int) or count < 0:
                raise _not_of_fit(name, f"the number of {what} micro-batches", f"is {count!r}")


def _lacks_moments(optimizer: Any) -> bool:
    """Whether this is the state of an optimizer of Adam's kind, without its moments; others may have no state."""
    try:
        return "betas" in optimizer["param_groups"][0] and not optimizer["state"]
    except (LookupError, TypeError):
        return False


def _not_of_fit(name: str, part: str, problem: str) -> UserError:
    return UserError("ckpt_path", f"{name} is not a checkpoint of fit: {part} {problem}", "give another one")


def check_record(checkpoint: Mapping[str, Any], field: str, name: str) -> None:
    """Stop at a record of this package whose entries have other types than those that are read.

    Args:
        checkpoint: What a file holds, or ``meta.pt`` of a directory of shards; a record may be missing.
        field: The option that named it, for errors.
        name: The checkpoint, for errors.

    Raises:
        UserError: Naming the entry.
    """
    record = checkpoint.get(KEY, {})
    odd = _odd_entries(record, RECORD) if isinstance(record, Mapping) else [KEY]
    if not odd and "fingerprint" in record:
        found = {part: record["fingerprint"].get(part) for part in FINGERPRINT}
        odd = [f"fingerprint.{part}" for part in _odd_entries(found, FINGERPRINT)]
    if odd:
        raise UserError(
            field, f"{name} is not a checkpoint of fit: {odd[0]} of its record cannot be read", "give another one"
        )


def _odd_entries(entries: Mapping[str, Any], kinds: Mapping[str, type]) -> list[str]:
    return [name for name, kind in kinds.items() if name in entries and not isinstance(entries[name], kind)]
