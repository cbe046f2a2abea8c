"""Small runs in Python that differ in one option of the Trainer, and what is compared of them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from adadpo_lightning.compat import accumulating
from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import build_loss
from adadpo_lightning.models.loading import PolicyConfig
from adadpo_lightning.training.module import PreferenceLitModule
from adadpo_lightning.training.optim import OptimizerConfig, SchedulerConfig
from tests.support.tiny import make_rows, write_rows

# 10 pairs are 5 micro-batches and 3 optimizer steps an epoch, the last of one micro-batch.
PAIRS, STEP, MICRO, EPOCHS = 10, 4, 2, 2
STEPS, MICRO_BATCHES = 3, 5
QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 50,  # each logged step costs as much as the step
    "max_epochs": EPOCHS,
}


class Witness(Callback):
    """Records what a run did, beside what it says."""

    def __init__(self):
        self.rows = []  # of each micro-batch
        self.weights = []  # after each optimizer step
        self.rates = []  # that were applied, by optimizer step
        self.validated = []  # the step outputs of each validation
        self.validations = []  # at which micro-batch
        self.known = []  # names of the metrics that are known as training starts

    def on_train_start(self, trainer, pl_module):
        self.known.append(set(trainer.callback_metrics))
        trainer.optimizers[0].register_step_pre_hook(lambda o, *_: self.rates.append(o.param_groups[0]["lr"]))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.rows.append(batch.row_ids.tolist())
        if not accumulating(trainer):
            self.weights.append(weights(pl_module))

    def on_validation_start(self, trainer, pl_module):
        self.validations.append(len(self.rows))
        self.validated.append([])

    def on_validation_batch_end(self, trainer, pl_module, outputs, *args):
        self.validated[-1].append(outputs["step"])


def weights(module: LightningModule):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def assert_equal(ours, theirs, **tolerance):
    """To the last bit, unless there is a tolerance."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, **({"rtol": 0, "atol": 0} | tolerance), msg=name)


@dataclass
class Run:
    trainer: Trainer
    module: PreferenceLitModule
    seen: Witness

    @property
    def weights(self):
        return weights(self.module)


@dataclass
class Lab:
    """Makes runs over the same model and pairs."""

    model: Path
    folder: Path
    made: dict = field(default_factory=dict)

    def pairs(self, count=PAIRS, seed=0):
        return str(write_rows(self.folder / f"pairs{count}-{seed}.jsonl", make_rows(count, seed)))

    def module(self, *, loss="adadpo", scheduler="constant", dtype="float32", lora=None, **options):
        policy = PolicyConfig(path=str(self.model), dtype=dtype, lora=lora)
        schedule = SchedulerConfig(name=scheduler, warmup_ratio=0.0)
        cache = str(self.folder / "cache")
        optimizer = OptimizerConfig(lr=1e-2)
        return PreferenceLitModule(policy, build_loss(loss), optimizer, schedule, reference_cache=cache, **options)

    def data(self, **options):
        sizes = {"global_batch_size": STEP, "micro_batch_size": MICRO, "max_length": 40}
        return PreferenceDataModule(**{"train": self.pairs()} | sizes | options)

    @property
    def held_out(self):
        """The option of `data` that adds 7 validation pairs, 4 micro-batches."""
        return {"val": self.pairs(7, seed=1)}

    def trainer(self, **options):
        return Trainer(**{**QUIET, "default_root_dir": self.folder, **options})

    def fit(self, *, module=None, data=None, ckpt_path=None, callbacks=(), **options) -> Run:
        """Train; `module` and `data` are options of theirs, all others the Trainer's."""
        seed_everything(0)
        lit, seen = self.module(**(module or {})), Witness()
        trainer = self.trainer(callbacks=[seen, *callbacks], **options)
        trainer.fit(lit, datamodule=self.data(**(data or {})), ckpt_path=ckpt_path)
        return Run(trainer, lit, seen)

    @property
    def plain(self) -> Run:
        """A run without any of the features."""
        if "plain" not in self.made:
            self.made["plain"] = self.fit(data=self.held_out)
        return self.made["plain"]


class Here(NamedTuple):
    """A lab whose runs write to a directory of the test's own."""

    lab: Lab
    folder: Path

    def fit(self, **options):
        return self.lab.fit(**{"default_root_dir": self.folder, **options})

    def same(self, **options):
        """A run that ends with the weights of a run without the feature."""
        run = self.fit(**options)
        assert_equal(run.weights, self.lab.plain.weights)
        return run

    def refused(self, message, **options):
        before = sorted(self.folder.rglob("*"))
        with pytest.raises(UserError, match=message):
            self.fit(**options)
        assert sorted(self.folder.rglob("*")) == before
