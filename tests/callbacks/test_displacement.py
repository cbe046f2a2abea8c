"""Drift since step 0: against log-probabilities taken before and after, kept over a resume, explained once."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer

from adadpo_lightning.callbacks import LikelihoodDisplacement, PreferenceMetrics, displacement
from adadpo_lightning.data.lists import ListOptions
from tests.support.tiny import make_rows, write_rows
from tests.training.test_module import QUIET, data, module


def fit(lit, pairs_file, callbacks, **options):
    options = {"max_epochs": 1, "enable_checkpointing": False, "log_every_n_steps": 1, **options}
    trainer = Trainer(**QUIET, callbacks=callbacks, **options)
    dm = data(pairs_file, micro_batch_size=4, val=str(pairs_file), eval_batch_size=5)
    trainer.fit(lit, datamodule=dm)
    return {k: float(v) for k, v in trainer.callback_metrics.items()}


def val_logps(lit, pairs_file):
    trainer = Trainer(**QUIET, enable_checkpointing=False, callbacks=[PreferenceMetrics()])
    dm = data(pairs_file, val=str(pairs_file))
    return trainer.validate(lit, datamodule=dm, verbose=False)[0]


@pytest.mark.parametrize("key", ["simpo", "dpo"])
def test_drift_is_the_difference_to_step_zero(model_dir, pairs_file, key):
    before = val_logps(module(model_dir, key), pairs_file)
    after = fit(module(model_dir, key), pairs_file, [PreferenceMetrics(), LikelihoodDisplacement()])
    for side in ("chosen", "rejected"):
        drift = after[f"val/logps/{side}"] - before[f"val/logps/{side}"]
        assert after[f"val/displacement/{side}"] == pytest.approx(drift, rel=1e-3, abs=1e-4)
        assert abs(drift) > 0.1
    assert 0.0 <= after["val/displacement/chosen_fell"] <= 1.0


def test_pairs_of_one_ranked_list_have_their_own_baselines(model_dir, tmp_path):
    rows = [
        {"prompt": f"why {noun}", "responses": ["yes", "the cat sat on the tree", "no no"], "scores": [3, 2, 1]}
        for noun in ("cat", "dog", "bird", "fish")
    ]
    path, lists = write_rows(tmp_path / "lists.jsonl", rows), ListOptions("all")
    results = []
    for callbacks in ([], [LikelihoodDisplacement()]):
        trainer = Trainer(
            **QUIET, max_epochs=1, enable_checkpointing=False, callbacks=[PreferenceMetrics(), *callbacks]
        )
        dm = data(path, val=str(path), lists=lists, global_batch_size=6, micro_batch_size=6)
        lit = module(model_dir, "simpo")
        results.append(trainer.validate(lit, datamodule=dm, verbose=False)[0])
        trainer.fit(lit, datamodule=dm)
    for side in ("chosen", "rejected"):
        drift = float(trainer.callback_metrics[f"val/logps/{side}"]) - results[0][f"val/logps/{side}"]
        assert float(trainer.callback_metrics[f"val/displacement/{side}"]) == pytest.approx(drift, rel=1e-3, abs=1e-4)


def test_the_baseline_survives_a_checkpoint(model_dir, pairs_file, tmp_path):
    first = LikelihoodDisplacement()
    lit = module(model_dir, "cpo")
    trainer = Trainer(**QUIET, max_steps=2, enable_checkpointing=False, callbacks=[first])
    trainer.fit(lit, datamodule=data(pairs_file, micro_batch_size=8, val=str(pairs_file)))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    second = LikelihoodDisplacement()
    trainer = Trainer(**QUIET, max_steps=3, enable_checkpointing=False, callbacks=[second])
    dm = data(pairs_file, micro_batch_size=8, val=str(pairs_file))
    trainer.fit(module(model_dir, "cpo"), datamodule=dm, ckpt_path=tmp_path / "a.ckpt")
    assert second._initial == first._initial
    assert len(first._initial["val"]) == 37


@pytest.mark.parametrize("changed", [True, False])
def test_other_validation_pairs_have_no_baseline(model_dir, pairs_file, tmp_path, changed, caplog):
    """Their rows have the numbers of those that were scored: the drift would be that between two different pairs."""
    first, second = LikelihoodDisplacement(), LikelihoodDisplacement()
    fit(module(model_dir, "simpo"), pairs_file, [PreferenceMetrics(), first])
    state = first.state_dict()
    old_state = {name: value for name, value in state.items() if name != "scored"}  # of an earlier version
    second.load_state_dict(state if changed else old_state)
    pairs = write_rows(tmp_path / "other.jsonl", make_rows(37, seed=5)) if changed else pairs_file
    found = fit(module(model_dir, "simpo"), pairs, [PreferenceMetrics(), second])
    assert ("val/displacement/chosen" in found) != changed
    assert ("val: no displacement is logged" in caplog.text) == changed


def test_a_policy_in_training_is_no_baseline(model_dir, pairs_file, tmp_path, caplog):
    """A resume without a baseline, as after one with other validation pairs, must not take the policy of then."""
    lit = module(model_dir, "simpo")
    trainer = Trainer(**QUIET, max_steps=2, enable_checkpointing=False, callbacks=[LikelihoodDisplacement()])
    trainer.fit(lit, datamodule=data(pairs_file, micro_batch_size=8, val=str(pairs_file)))
    callback = next(c for c in trainer.callbacks if isinstance(c, LikelihoodDisplacement))
    callback._initial = {}  # what such a resume leaves; the fingerprint stays
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    later = LikelihoodDisplacement()
    trainer = Trainer(**QUIET, max_steps=3, enable_checkpointing=False, callbacks=[later])
    dm = data(pairs_file, micro_batch_size=8, val=str(pairs_file))
    trainer.fit(module(model_dir, "simpo"), datamodule=dm, ckpt_path=tmp_path / "a.ckpt")
    assert later._initial == {}
    assert "val: no displacement is logged" in caplog.text


def test_it_changes_no_bit_of_training(model_dir, pairs_file):
    results = []
    for callbacks in ([], [LikelihoodDisplacement()]):
        lit = module(model_dir, "orpo", dtype="float32")
        fit(lit, pairs_file, callbacks)
        results.append([p.detach().clone() for p in lit.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def look(callback, monkeypatch, points, key="dpo"):
    from adadpo_lightning.losses import build_loss

    said = []
    monkeypatch.setattr(displacement.log, "info", said.append)
    for drift, margin in points:
        metrics = {"train/displacement/chosen": drift, "train/rewards/margins": margin}
        callback._look(SimpleNamespace(callback_metrics=metrics), SimpleNamespace(loss=build_loss(key)), "train")
    return said


FALLING = [(-0.5, 0.1), (-1.5, 0.2), (-3.0, 0.4), (-4.0, 0.5), (-5.0, 0.9)]


def test_the_hint_is_given_once_and_names_what_helps(monkeypatch):
    said = look(LikelihoodDisplacement(), monkeypatch, FALLING)
    assert len(said) == 1
    assert "3.0 nats less likely" in said[0]
    for help_ in ("adaptive twin", "NLL term", "lower learning rate", "hint: false"):
        assert help_ in said[0]
    assert "adaptive twin" not in look(LikelihoodDisplacement(), monkeypatch, FALLING, "adadpo")[0]


@pytest.mark.parametrize(
    ("points", "options"),
    [
        (FALLING, {"hint": False}),
        (FALLING, {"hint_nats": 100.0}),
        ([(-3.0, 0.1), (-2.0, 0.2), (-1.5, 0.4)], {}),  # recovering
        ([(-1.0, 0.4), (-2.0, 0.3), (-3.0, 0.2)], {}),  # the margin falls too
    ],
)
def test_no_hint(monkeypatch, points, options):
    assert look(LikelihoodDisplacement(**options), monkeypatch, points) == []
