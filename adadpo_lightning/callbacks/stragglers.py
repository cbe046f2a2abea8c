"""Names ranks that compute more slowly than the others."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback
from torch import nn

from adadpo_lightning import log
from adadpo_lightning.callbacks.forward_timer import ForwardTimer
from adadpo_lightning.compat import accumulating, logs_now
from adadpo_lightning.errors import UserError
from adadpo_lightning.metrics import names
from adadpo_lightning.metrics.slow_ranks import slowness
from adadpo_lightning.models.sharding import decoder_blocks
from adadpo_lightning.ranks import gather_all, of_every_rank
from adadpo_lightning.strategies.capabilities import hides_gradients, shards_parameters, splits_matrices

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor

    from adadpo_lightning.models.policy import PolicyModel
    from adadpo_lightning.training.module import PreferenceLitModule
    from adadpo_lightning.types import PreferenceBatch

# Forward passes that a rank is judged by, one for each of the last steps; a single one may be slow by chance.
PASSES, LEAST_PASSES = 32, 4


class Stragglers(Callback):
    """Warns of each rank whose forward passes take longer than those of the others, and logs how much longer.

    All ranks of a step take equally long, because they wait for each other. What is compared is therefore the time
    inside parts of the policy between which ranks communicate: the whole forward pass with DDP; the blocks with FSDP2,
    without the time of gathering them; the linear layers of the blocks with tensor parallelism. The first micro-batch
    of each optimizer step is timed, and the last 32 of them count. ``train/slowest_rank_over_median`` and the warnings
    come at ``trainer.log_every_n_steps``, with one exchange between the ranks; until then nothing waits for the device.

    Nothing is measured on one device, under Lightning's FSDP1 strategy, and with compiled blocks that are sharded.

    Args:
        factor: A rank is named if it takes at least so many times the median of all ranks, both in seconds and in
            seconds per token position. null or 0 measures nothing.

    Raises:
        UserError: If `factor` is neither above 1 nor null or 0.
    """

    def __init__(self, factor: float | None = 1.5) -> None:
        if factor and not factor > 1:  # a NaN too
            raise UserError("Stragglers.factor", f"expected more than 1, or null, got {factor}")
        self.factor = factor
        self._timer: ForwardTimer | None = None
        self._hosts: list[str] = []
        self._first_step = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare to time the policy, if there is more than one rank."""
        self._close()
        self._first_step = True
        policy = cast("PreferenceLitModule", pl_module).built_policy
        modules = timed_modules(policy, trainer.strategy) if self.factor and trainer.world_size > 1 else []
        if modules:
            self._timer = ForwardTimer(modules, pl_module.device, PASSES)
            self._hosts = gather_all(socket.gethostname())

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PreferenceBatch, batch_idx: int
    ) -> None:
        """Time the first micro-batch of each step but the first, in which libraries and devices warm up."""
        starts_step = batch_idx % trainer.accumulate_grad_batches == 0
        if self._timer is not None and starts_step and not self._first_step:
            self._timer.start(batch.input_ids.numel())

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """The forward pass is over."""
        if self._timer is not None:
            self._timer.stop()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare the ranks at the steps at which Lightning writes."""
        if self._timer is None or accumulating(trainer):
            return
        self._first_step = False
        if logs_now(trainer) and len(self._timer) >= LEAST_PASSES:  # as many on every rank
            mine = torch.tensor(self._timer.totals(), dtype=torch.float64, device=pl_module.device)
            seconds, positions = of_every_rank(mine).T.tolist()
            over = slowness(seconds, positions)
            self._warn(over)
            options: dict[str, Any] = {"on_step": True, "on_epoch": False, "batch_size": 1}
            pl_module.log(names.train(names.SLOWEST_RANK_OVER_MEDIAN), max(over), **options)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the policy as it was."""
        self._close()

    def _warn(self, over: list[float]) -> None:
        for rank, times in enumerate(over):
            if self.factor and times >= self.factor:
                log.warn(
                    f"rank {rank} (host {self._hosts[rank]}) takes {times:.1f} times the median of all ranks for its "
                    f"forward passes (the last {len(self._timer or ())} steps): in each step the others wait for it"
                )

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer = None


def timed_modules(policy: PolicyModel, strategy: Any) -> list[nn.Module]:
    """The largest parts of a policy whose forward pass does not wait for other ranks; none where that is unknown.

    Args:
        policy: The policy, on its device.
        strategy: The trainer's strategy.
    """
    if hides_gradients(strategy):
        return []
    if not shards_parameters(strategy):
        return [policy]
    if policy.compiled:
        return []  # hooks of a compiled block are a part of what is compiled
    blocks = decoder_blocks(policy.causal_lm)
    if splits_matrices(strategy):
        return [module for block in blocks for module in block.modules() if isinstance(module, nn.Linear)]
    return blocks
