"""Dropout masks that follow from the position in the run: a resumed run draws those of the uninterrupted one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from adadpo_lightning.data.position import sharing

if TYPE_CHECKING:
    from adadpo_lightning.training.module import PreferenceLitModule


@contextmanager
def masks_of_this_micro_batch(module: PreferenceLitModule) -> Iterator[None]:
    """Within this context, random numbers depend on seed, optimizer step, micro-batch and data-parallel rank alone.

    Every forward pass of a micro-batch in training then has the same masks, also if the step is computed again after a
    resume. The state of the generators outside does not change. Without dropout this does nothing.

    Args:
        module: A module, attached to a trainer or not.
    """
    lora = module.policy_config.lora
    if lora is None or lora.dropout == 0 or not module.training or not module.is_fitting:
        yield
        return
    trainer = module.trainer
    micro_batch = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    position = [module.run_record.seed, trainer.global_step, micro_batch, sharing(trainer)[1]]
    device = module.device
    with torch.random.fork_rng([] if device.type == "cpu" else [device]):
        torch.manual_seed(int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0]))
        yield
