"""What the trainer carries between module and datamodule, and what it refuses to train on."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import build_loss
from adadpo_lightning.models.loading import PolicyConfig
from adadpo_lightning.training.module import PreferenceLitModule
from tests.support.tiny import make_model_dir
from tests.training.test_module import QUIET, data, module


def trainer(**options):
    return Trainer(**QUIET, enable_checkpointing=False, max_steps=1, **options)


def test_training_needs_a_plan(model_dir, pairs_file):
    loader = torch.utils.data.DataLoader([0, 1])
    with pytest.raises(UserError, match=r"trainer.fit: needs a PreferenceDataModule"):
        trainer().fit(module(model_dir, "simpo"), train_dataloaders=loader)
    with pytest.raises(UserError, match=r"GradientAccumulationScheduler contradicts the step plan"):
        trainer(callbacks=[GradientAccumulationScheduler({0: 2})]).fit(
            module(model_dir, "simpo"), data(pairs_file, micro_batch_size=8)
        )


def test_a_datamodule_forgets_the_reference_of_another_policy(model_dir, pairs_file, tmp_path):
    dm, other = data(pairs_file, micro_batch_size=8), make_model_dir(tmp_path / "other", seed=1)
    for path in (model_dir, other):
        policy = PolicyConfig(path=str(path))
        lit = PreferenceLitModule(
            policy, build_loss("dpo"), reference="cached", reference_cache=str(tmp_path / "cache")
        )
        trainer().fit(lit, dm)
        batch = next(iter(dm.train_dataloader()))
        fresh = module(path, "dpo", dtype="float32")
        fresh.configure_model()
        assert torch.equal(batch.ref_logps, fresh(batch).detach())
