"""Cached reference log-probabilities: the live ones' bits, found again, computed once, never a stranger's."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import build_loss
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig
from adadpo_lightning.reference import provider as reference_run
from adadpo_lightning.reference.cache import ReferenceCache
from adadpo_lightning.training.module import PreferenceLitModule
from adadpo_lightning.training.optim import OptimizerConfig, SchedulerConfig
from tests.support.tiny import make_model_dir, make_rows, write_rows
from tests.training.test_module import QUIET


def train(model_dir, pairs_file, cache, reference="cached", dtype="float32", lora=None, layout="auto", **options):
    """An epoch; returns the module, its rewards of the first step and its weights after the last."""
    module = PreferenceLitModule(
        PolicyConfig(path=str(model_dir), dtype=dtype, lora=lora, layout=layout),
        build_loss("adadpo"),
        OptimizerConfig(lr=1e-2),
        SchedulerConfig(name="constant", warmup_ratio=0.0),
        reference=reference,
        reference_cache=str(cache),
    )
    first = []
    step = module.step

    def watched(batch):
        share, output = step(batch)
        first.append(output.loss.chosen_rewards)
        return share, output

    module.step = watched
    data = PreferenceDataModule(train=str(pairs_file), global_batch_size=8, micro_batch_size=4, max_length=40)
    seed_everything(0)
    trainer = Trainer(**QUIET, **{"max_epochs": 1, "enable_checkpointing": False, **options})
    trainer.fit(module, datamodule=data)
    return module, first[0], {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("lora", [None, LoraOptions(r=2)], ids=["full", "lora"])
def test_cached_equals_live_to_the_last_bit(model_dir, pairs_file, tmp_path, lora):
    _, _, live = train(model_dir, pairs_file, tmp_path, reference="auto", lora=lora)
    module, first, cached = train(model_dir, pairs_file, tmp_path, lora=lora)
    assert torch.equal(first, torch.zeros_like(first))
    assert module._reference is None  # no second model is left
    for name, value in live.items():
        assert torch.equal(cached[name], value), name


def test_bfloat16_rewards_start_at_zero(model_dir, pairs_file, tmp_path):
    _, first, _ = train(model_dir, pairs_file, tmp_path, dtype="bfloat16", max_steps=1)
    assert torch.equal(first, torch.zeros_like(first))


@pytest.fixture
def computed(monkeypatch):
    """How many pairs were computed, run by run."""
    counts = []
    fill = reference_run.fill

    def counting(cache, *args):
        counts.append(len(cache.missing()))
        fill(cache, *args)

    monkeypatch.setattr(reference_run, "fill", counting)
    return counts


def test_a_sweep_pays_once(model_dir, pairs_file, tmp_path, computed):
    for _ in range(3):
        train(model_dir, pairs_file, tmp_path, max_steps=1)
    assert computed == [37]


def test_other_weights_or_pairs_have_another_cache(model_dir, pairs_file, tmp_path, computed):
    train(model_dir, pairs_file, tmp_path, max_steps=1)
    other_model = make_model_dir(tmp_path / "model", seed=1)
    train(other_model, pairs_file, tmp_path, max_steps=1)
    rows = make_rows(37)
    rows[5]["rejected"] += " cat"
    train(model_dir, write_rows(tmp_path / "other.jsonl", rows), tmp_path, max_steps=1)
    assert computed == [37, 37, 37]


@pytest.mark.parametrize("key", ["rope_theta", "rms_norm_eps"])
def test_another_config_over_the_same_weights_has_another_cache(model_dir, pairs_file, tmp_path, computed, key):
    train(model_dir, pairs_file, tmp_path, max_steps=1)
    other = shutil.copytree(model_dir, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (config if key in config else config["rope_parameters"])[key] *= 100
    (other / "config.json").write_text(json.dumps(config))
    _, first, _ = train(other, pairs_file, tmp_path, max_steps=1)
    assert computed == [37, 37]
    assert torch.equal(first, torch.zeros_like(first))


def test_another_attention_has_another_cache_and_a_moved_model_the_same(model_dir, pairs_file, tmp_path, computed):
    train(model_dir, pairs_file, tmp_path, max_steps=1)
    train(shutil.copytree(model_dir, tmp_path / "moved"), pairs_file, tmp_path, max_steps=1)
    train(model_dir, pairs_file, tmp_path, max_steps=1, layout="padded")
    assert computed == [37, 37]


def test_a_killed_computation_goes_on_where_it_was(model_dir, pairs_file, tmp_path, computed, monkeypatch):
    write, calls = ReferenceCache.write, []

    def dying(self, numbers, logps):
        calls.append(numbers)
        if len(calls) == 4:
            raise KeyboardInterrupt
        write(self, numbers, logps)

    monkeypatch.setattr(ReferenceCache, "write", dying)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(model_dir, pairs_file, tmp_path)
    monkeypatch.setattr(ReferenceCache, "write", write)
    _, _, resumed = train(model_dir, pairs_file, tmp_path)
    assert computed == [37, 37 - 3 * 4]
    _, _, live = train(model_dir, pairs_file, tmp_path / "live", reference="frozen")
    for name, value in live.items():
        assert torch.equal(resumed[name], value), name


def test_a_damaged_cache_is_recognised(model_dir, pairs_file, tmp_path):
    train(model_dir, pairs_file, tmp_path, max_steps=1)
    (path,) = tmp_path.glob("*/values")
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged: its checksum does not match; delete that folder"):
        train(model_dir, pairs_file, tmp_path, max_steps=1)


def test_numbers_come_back_in_the_order_of_a_batch(tmp_path):
    answers, lengths = np.array([[0, 1], [2, 3], [4, 5]]), np.array([[2, 1], [1, 2], [3, 0]])
    cache = ReferenceCache(tmp_path / "c", answers, lengths, torch.float64)
    cache.create()
    assert cache.missing().tolist() == [0, 1, 2]
    # Pairs 2 and 0: chosen answers (3 and 2 tokens), then the rejected ones (0 and 1).
    cache.write([2, 0], torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64))
    assert cache.missing().tolist() == [1]
    assert cache.read([0]).tolist() == [4.0, 5.0, 6.0]
    assert cache.read([0, 2]).tolist() == [4.0, 5.0, 1.0, 2.0, 3.0, 6.0]
    assert not cache.is_complete()
    cache.finish()
    assert cache.is_complete()
    assert json.loads((tmp_path / "c/complete.json").read_text()).keys() == {"checksum"}


def test_an_answer_of_several_pairs_is_stored_once(tmp_path):
    answers, lengths = np.array([[0, 1], [0, 2], [2, 1]]), np.array([[2, 1], [2, 3], [3, 1]])
    cache = ReferenceCache(tmp_path / "c", answers, lengths, torch.float32)
    cache.create()
    assert (tmp_path / "c/values").stat().st_size == (2 + 1 + 3) * 4
    # As a batch lists them: the chosen answers 0 and 2, then 1; answer 2 is not repeated.
    cache.write([0, 2], torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    assert cache.missing().tolist() == []
    assert cache.read([1]).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert cache.read([2, 0]).tolist() == [3.0, 4.0, 5.0, 1.0, 2.0, 6.0]


def test_a_full_disk_is_said_before_anything_is_computed(tmp_path, monkeypatch):
    """A sparse file would end the process with a bus error once its pages are written."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    answers, lengths = np.array([[0, 1]]), np.array([[2, 3]])
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"reference_cache.*No space left"):
        ReferenceCache(tmp_path / "c", answers, lengths, torch.float32).create()
    assert not list((tmp_path / "c").iterdir())
    monkeypatch.undo()
    ReferenceCache(tmp_path / "c", answers, lengths, torch.float32).create()
    assert (tmp_path / "c" / "values").stat().st_blocks > 0


@pytest.mark.parametrize("content", ["", '{"checksum": "', "[]", "null", "{}", "[" * 200_000])
def test_an_odd_mark_of_completeness_is_named(tmp_path, content):
    cache = ReferenceCache(tmp_path / "c", np.array([[0, 1]]), np.array([[2, 3]]), torch.float32)
    cache.create()
    (tmp_path / "c/complete.json").write_text(content)
    with pytest.raises(UserError, match=r"model.reference_cache: .*complete.json cannot be read: .*; delete .*/c$"):
        cache.is_complete()
