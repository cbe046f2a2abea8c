"""Which checkpoint a run goes on from, and whether it is still the same run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adadpo_lightning import log
from adadpo_lightning.checkpoints.integrity import damage, step_of
from adadpo_lightning.errors import UserError

# What decides which numbers come out of a run. The rest says where and how fast it runs, or what is written down.
MATTERS = (
    "seed_everything",
    "model",
    "data",
    "trainer.precision",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.limit_train_batches",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm",
)
# A change of these that a checkpoint cannot go on with is found by the data module's own plan.
DOES_NOT_MATTER = (
    "model.reference_cache",
    "model.policy.head_chunk_size",
    "model.policy.token_entropy",
    "model.policy.gradient_checkpointing",
    "model.policy.offload_activations",
    "model.policy.compile",
    "model.policy.packed_attention",
    "model.policy.layout",
    "model.policy.attn_implementation",
    "data.micro_batch_size",
    "data.max_tokens",
    "data.eval_batch_size",
    "data.num_workers",
    "data.num_proc",
    "data.test",
    "data.predict",
)
PASSED_ON = ("best", "hpc", "registry")  # keywords that Lightning itself understands


def checkpoint_folder(output_dir: str) -> Path:
    """Where a run keeps its checkpoints."""
    return Path(output_dir) / "checkpoints"


def candidates(folder: Path) -> list[Path]:
    """Everything in `folder` that may be a whole checkpoint, also what a kill has left between two names."""
    if not folder.is_dir():
        return []
    left_over = (path for path in folder.iterdir() if re.fullmatch(r"\..*\.ckpt\.(partial|old)", path.name))
    return sorted([*folder.glob("*.ckpt"), *(path for path in left_over if path.is_dir())])


def newest_whole(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The whole checkpoint of the latest step.

    Args:
        folder: Directory of a run's checkpoints.

    Returns:
        It, or None where there is none; and what is wrong with those that would have come before it.
    """
    damaged: dict[Path, str] = {}
    for path in sorted(candidates(folder), key=lambda path: _newness(path, damaged), reverse=True):
        if path in damaged:
            continue
        if (reason := damage(path)) is None:
            return path, damaged
        damaged[path] = reason
    return None, damaged


def _newness(path: Path, damaged: dict[Path, str]) -> tuple[int, float]:
    try:
        return step_of(path), path.stat().st_mtime
    except Exception as error:  # whatever a damaged file makes torch raise
        damaged[path] = damage(path) or f"it cannot be read ({str(error).splitlines()[0]})"
        return -1, 0.0


def resolve_checkpoint(ckpt_path: str | None, output_dir: str, *, auto_resume: bool = False) -> str | None:
    """What ``--ckpt_path`` and ``--auto_resume`` mean.

    Args:
        ckpt_path: ``last`` for the newest whole checkpoint of the run, a path, or None.
        output_dir: Directory of the run.
        auto_resume: Take ``last`` where there is a checkpoint, and start afresh where there is none.

    Returns:
        The path of a checkpoint that is whole, or None to start afresh.

    Raises:
        UserError: If there is none, or the one that was named is damaged.
    """
    folder = checkpoint_folder(output_dir)
    if ckpt_path in PASSED_ON or (ckpt_path is None and not auto_resume):
        return ckpt_path
    if ckpt_path is not None and ckpt_path != "last":
        return _checked(ckpt_path)
    found, damaged = newest_whole(folder)
    for path, reason in damaged.items():
        log.warn(f"{path} is damaged: {reason}. It is left alone.")
    if found is not None:
        log.info(f"Going on from {found}, step {step_of(found)}.")
        return str(found)
    if ckpt_path == "last" or damaged:
        held = f"{folder} holds no whole checkpoint" if damaged else f"there is no checkpoint in {folder}"
        raise UserError("ckpt_path", held, "leave it out and take another output_dir to start afresh")
    log.info(f"No checkpoint in {folder}: starting afresh.")
    return None


def _checked(ckpt_path: str) -> str:
    path = Path(ckpt_path)
    if "://" in ckpt_path:
        return ckpt_path
    if not path.exists():
        raise UserError("ckpt_path", f"there is no checkpoint {ckpt_path}", "give a file, or last")
    if (reason := damage(path)) is not None:
        other, _ = newest_whole(path.parent)
        fix = "no other checkpoint beside it is whole" if other is None else f"{other} is whole"
        raise UserError("ckpt_path", f"{ckpt_path} is damaged: {reason}", fix)
    return ckpt_path


def check_same_run(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Stop a resume whose config differs from the run's in what matters.

    Args:
        before: The run's ``config.yaml``.
        now: The present config in the same form.

    Raises:
        UserError: Naming each key that differs.
    """
    old, new = dict(_leaves(before)), dict(_leaves(now))
    changed = [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted({*old, *new})
        if _matters(key) and old.get(key) != new.get(key)
    ]
    if changed:
        raise UserError(
            "ckpt_path",
            "the run was started with another config:\n  " + "\n  ".join(changed) + "\n ",
            "give what it was started with, or go on all the same with --allow_changed_config true",
        )


def _matters(key: str) -> bool:
    def within(names: tuple[str, ...]) -> bool:
        return any(key == name or key.startswith(f"{name}.") for name in names)

    return within(MATTERS) and not within(DOES_NOT_MATTER)


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        elif value is not None:  # what is null says the same as what is left out
            yield f"{prefix}{name}", value
