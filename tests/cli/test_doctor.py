"""The doctor: healthy configs pass, and each illness is found."""

import re

import pytest
import torch

from adadpo_lightning.cli import main
from adadpo_lightning.cli.commands.doctor import first_step
from adadpo_lightning.estimate import probe
from adadpo_lightning.estimate.probe import gradient_finding
from tests.support.cli import parsed
from tests.support.tiny import make_model_dir


@pytest.fixture(scope="module")
def options(model_dir, pairs_file):
    return [
        f"--model.policy.path={model_dir}",
        f"--data.train={pairs_file}",
        "--data.global_batch_size=8",
        "--data.micro_batch_size=2",
        "--data.max_length=40",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
    ]


def by_name(findings):
    return {finding.what: finding for finding in findings}


def test_versions_and_devices(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert f"torch: {torch.__version__}" in printed
    assert "cpu:" in printed
    assert main(["doctor", "--help"]) == 0
    assert "usage: adadpo-lightning doctor" in capsys.readouterr().out


def test_a_healthy_run(options, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", *options, "--model.loss=adadpo"]) == 0
    printed = capsys.readouterr().out
    assert "ok    loss at step 0: 0.6931, and 0.6931 where policy and reference are the same" in printed
    assert "ok    cached against live reference:" in printed
    assert "ok    gradient of the first step: norm" in printed
    assert "over 2 pairs" in printed
    assert re.search(r"info  micro-batch: 2 pairs, \d+ tokens: [\d.]+ s forward and backward", printed)
    assert "info  a step: about" in printed
    assert "5 steps" in printed
    assert "info  peak:" in printed
    assert "peak on a rank, GiB" in printed
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_other_losses_start_elsewhere(options):
    ipo = by_name(first_step(*parsed("doctor", *options, "--model.loss=IPO")))["loss at step 0"]
    assert (ipo.status, ipo.detail[:7]) == ("ok", "25.0000")  # (1 / (2 tau))^2, tau 0.1
    simpo = by_name(first_step(*parsed("doctor", *options, "--model.loss=SimPO")))
    assert simpo["loss at step 0"].status == "info"
    assert "cached against live reference" not in simpo


def test_a_reference_of_another_model_is_found(options, tmp_path, monkeypatch, capsys):
    """As when the reference is loaded from elsewhere, in another type, or with dropout on."""
    other = make_model_dir(tmp_path / "other", seed=1)
    from adadpo_lightning.models.loading import PolicyConfig, load_model
    from adadpo_lightning.training.module import PreferenceLitModule

    configure = PreferenceLitModule.configure_model

    def with_other_reference(self):
        configure(self)
        weights = load_model(PolicyConfig(path=str(other))).state_dict()
        self._reference.model.causal_lm.load_state_dict(weights)

    monkeypatch.setattr(PreferenceLitModule, "configure_model", with_other_reference)
    assert main(["doctor", *options, "--model.loss=dpo"]) == 2
    assert "doctor: failed: loss at step 0" in capsys.readouterr().err


def test_a_cache_that_differs_is_found(options, monkeypatch):
    read = probe.ReferenceCache.read
    monkeypatch.setattr(probe.ReferenceCache, "read", lambda self, numbers: read(self, numbers) + 0.5)
    found = by_name(first_step(*parsed("doctor", *options, "--model.loss=DPO")))
    assert found["cached against live reference"].status == "FAIL"
    assert found["loss at step 0"].status == "ok"


@pytest.mark.parametrize("norm", [0.0, float("nan"), float("inf")])
def test_a_gradient_that_cannot_train(norm):
    assert gradient_finding(norm, 2).status == "FAIL"


def test_a_wrong_config_is_an_ordinary_error(options, capsys):
    assert main(["doctor", *options, "--model.loss=adapdo"]) == 2
    assert "adadpo (AdaDPO)" in capsys.readouterr().err
