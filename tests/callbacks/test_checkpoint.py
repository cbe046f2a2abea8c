"""The last checkpoint is the last step's, and training goes on from it as if it had not stopped."""

import pytest
import torch
from lightning.pytorch import Trainer

from adadpo_lightning.callbacks import RunCheckpoint
from tests.training.test_module import QUIET, data, module


def fit(model_dir, pairs_file, folder, **options):
    saver = RunCheckpoint(folder, save_last=True, save_top_k=1, filename="step{step}")
    lit = module(model_dir, "adadpo", dtype="float32")
    ckpt = options.pop("ckpt_path", None)
    trainer = Trainer(**{**QUIET, "callbacks": [saver], "val_check_interval": 0.5, **options})
    dm = data(pairs_file, micro_batch_size=4, val=str(pairs_file))
    trainer.fit(lit, datamodule=dm, ckpt_path=ckpt)
    return {name: p.detach().clone() for name, p in lit.named_parameters()}


@pytest.mark.parametrize("bound", [{"max_epochs": 1}, {"max_epochs": 2, "max_steps": 7}])
def test_the_last_step_is_saved(model_dir, pairs_file, tmp_path, bound):
    weights = fit(model_dir, pairs_file, tmp_path, **bound)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == bound.get("max_steps", 5)
    for name, value in weights.items():
        assert torch.equal(saved["state_dict"][name], value)


def test_going_on_from_the_end_equals_going_through(model_dir, pairs_file, tmp_path):
    whole = fit(model_dir, pairs_file, tmp_path / "whole", max_epochs=2)
    fit(model_dir, pairs_file, tmp_path / "first", max_epochs=1)
    second = fit(model_dir, pairs_file, tmp_path / "second", max_epochs=2, ckpt_path=tmp_path / "first" / "last.ckpt")
    for name, value in whole.items():
        assert torch.equal(second[name], value)
