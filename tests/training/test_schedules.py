"""Scheduled options of the loss in a real Trainer: which step's value each micro-batch, validation and log line has."""

import csv
import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import AdaDPO, Schedule
from adadpo_lightning.training.module import PreferenceLitModule
from adadpo_lightning.training.position import total_steps
from tests.support.runs import PAIRS, arguments, run
from tests.support.tiny import make_rows, write_rows
from tests.training.test_module import data, module, train, weights

EPOCHS, STEPS = 2, 6  # `pairs` makes 3 optimizer steps an epoch


def beta_at(step):
    return 0.3 + (0.05 - 0.3) * (1 - math.cos(math.pi * step / STEPS)) / 2


def ceiling_at(step):
    return 1.0 + 2.0 * step / STEPS


SCHEDULED = AdaDPO(beta=Schedule(0.3, 0.05, "cosine"), ceiling=Schedule(1.0, 3.0))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", make_rows(PAIRS))


class ByHand(Callback):
    """Sets the loss of each step from the formulas above."""

    def on_train_batch_start(self, trainer, lit, *args):
        lit.loss = AdaDPO(beta=beta_at(trainer.global_step), ceiling=ceiling_at(trainer.global_step))


def test_every_micro_batch_has_the_numbers_of_its_optimizer_step(model_dir, pairs):
    found = []
    for loss, callbacks in ((SCHEDULED, []), (AdaDPO(), [ByHand()])):
        lit = module(model_dir, loss)
        trainer = train(lit, data(pairs, micro_batch_size=2), max_epochs=EPOCHS, callbacks=callbacks)
        assert trainer.global_step == STEPS
        found.append(weights(lit))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-9, atol=1e-12)


class Validated(Callback):
    def __init__(self):
        self.seen = []

    def on_validation_batch_end(self, trainer, lit, outputs, *args):
        self.seen.append((trainer.global_step, outputs["step"].loss_options))

    def on_test_batch_end(self, trainer, lit, outputs, *args):
        self.on_validation_batch_end(trainer, lit, outputs)


def test_validation_has_the_numbers_of_the_current_step(model_dir, pairs):
    seen = Validated()
    lit, dm = module(model_dir, SCHEDULED), data(pairs, val=str(pairs))
    train(lit, dm, max_epochs=EPOCHS, val_check_interval=1.0, num_sanity_val_steps=1, callbacks=[seen])
    assert {step for step, _ in seen.seen} == {0, 3, 6}
    for step, options in seen.seen:
        assert options == pytest.approx({"beta": beta_at(step), "ceiling": ceiling_at(step)})


@pytest.fixture(scope="module")
def finished(model_dir, pairs, tmp_path_factory):
    """A run of the command line with every step logged."""
    out = tmp_path_factory.mktemp("run")
    options = [
        "--model.loss.beta={from: 0.3, to: 0.05, schedule: cosine}",
        "--model.loss.ceiling={from: 1.0, to: 3.0, schedule: linear}",
        "--trainer.log_every_n_steps=1",
        "--checkpoint.every_n_train_steps=2",
        "--checkpoint.save_top_k=-1",
        "--model.scheduler.name=constant",
        "--model.scheduler.warmup_ratio=0",
    ]
    args = arguments(model_dir, pairs, out, *options)
    assert run(args) == 0
    return out, args


def test_the_log_has_the_numbers_of_each_step(finished):
    rows = [row for file in finished[0].glob("csv/*/metrics.csv") for row in csv.DictReader(file.open())]
    logged = {int(row["step"]): row for row in rows if row.get("train/loss_options/beta")}
    assert len(logged) == STEPS
    for done, row in enumerate(logged[step] for step in sorted(logged)):
        assert float(row["train/loss_options/beta"]) == pytest.approx(beta_at(done), rel=1e-6)
        assert float(row["train/loss_options/ceiling"]) == pytest.approx(ceiling_at(done), rel=1e-6)


def checkpoint_of_step_4(out):
    (found,) = (path for path in (out / "checkpoints").glob("step*.ckpt") if "4" in path.stem)
    return found


def test_a_checkpoint_knows_the_step_of_its_loss(finished, capsys):
    path = checkpoint_of_step_4(finished[0])
    lit = PreferenceLitModule.load_from_checkpoint(path)
    assert lit.current_loss().beta == pytest.approx(beta_at(4))
    assert "first values" not in capsys.readouterr().err
    fresh = PreferenceLitModule(lit.policy_config, lit.loss)
    assert fresh.current_loss().beta == 0.3
    assert "first values" in capsys.readouterr().err


def test_validate_test_and_predict_have_the_numbers_of_the_checkpoint(finished, pairs, tmp_path):
    path = checkpoint_of_step_4(finished[0])
    lit = PreferenceLitModule.load_from_checkpoint(path)
    for name in ("validate", "test"):
        seen = Validated()
        trainer = Trainer(accelerator="cpu", logger=False, callbacks=[seen], default_root_dir=tmp_path)
        getattr(trainer, name)(lit, data(pairs, **{name.removesuffix("idate"): str(pairs)}), ckpt_path=path)
        assert seen.seen
        for _, options in seen.seen:
            assert options == pytest.approx({"beta": beta_at(4), "ceiling": ceiling_at(4)})
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    scheduled = trainer.predict(lit, data(pairs, predict=str(pairs)), ckpt_path=path)
    lit.loss = AdaDPO(beta=1.0)
    constant = trainer.predict(lit, data(pairs, predict=str(pairs)))
    for ours, one in zip(scheduled, constant, strict=True):
        torch.testing.assert_close(ours["reward_rejected"], beta_at(4) * one["reward_rejected"])


@pytest.mark.parametrize(
    "change",
    ["--model.loss.beta={from: 0.3, to: 0.06, schedule: cosine}", "--model.loss.beta=0.3", "--trainer.max_epochs=3"],
)
def test_a_resume_sees_another_schedule_and_another_length(finished, tmp_path, capsys, change):
    out, args = finished
    again = [*args, f"--output_dir={tmp_path}", change, f"--ckpt_path={checkpoint_of_step_4(out)}"]
    assert run(again) == 2
    name = change.partition("=")[0].removeprefix("--").rpartition(".")[2]
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(("steps", "field"), [(math.inf, "trainer.max_epochs"), (-1, "trainer.max_steps")])
def test_a_run_of_unknown_length_is_refused(steps, field):
    with pytest.raises(UserError, match=field):
        total_steps(SimpleNamespace(estimated_stepping_batches=steps))
