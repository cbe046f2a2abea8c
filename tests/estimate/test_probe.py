"""The probe of a run: its micro-batches, what it extrapolates, and what makes it fail."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.data.plan import StepPlan
from adadpo_lightning.estimate.extrapolate import Line, duration, fit_line, sizes_of
from adadpo_lightning.estimate.probe import Probe
from adadpo_lightning.losses import build_loss
from adadpo_lightning.models.loading import PolicyConfig
from adadpo_lightning.training.module import PreferenceLitModule
from tests.support.tiny import make_rows, write_rows

LENGTHS = np.array([50, 10, 40, 20, 30, 60])


def plan(**options):
    return StepPlan(LENGTHS, LENGTHS // 2, **{"global_batch_size": 4, **options})


def test_micro_batches_are_as_large_as_those_of_the_run():
    found = sizes_of(plan(micro_batch_size=2))
    assert (found.shortest, found.middle, found.longest) == ((1, 3), (4, 2), (5, 0))
    found = sizes_of(plan(max_tokens=70))
    assert (found.shortest, found.longest) == ((1, 3, 4), (5,))  # 10 + 20 + 30 tokens fit, 60 + 50 do not


def test_an_epoch_adds_up():
    line = fit_line([30, 110], [1.0, 1.8])
    assert (line.fixed, line.per_token) == pytest.approx((0.7, 0.01))
    found = duration(plan(micro_batch_size=2), line, update=0.5)
    # 2 steps of 2 micro-batches: 4 x 0.7 s, 210 tokens, 2 updates.
    assert found.epoch == pytest.approx(4 * 0.7 + 210 * 0.01 + 2 * 0.5)
    assert found.step == pytest.approx(found.epoch / 2)


@pytest.mark.parametrize(
    ("tokens", "costs"), [([10, 100], [2.0, 1.0]), ([10, 100], [0.1, 9.0]), ([10, 10], [1.0, 1.0])]
)
def test_a_line_is_never_negative(tokens, costs):
    assert fit_line(tokens, costs) == Line(0.0, costs[-1] / tokens[-1])


def probed(tmp_path, model_dir, budget=25.0, mode="auto", **options):
    pairs = write_rows(tmp_path / "pairs.jsonl", make_rows(12))
    said = []
    probe = Probe(tmp_path / "cache", said.append, budget)
    module = PreferenceLitModule(PolicyConfig(str(model_dir)), build_loss("dpo"), reference=mode, **options)
    data = PreferenceDataModule(str(pairs), global_batch_size=8, micro_batch_size=2, max_length=40)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", devices=1, max_epochs=1, callbacks=[probe], **quiet)
    trainer.fit(module, data)
    assert trainer.global_step == 0
    assert said == probe.findings
    return {finding.what: finding for finding in said}


def test_nothing_is_trained_and_no_cache_of_the_whole_data_is_filled(tmp_path, model_dir):
    found = probed(tmp_path, model_dir, mode="cached", reference_cache=str(tmp_path / "caches"))
    assert found["loss at step 0"].status == "ok"
    assert not (tmp_path / "caches").exists()


def test_long_micro_batches_are_extrapolated_when_time_is_short(tmp_path, model_dir):
    assert "extrapolated" not in probed(tmp_path, model_dir)["peak"].detail
    assert "the longest have" in probed(tmp_path, model_dir, budget=0.0)["peak"].detail


def test_rewards_at_step_0_that_are_not_0_fail(tmp_path, model_dir, monkeypatch):
    """A loss at the start that is right by chance, for chosen and rejected are off alike."""
    configure = PreferenceLitModule.configure_model

    def with_another_reference(self):
        configure(self)
        reference = self._reference
        monkeypatch.setattr(type(reference), "__call__", lambda me, batch: me.model(batch) + 0.01, raising=False)

    monkeypatch.setattr(PreferenceLitModule, "configure_model", with_another_reference)
    found = probed(tmp_path, model_dir)
    assert found["loss at step 0"].status == "FAIL"


def test_a_gradient_that_is_not_finite_fails(tmp_path, model_dir, monkeypatch):
    step = PreferenceLitModule.step

    def broken(self, batch):
        share, output = step(self, batch)
        return share * torch.tensor(float("nan")), output

    monkeypatch.setattr(PreferenceLitModule, "step", broken)
    assert probed(tmp_path, model_dir)["gradient of the first step"].status == "FAIL"
