"""An optimizer step of a run on many ranks, in one process without devices: what one rank holds and sends.

The package's own strategy, sharding, module and optimizer run over tensors without memory, in a process group whose
collectives move nothing. Torch's memory tracker counts the bytes that this rank would hold, by kind.

The step runs on the CPU's kernels: attention is that of the CPU, and what a CUDA kernel allocates inside is not seen.
Callbacks (metrics, the guard against non-finite steps) are left out: they read values, and there are only shapes.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer
from torch.distributed.tensor import DTensor

from adadpo_lightning import log
from adadpo_lightning.compat import without_memory
from adadpo_lightning.data.collate import collate
from adadpo_lightning.errors import UserError
from adadpo_lightning.estimate.architecture import as_random, pairs_of
from adadpo_lightning.estimate.compat import (
    by_kind,
    fake_ranks,
    global_shapes_uncounted,
    held,
    memory_tracker,
    meshes_with_ranks,
)
from adadpo_lightning.estimate.tensor import Collectives
from adadpo_lightning.estimate.traffic import Sent, summed
from adadpo_lightning.models.adapters import add_reference_adapter
from adadpo_lightning.models.build import placed
from adadpo_lightning.models.loading import load_model
from adadpo_lightning.models.meta import parameters_on_meta
from adadpo_lightning.models.sharding import decoder_blocks
from adadpo_lightning.reference.live import FrozenReference
from adadpo_lightning.reference.modes import uses_reference_adapter
from adadpo_lightning.strategies.fsdp2 import FSDP2
from adadpo_lightning.training.optim import build_optimizer

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh
    from torch.optim import Optimizer

    from adadpo_lightning.estimate.architecture import Lengths
    from adadpo_lightning.models.policy import PolicyModel
    from adadpo_lightning.training.module import PreferenceLitModule
    from adadpo_lightning.types import PreferenceBatch

WARM_UP = ((8, 8, 8),)


@dataclass(frozen=True)
class Simulated:
    """What rank 0 held and sent in an optimizer step.

    Args:
        peak: Bytes by kind at the moment when the rank held most.
        after: Bytes by kind between two steps.
        sent: Collectives of the step, summed by kind and group.
        calls: Number of collectives by kind.
        whole_blocks: Most blocks of policy and reference whose weights were whole at a time.
        gathered: Most bytes of gathered weights of the policy at a time, including those on their way.
        seconds: Duration of the simulation.
    """

    peak: dict[str, int]
    after: dict[str, int]
    sent: list[Sent]
    calls: dict[str, int]
    whole_blocks: int
    gathered: int
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """Most bytes at a time."""
        return sum(self.peak.values())


def simulate(
    module: PreferenceLitModule,
    strategy: dict[str, Any],
    ranks: int,
    lengths: Lengths,
    accumulation: int = 1,
    clip: float | None = None,
) -> Simulated:
    """Run an optimizer step of rank 0, after a first short one that creates the optimizer's state.

    Args:
        module: The module, not built; it cannot be used afterwards.
        strategy: Options of `FSDP2`.
        ranks: Number of ranks.
        lengths: ``(prompt, chosen, rejected)`` tokens of each pair of a micro-batch; all micro-batches are alike.
        accumulation: Micro-batches per optimizer step.
        clip: Norm to clip gradients to; None does not clip.

    Raises:
        UserError: For a run that cannot be simulated.
    """
    _check(module, strategy)
    begun = time.perf_counter()
    with _silent(), fake_ranks(ranks):
        trainer = _trainer(module, strategy, ranks, accumulation)
        with without_memory(), global_shapes_uncounted(), meshes_with_ranks():
            _build(module, trainer)
            found = _measured(module, trainer, lengths, clip)
    return replace(found, seconds=time.perf_counter() - begun)


def _check(module: PreferenceLitModule, strategy: dict[str, Any]) -> None:
    lora = module.policy_config.lora
    if strategy.get("cpu_offload"):
        raise UserError("simulate", "shards in CPU memory cannot be simulated", "set cpu_offload to false")
    if module.loss.needs_lists:
        raise UserError("simulate", "a loss over ranked lists cannot be simulated", "simulate dpo: the memory is alike")
    if lora is not None and (lora.quantize or module.reference_mode == "frozen"):
        raise UserError(
            "simulate", "quantized weights, and a frozen copy beside an adapter, cannot be simulated", "leave it out"
        )


@contextmanager
def _silent() -> Iterator[None]:
    """Warnings about the run are not about its simulation."""
    logger = logging.getLogger(log.NAME)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


class _FirstOfMany(LightningEnvironment):
    """The ranks exist already, as far as Lightning has to know."""

    @property
    def creates_processes_externally(self) -> bool:
        return True


def _trainer(module: PreferenceLitModule, strategy: dict[str, Any], ranks: int, accumulation: int) -> Trainer:
    """A Trainer with its process group and mesh, as a run has it."""
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=FSDP2(**{**strategy, "process_group_backend": "fake"}),
        plugins=[_FirstOfMany()],
        accumulate_grad_batches=accumulation,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.strategy.connect(module)
    module.trainer = trainer
    trainer.strategy.setup_environment()
    return trainer


def _build(module: PreferenceLitModule, trainer: Trainer) -> None:
    """The sharded policy and, where the run has a second model, its sharded reference; no weights are read."""
    sharding: Any = trainer.strategy.sharding  # type: ignore[attr-defined]
    config = module.policy_config = replace(as_random(module.policy_config), compile=False)
    module.tokenizer = None
    with parameters_on_meta():
        model: Any = load_model(config)
        if uses_reference_adapter(module.reference_mode, config, module.reference_path):
            add_reference_adapter(model)
        module.policy = placed(model, config, sharding)
        if module.reference_mode == "path":
            module.reference_mode, module.reference_path = "frozen", None  # as `estimate` counts it
        module.configure_model()


def _measured(module: PreferenceLitModule, trainer: Trainer, lengths: Lengths, clip: float | None) -> Simulated:
    policy, reference = module.built_policy, module.live_reference
    optimizer = build_optimizer(policy, module.optimizer_config)
    second = [reference.model] if isinstance(reference, FrozenReference) else []
    tracker = memory_tracker(policy, optimizer, tuple(p for model in second for p in model.parameters()))
    blocks = [block for model in (policy, *second) for block in decoder_blocks(model.causal_lm)]
    ledger = _Ledger(blocks, tracker, trainer.strategy.sharding.tensor)  # type: ignore[attr-defined]
    with tracker, _each_pass_new(policy, tracker):
        _step(module, trainer, optimizer, [_batch(module, WARM_UP, 1)], clip)
    batches = [_batch(module, lengths, trainer.accumulate_grad_batches)] * trainer.accumulate_grad_batches
    with tracker, _each_pass_new(policy, tracker), ledger:
        _step(module, trainer, optimizer, batches, clip)
    return Simulated(
        by_kind(tracker.get_tracker_snapshot("peak")),
        by_kind(tracker.get_tracker_snapshot("current")),
        summed(ledger.sent),
        dict(Counter(sent.kind for sent in ledger.sent)),
        ledger.whole_blocks,
        ledger.gathered,
    )


@contextmanager
def _each_pass_new(policy: PolicyModel, tracker: Any) -> Iterator[None]:
    """Torch's tracker refuses a second forward pass unless it forgets what the modules did in the first."""
    hook = policy.register_forward_pre_hook(lambda *_: tracker.reset_mod_stats(), prepend=True)
    try:
        yield
    finally:
        hook.remove()


def _step(
    module: PreferenceLitModule,
    trainer: Trainer,
    optimizer: Optimizer,
    batches: Sequence[PreferenceBatch],
    clip: float | None,
) -> None:
    """An optimizer step in the order of Lightning's loop, which drops old gradients after the first forward pass."""
    for number, batch in enumerate(batches):
        loss = module.training_step(batch, number)["loss"] / len(batches)
        if number == 0:
            optimizer.zero_grad()
        trainer.strategy.backward(loss, optimizer)
        del loss
    if clip is not None:
        trainer.strategy.precision_plugin.clip_gradients(optimizer, clip)
    optimizer.step()


def _batch(module: PreferenceLitModule, lengths: Lengths, accumulation: int) -> PreferenceBatch:
    rows = pairs_of(lengths)
    step_pairs = len(rows) * accumulation
    batch = collate(rows, layout=module.layout, pad_id=0, step_pairs=step_pairs, step_chosen_tokens=step_pairs)
    if module.reference_mode == "cached":
        batch.ref_logps = torch.zeros(len(batch.targets))
    return batch


class _Ledger(Collectives):  # type: ignore[no-untyped-call]  # untyped in torch
    """Also looks at each operation which blocks are whole and how much is gathered.

    Args:
        blocks: The decoder blocks.
        tracker: The memory tracker.
        tensor: The tensor-parallel mesh; a weight on it alone is gathered.
    """

    def __init__(self, blocks: list[Any], tracker: Any, tensor: DeviceMesh | None) -> None:
        super().__init__()
        self.firsts, self.tracker, self.tensor = [_first_parameter(block) for block in blocks], tracker, tensor
        self.whole_blocks = self.gathered = 0

    def done(self) -> None:
        self.gathered = max(self.gathered, held(self.tracker, "gathered weights"))
        whole = sum(self._is_whole(getattr(owner, name)) for owner, name in self.firsts)
        self.whole_blocks = max(self.whole_blocks, whole)

    def _is_whole(self, weight: Any) -> bool:
        """A block that is sharded has DTensors of the mesh of FSDP2 in place of its weights."""
        return not isinstance(weight, DTensor) or weight.device_mesh == self.tensor


def _first_parameter(block: nn.Module) -> tuple[nn.Module, str]:
    """The module that holds a block's first parameter, and its name there."""
    owner, _, name = next(iter(block.named_parameters()))[0].rpartition(".")
    return block.get_submodule(owner), name
