"""``estimate``: a config's memory and work, said in a table before any device is asked for."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from adadpo_lightning.cli.trainer import PreferenceCLI
from adadpo_lightning.errors import UserError
from adadpo_lightning.estimate.memory import Estimate, Lengths, RunShape, estimate

if TYPE_CHECKING:
    from adadpo_lightning.data.datamodule import PreferenceDataModule
    from adadpo_lightning.training.module import PreferenceLitModule


class ParsedCLI(PreferenceCLI):
    """The ``fit`` command up to its module and datamodule: no trainer is made and nothing is written."""

    trainer_options: dict[str, Any]

    def before_instantiate_classes(self) -> None:
        """Nothing: no directory is touched."""

    def instantiate_classes(self) -> None:
        """Build module and datamodule from the config, and keep what it says of the trainer."""
        self.trainer_options = self._get(self.config, "trainer").as_dict()
        parsed = self.parser.instantiate(self.config)
        self.model, self.datamodule = self._get(parsed, "model"), self._get(parsed, "data")

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing."""


def run_estimate(args: Sequence[str]) -> None:
    """Print what a run would need.

    Args:
        args: Options of ``estimate``, and those of ``fit``.

    Raises:
        UserError: If the number of ranks is not known, or there are no lengths.
    """
    own, rest = _parser().parse_known_args(list(args))
    cli = ParsedCLI.run(["fit", *rest])
    ranks = own.ranks or _ranks(cli.trainer_options)
    lengths, source, epoch = _lengths(cli.model, cli.datamodule, own.lengths)
    run = run_shape(cli.model, cli.datamodule, cli.trainer_options, ranks, lengths)
    result = estimate(run)
    print("\n".join(report(run, result, source, own.device_gib, cli.datamodule.global_batch_size, epoch)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adadpo_lightning estimate", description=__doc__)
    parser.add_argument("--ranks", type=int, help="devices of the run; default: trainer.devices x trainer.num_nodes")
    parser.add_argument("--device_gib", type=float, default=80.0, help="memory of a device, GiB (default 80)")
    parser.add_argument(
        "--lengths",
        type=_triple,
        metavar="PROMPT,CHOSEN,REJECTED",
        help="tokens of the longest pairs; default: read data.train and take its largest micro-batch",
    )
    return parser


def _triple(text: str) -> tuple[int, int, int]:
    prompt, chosen, rejected = (int(part) for part in text.split(","))
    return prompt, chosen, rejected


def _ranks(trainer: dict[str, Any]) -> int:
    devices, nodes = trainer.get("devices", "auto"), int(trainer.get("num_nodes") or 1)
    if isinstance(devices, list):
        return len(devices) * nodes
    if not str(devices).isdigit():
        raise UserError("trainer.devices", f"{devices!r} says no number", "give --ranks, such as --ranks 8")
    return int(devices) * nodes


def _lengths(
    module: PreferenceLitModule, data: PreferenceDataModule, given: tuple[int, int, int] | None
) -> tuple[Lengths, str, tuple[int, int] | None]:
    """Pairs of the largest micro-batch, where they come from, and how many pairs and tokens an epoch has."""
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


def run_shape(
    module: PreferenceLitModule, data: PreferenceDataModule, trainer: dict[str, Any], ranks: int, lengths: Lengths
) -> RunShape:
    """What of a config its memory depends on.

    Args:
        module: The module.
        data: The datamodule.
        trainer: The trainer's options as they were parsed.
        ranks: Number of devices.
        lengths: Pairs of the largest micro-batch.
    """
    strategy = trainer.get("strategy", "auto")
    options: dict[str, Any] = {}
    name = strategy
    if not isinstance(strategy, str):
        name, options = strategy["class_path"], dict(strategy.get("init_args") or {})
    name = str(name).rpartition(".")[2].lower()
    sharded = name in ("fsdp2", "fsdp", "fsdpstrategy", "modelparallelstrategy")
    dtype = options.get("param_dtype")
    pairs = len(lengths)
    return RunShape(
        policy=module.policy_config,
        lengths=lengths,
        ranks=ranks,
        shards=ranks // int(options.get("replicas") or 1) if sharded else 1,
        reference=module.reference_mode,
        autocast=str(trainer.get("precision")) == "bf16-mixed",
        gathered_dtype=getattr(torch, dtype) if dtype else None,
        accumulation=max(1, -(-data.global_batch_size // (ranks * pairs))),
        ddp=ranks > 1 and not sharded,
        cpu_offload=bool(options.get("cpu_offload")),
    )


def report(
    run: RunShape, result: Estimate, source: str, device_gib: float, global_batch: int, epoch: tuple[int, int] | None
) -> list[str]:
    """The lines of the table.

    Args:
        run: The run's shape.
        result: Its estimate.
        source: Where the lengths come from.
        device_gib: Memory of a device.
        global_batch: Pairs an optimizer step.
        epoch: Pairs and tokens an epoch, if they are known.
    """
    lines = [
        f"{result.parameters / 1e9:.3f} B parameters, {result.trainable / 1e9:.3f} B trained",
        f"reference {run.reference}",
        f"{run.ranks} rank(s), weights over {run.shards}; {run.accumulation} micro-batch(es) a step on each",
        f"largest micro-batch: {len(run.lengths)} pair(s), {result.tokens} tokens ({source})",
        "",
        "peak on a rank, GiB",
        *(f"  {name:<18}{size:8.2f}" for name, size in result.gib.items()),
        f"  {'total':<18}{result.total:8.2f}   of {device_gib:g}",
    ]
    if result.host_gib:
        lines.append(f"  in CPU memory     {result.host_gib:8.2f}")
    lines += ["", f"work of a step: {result.step_flops / 1e15:.3g} PFLOP over all ranks, were all pairs that long"]
    if epoch is not None:
        pairs, tokens = epoch
        steps = -(-pairs // global_batch)
        lines.append(
            f"an epoch: {steps} steps, {tokens} tokens ({tokens / steps:.0f} a step), "
            f"at most {steps * result.step_flops / 1e15:.3g} PFLOP"
        )
    # The allocator's gaps, the CUDA context and NCCL's buffers are not in the table.
    if result.total <= 0.9 * device_gib:
        return [*lines, "", "fits, with a tenth to spare"]
    return [*lines, "", "does not fit with a tenth to spare. What would change that:", *_advice(run, device_gib)]


@dataclass(frozen=True)
class Change:
    """One thing to change in a run.

    Args:
        text: How, in the config.
        apply: The run after it; None where it does not apply.
    """

    text: str
    apply: Callable[[RunShape], RunShape | None]


def _with_policy(run: RunShape, **changes: Any) -> RunShape:
    return replace(run, policy=replace(run.policy, **changes))


def _lora(run: RunShape) -> RunShape | None:
    from adadpo_lightning.models.loading import LoraOptions

    if run.policy.lora is not None:
        return None
    changed = _with_policy(run, lora=LoraOptions(), dtype="bfloat16", gradient_checkpointing=True)
    return replace(changed, autocast=False, reference="adapter_off" if run.reference != "none" else "none")


CHANGES = (
    Change(
        "model.reference: cached",
        lambda run: replace(run, reference="cached") if run.reference == "frozen" else None,
    ),
    Change(
        "model.policy.gradient_checkpointing: true",
        lambda run: None if run.policy.gradient_checkpointing else _with_policy(run, gradient_checkpointing=True),
    ),
    Change(
        "model.policy.offload_activations: true",
        lambda run: None if run.policy.offload_activations else _with_policy(run, offload_activations=True),
    ),
    Change(
        "data.micro_batch_size: 1",
        lambda run: (
            replace(run, lengths=run.lengths[:1], accumulation=run.accumulation * len(run.lengths))
            if len(run.lengths) > 1
            else None
        ),
    ),
    Change(
        "--config configs/strategy/fsdp2.yaml",
        lambda run: (
            replace(run, shards=run.ranks, ddp=False, autocast=False, gathered_dtype=torch.bfloat16)
            if run.ranks > 1 and run.shards == 1
            else None
        ),
    ),
    Change(
        "twice as many devices",
        lambda run: replace(run, ranks=2 * run.ranks, shards=2 * run.shards) if run.shards > 1 else None,
    ),
    Change(
        "--config configs/strategy/fsdp2_offload.yaml",
        lambda run: replace(run, cpu_offload=True) if run.shards > 1 and not run.cpu_offload else None,
    ),
    Change("--config configs/model/lora.yaml over bfloat16 weights", _lora),
)


def _advice(run: RunShape, device_gib: float) -> list[str]:
    """Each change alone, then those that cost little together."""
    lines = []
    for change in CHANGES:
        changed = change.apply(run)
        if changed is not None:
            total = estimate(changed).total
            lines.append(f"  {total:8.2f} GiB{'' if total > 0.9 * device_gib else ' (fits)'}  {change.text}")
    return lines
