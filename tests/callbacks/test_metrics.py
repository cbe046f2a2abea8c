"""What a run logs is what it did: the rate that was applied, the loss of the pairs that were validated."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from adadpo_lightning.callbacks import PreferenceMetrics
from adadpo_lightning.training.optim import SchedulerConfig
from tests.training.test_module import QUIET, data, module


class Witness(Callback):
    """Records the rates that the optimizer applies and that are logged, and the validated pairs."""

    def __init__(self):
        self.applied, self.logged, self.validated = [], [], []

    def on_train_start(self, trainer, pl_module):
        trainer.optimizers[0].register_step_pre_hook(
            lambda optimizer, *_: self.applied.append(optimizer.param_groups[0]["lr"])
        )

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.logged.append(trainer.callback_metrics["train/learning_rate"].item())

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, *args):
        self.validated.append(outputs["step"])


def test_rate_and_limited_validation(model_dir, pairs_file):
    witness = Witness()
    trainer = Trainer(
        **QUIET,
        enable_checkpointing=False,
        max_steps=4,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        limit_val_batches=2,
        val_check_interval=4,
        callbacks=[PreferenceMetrics(), witness],
    )
    lit = module(model_dir, "cpo")
    lit.scheduler_config = SchedulerConfig(name="linear", warmup_ratio=0.0)
    trainer.fit(lit, datamodule=data(pairs_file, micro_batch_size=8, val=str(pairs_file)))
    assert witness.logged == pytest.approx(witness.applied)
    assert witness.logged == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])
    steps = witness.validated
    assert len(steps) == 2
    contrast = torch.cat([step.loss.per_pair for step in steps]).mean()
    nll = sum(step.loss.nll.sum() for step in steps) / sum(step.pairs.chosen_len.sum() for step in steps)
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(float(contrast + nll), rel=1e-6)
