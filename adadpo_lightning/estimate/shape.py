"""The shape of a run, from its module, datamodule and Trainer options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from adadpo_lightning.errors import UserError
from adadpo_lightning.estimate.memory import RunShape
from adadpo_lightning.strategies.capabilities import shards_weights
from adadpo_lightning.strategies.fsdp2 import FSDP2
from adadpo_lightning.training.optimizer_class import ClassOptimizerConfig

if TYPE_CHECKING:
    from adadpo_lightning.data.datamodule import PreferenceDataModule
    from adadpo_lightning.estimate.architecture import Lengths
    from adadpo_lightning.training.module import PreferenceLitModule

ALL_DEVICES = ("auto", "-1")  # Trainer values for all devices of the machine


def ranks_of(trainer: dict[str, Any]) -> int:
    """Number of ranks of a run: devices x nodes; unspecified devices are those of this machine.

    Example:
        >>> ranks_of({"devices": 4, "num_nodes": 2}), ranks_of({"devices": "0,1"})
        (8, 2)
    """
    devices, nodes = trainer.get("devices", "auto"), int(trainer.get("num_nodes") or 1)
    if isinstance(devices, list):
        return len(devices) * nodes
    if str(devices) in ALL_DEVICES:
        return devices_here(trainer) * nodes
    if "," in str(devices):
        return len([part for part in str(devices).split(",") if part.strip()]) * nodes
    if not str(devices).isdigit() or int(devices) < 1:
        raise UserError("trainer.devices", f"expected a number or a list, got {devices!r}", "or give --ranks")
    return int(devices) * nodes


def devices_here(trainer: dict[str, Any]) -> int:
    """Number of devices that the Trainer would use on this machine; 1 without GPUs."""
    return 1 if trainer.get("accelerator") == "cpu" else max(1, torch.cuda.device_count())


def assumptions(trainer: dict[str, Any]) -> list[str]:
    """Assumptions of `ranks_of`, one sentence each."""
    devices = trainer.get("devices", "auto")
    if str(devices) not in ALL_DEVICES:
        return []
    kind = "GPU(s)" if torch.cuda.is_available() and trainer.get("accelerator") != "cpu" else "CPU"
    here = f"{devices_here(trainer)} {kind} of this machine"
    return [f"assumed: trainer.devices is {devices}, so the {here}; give --ranks N for another number"]


def optimizer_assumption(module: PreferenceLitModule) -> list[str]:
    """What the estimate assumes of an optimizer other than AdamW, as a sentence."""
    config = module.optimizer_config
    if not isinstance(config, ClassOptimizerConfig):
        return []
    return [f"assumed: {config.class_path} keeps two values for each trained weight, as AdamW does"]


def longest_pairs(
    module: PreferenceLitModule, data: PreferenceDataModule, given: tuple[int, int, int] | None
) -> tuple[Lengths, str, tuple[int, int] | None]:
    """Pairs of the largest micro-batch, their source, and the number of pairs and tokens per epoch.

    Raises:
        UserError: If there are no training pairs to read.
    """
    if given is not None:
        size = data.micro_batch_size if data.max_tokens is None else max(1, data.max_tokens // sum(given))
        return [given] * size, f"{size} pairs of {given} tokens, as given", None
    data.connect(module.data_needs())
    try:
        data.setup("fit")
    except UserError as error:
        raise UserError(error.field, error.problem, f"{error.fix or ''}; or give --lengths 500,300,300") from error
    prompt, chosen, rejected = data.prepared["train"].counts()
    total = prompt + chosen + rejected
    plan = data.plan
    if plan is None:
        raise UserError("data.train", "there are no training pairs", "give --lengths")
    rows = max((batch.rows for batch in plan.rank_batches(0, 0)), key=lambda rows: int(total[list(rows)].sum()))
    picked = np.stack([prompt, chosen, rejected], axis=1)[list(rows)]
    return (
        [tuple(row) for row in picked.tolist()],
        "the largest micro-batch of data.train",
        (len(total), int(total.sum())),
    )


def strategy_options(trainer: dict[str, Any]) -> dict[str, Any]:
    """The options of the configured `FSDP2`.

    Raises:
        UserError: For another strategy.
    """
    strategy = trainer.get("strategy", "auto")
    name = strategy if isinstance(strategy, str) else str(strategy["class_path"])
    if name.rpartition(".")[2] != "FSDP2":
        raise UserError(
            "simulate",
            f"only FSDP2 is simulated, got trainer.strategy {name}",
            "add --config configs/strategy/fsdp2.yaml",
        )
    return dict(strategy.get("init_args") or {})


def run_shape(
    module: PreferenceLitModule, data: PreferenceDataModule, trainer: dict[str, Any], ranks: int, lengths: Lengths
) -> RunShape:
    """Shape of a configured run.

    Args:
        module: The module.
        data: The datamodule.
        trainer: Parsed Trainer options.
        ranks: Number of devices.
        lengths: Pairs of the largest micro-batch.

    Raises:
        UserError: If the ranks cannot be divided as the strategy's options say.
    """
    strategy = trainer.get("strategy", "auto")
    options: dict[str, Any] = {}
    name = strategy
    if not isinstance(strategy, str):
        name, options = strategy["class_path"], dict(strategy.get("init_args") or {})
    tensor = 1
    if str(name).rpartition(".")[2] == "FSDP2":
        FSDP2(**options).check_sizes(ranks)
        tensor = int(options.get("tensor_parallel_size") or 1)
    sharded = shards_weights(str(name))
    dtype, reduced = options.get("param_dtype"), options.get("reduce_dtype", "float32")
    micro_batches = -(-data.global_batch_size // len(lengths))
    return RunShape(
        policy=module.policy_config,
        lengths=lengths,
        ranks=ranks,
        shards=ranks // (int(options.get("replicas") or 1) * tensor) if sharded else 1,
        tensor=tensor,
        reference=module.reference_mode,
        autocast=str(trainer.get("precision")) == "bf16-mixed",
        gathered_dtype=getattr(torch, dtype) if dtype else None,
        reduced_dtype=getattr(torch, reduced) if reduced else None,
        accumulation=-(-micro_batches * tensor // ranks),
        micro_batches=micro_batches,
        ddp=ranks > 1 and not sharded,
        cpu_offload=bool(options.get("cpu_offload")),
    )
