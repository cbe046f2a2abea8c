"""The last checkpoint is the last step's, and training goes on from it as if it had not stopped."""

import pytest
import torch
from lightning.pytorch import Trainer

from adadpo_lightning.callbacks import RunCheckpoint
from adadpo_lightning.callbacks.checkpoint import relocated
from adadpo_lightning.checkpoints.parts import check_parts
from adadpo_lightning.errors import UserError
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


def test_the_best_checkpoints_of_a_moved_run_stay_known(tmp_path):
    before, now = tmp_path / "before", tmp_path / "now"
    now.mkdir()
    (now / "step3.ckpt").touch()
    state = {
        "dirpath": str(before),
        "best_k_models": {str(before / "step3.ckpt"): 0.5},
        "best_model_path": str(before / "step3.ckpt"),
        "kth_best_model_path": "",
        "last_model_path": "",
    }
    moved = relocated(state, before, now)
    assert moved["best_k_models"] == {str(now / "step3.ckpt"): 0.5}
    assert (moved["best_model_path"], moved["dirpath"]) == (str(now / "step3.ckpt"), str(now))
    (now / "step3.ckpt").unlink()
    assert relocated(state, before, now) == state


@pytest.mark.parametrize("filename", ["../../x", "/somewhere/x", "a/../../x"])
def test_a_file_name_stays_inside_the_directory(model_dir, pairs_file, tmp_path, filename):
    trainer = Trainer(**{**QUIET, "callbacks": [RunCheckpoint(tmp_path, filename=filename)]})
    with pytest.raises(UserError, match=r"checkpoint.filename: expected a name inside the checkpoint directory"):
        trainer.fit(module(model_dir, "dpo", dtype="float32"), datamodule=data(pairs_file))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c: [c.pop("optimizer_states"), c.pop("lr_schedulers")], "holds weights only"),
        (lambda c: c.pop("loops"), "loops is missing"),
        (lambda c: c.update(loops={"fit_loop": 3}), "loops.fit_loop is missing"),
        (lambda c: c.update(global_step="many"), "global_step is a str"),
    ],
)
def test_a_checkpoint_with_missing_or_odd_parts_is_named(change, problem):
    whole = {"state_dict": {}, "global_step": 1, "epoch": 0, "pytorch-lightning_version": "2.6", "callbacks": {}}
    whole |= {"loops": {"fit_loop": {}}, "lr_schedulers": [{}], "optimizer_states": [{}]}
    check_parts(whole, resume=True)
    change(whole)
    with pytest.raises(UserError, match=problem):
        check_parts(whole, resume=True)
