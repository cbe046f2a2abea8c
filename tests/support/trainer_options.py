"""For options of Lightning's Trainer: that a run does with each what ``docs/trainer.md`` says."""

import csv
import math
import struct
from datetime import timedelta

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Timer, timer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adadpo_lightning.callbacks import RunCheckpoint
from adadpo_lightning.runs.csv_logger import AppendingCSVLogger
from tests.support.lab import EPOCHS, MICRO_BATCHES, STEPS, assert_equal


def accumulation(here):
    here.same(accumulate_grad_batches=2)
    here.refused(r"trainer.accumulate_grad_batches: 3 contradicts global_batch_size 4", accumulate_grad_batches=3)


def barebones(here):
    unset = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    run = here.same(barebones=True, **dict.fromkeys((*unset, "num_sanity_val_steps", "log_every_n_steps")))
    assert not run.trainer.callback_metrics


def every_other_epoch(here):
    run = here.fit(check_val_every_n_epoch=2, max_epochs=4, data=here.lab.held_out)
    assert run.seen.validations == [2 * MICRO_BATCHES, 4 * MICRO_BATCHES]
    assert_equal(run.seen.weights[EPOCHS * STEPS - 1], here.lab.plain.weights)


def deterministic(here):
    try:
        here.same(deterministic=True)
    finally:
        torch.use_deterministic_algorithms(False)


def detect_anomaly(here):
    here.same(detect_anomaly=True)


def fast_dev_run(here):
    save = {"callbacks": [RunCheckpoint(every_n_train_steps=1, save_last=True)], "enable_checkpointing": True}
    run = here.fit(fast_dev_run=True, data=here.lab.held_out, **save)
    assert len(run.seen.rows) == len(run.seen.validated[0]) == run.trainer.global_step == 1
    assert not list(here.folder.iterdir())


def clipping_by_norm(here):
    check_clipping(here, "norm", lambda g, total: g * min(1.0, 0.5 / (total + 1e-6)))


def clipping_by_value(here):
    check_clipping(here, "value", lambda g, total: g.clamp(-0.5, 0.5))


class Gradients(Callback):
    """The gradient of each step before clipping, and what the optimizer gets."""

    def __init__(self):
        self.before, self.applied = [], []

    def on_train_start(self, trainer, pl_module):
        gradients = [p for p in pl_module.parameters() if p.requires_grad]
        trainer.optimizers[0].register_step_post_hook(
            lambda *_: self.applied.append([p.grad.clone() for p in gradients])
        )

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before.append([p.grad.clone() for p in pl_module.parameters() if p.requires_grad])


def check_clipping(here, algorithm, clipped):
    seen = Gradients()
    here.fit(gradient_clip_val=0.5, gradient_clip_algorithm=algorithm, callbacks=[seen])
    assert len(seen.before) == len(seen.applied) == EPOCHS * STEPS
    norms = [torch.cat([g.flatten() for g in step]).norm().item() for step in seen.before]
    assert max(norms) > 0.5
    for before, applied, norm in zip(seen.before, seen.applied, norms, strict=True):
        for one, other in zip(before, applied, strict=True):
            torch.testing.assert_close(other, clipped(one, norm), rtol=1e-5, atol=1e-7)


def inference_mode(here):
    run = here.same(inference_mode=False, data=here.lab.held_out)
    for name in ("val/loss", "val/rewards/margins", "val/grad_balance/ratio"):
        assert run.trainer.callback_metrics[name] == here.lab.plain.trainer.callback_metrics[name]


def limit_train_batches(here):
    run = here.fit(limit_train_batches=4, max_epochs=1)
    assert_equal(run.weights, here.lab.plain.seen.weights[1])
    here.refused(r"trainer.limit_train_batches: ends an epoch after 3 .* of 2", limit_train_batches=3)


def limit_val_batches(here):
    run = here.fit(limit_val_batches=2, max_epochs=1, data=here.lab.held_out)
    (whole, *_), (limited,) = here.lab.plain.seen.validated, run.seen.validated
    assert (len(limited), len(whole)) == (2, 4)
    expected = torch.cat([step.loss.per_pair for step in whole[:2]]).mean().item()
    assert float(run.trainer.callback_metrics["val/loss"]) == pytest.approx(expected, rel=1e-6)


def limit_test_and_predict(here):
    test = here.lab.pairs(7, seed=1)
    trainer = here.lab.trainer(limit_test_batches=2, limit_predict_batches=1, default_root_dir=here.folder)
    (found,) = trainer.test(here.lab.module(), datamodule=here.lab.data(test=test), verbose=False)
    assert found["test/loss"] == pytest.approx(math.log(2), rel=1e-6)  # adadpo's at step 0, where all rewards are 0
    (rows,) = (batch["row_id"].tolist() for batch in trainer.predict(here.lab.module(), here.lab.data(test=test)))
    assert rows == [0, 1]


def max_time(here, monkeypatch):
    """Out of time in the middle of the second step, by a clock that counts micro-batches."""
    stopped_early(here, monkeypatch, max_time=timedelta(seconds=3))


def timer_callback(here, monkeypatch):
    stopped_early(here, monkeypatch, callbacks=[Timer(timedelta(seconds=3))])


def stopped_early(here, monkeypatch, callbacks=(), **options):
    clock = Clock()
    monkeypatch.setattr(timer.time, "monotonic", clock.read)
    save = {"enable_checkpointing": True, "callbacks": [clock, *callbacks, RunCheckpoint(here.folder, save_last=True)]}
    first = here.fit(**save, **options)
    monkeypatch.undo()
    assert (len(first.seen.rows), first.trainer.global_step) == (3, 1)
    second = here.same(enable_checkpointing=True, ckpt_path=here.folder / "last.ckpt")
    assert second.seen.rows == here.lab.plain.seen.rows[2:]  # the step that was cut is computed again


class Clock(Callback):
    """A second for each micro-batch."""

    def __init__(self):
        self.seconds = 0

    def read(self):
        return float(self.seconds)

    def on_train_batch_start(self, *args):
        self.seconds += 1


def sanity_steps(here):
    for steps in (2, -1):
        run = here.same(num_sanity_val_steps=steps, data=here.lab.held_out)
        assert run.seen.validations[0] == 0
        assert len(run.seen.validated[0]) == (2 if steps == 2 else 4)
        assert "val/loss" not in run.seen.known[0]


def overfit_batches(here):
    run = here.fit(overfit_batches=2, max_epochs=3)
    assert run.seen.rows == 3 * here.lab.plain.seen.rows[:2]
    assert_equal(run.seen.weights[0], here.lab.plain.seen.weights[0])
    assert run.trainer.global_step == 3


def profiler(kind, word):
    """The check of a profiler: its report in a file has a word."""

    def check_profiler(here):
        here.same(profiler=kind(dirpath=str(here.folder), filename="profile"))
        assert any(word in path.read_text() for path in here.folder.iterdir())

    return check_profiler


def reload_dataloaders(here):
    here.same(reload_dataloaders_every_n_epochs=1)
    cached = here.fit(reload_dataloaders_every_n_epochs=1, module={"reference": "cached"})
    assert cached.seen.rows == here.lab.plain.seen.rows
    assert_equal(cached.weights, here.lab.plain.weights, rtol=1e-5, atol=1e-6)


def distributed_sampler(here):
    assert here.same(use_distributed_sampler=False).seen.rows == here.lab.plain.seen.rows


INTERVALS = (
    ({"val_check_interval": 2}, [2, 4, 7, 9]),
    ({"val_check_interval": 3, "check_val_every_n_epoch": None}, [3, 6, 9]),
    ({"val_check_interval": 0.5}, [2, 4, 7, 9]),
    ({"val_check_interval": timedelta(days=1)}, []),
)


def validation_interval(here, cases=INTERVALS[:2]):
    for options, expected in cases:
        assert here.same(**options, data=here.lab.held_out).seen.validations == expected


def several_loggers(here):
    run = here.same(
        log_every_n_steps=1,
        data=here.lab.held_out,
        logger=[
            TensorBoardLogger(here.folder, name="tb", version=""),
            CSVLogger(here.folder, name="csv", version=""),
            AppendingCSVLogger(str(here.folder), name="ours"),
        ],
    )
    ours = table(here.folder / "ours/version_0/metrics.csv")
    assert len({step for name, step in ours if name == "train/loss"}) == EPOCHS * STEPS
    assert ours["val/loss", EPOCHS * STEPS - 1] == pytest.approx(float(run.trainer.callback_metrics["val/loss"]))
    assert table(here.folder / "csv/metrics.csv") == ours
    board = EventAccumulator(str(here.folder / "tb"), size_guidance={"scalars": 0}).Reload()
    found = {(name, e.step): e.value for name in board.Tags()["scalars"] for e in board.Scalars(name)}
    assert {key: found[key] for key in ours} == pytest.approx(ours, rel=1e-6, nan_ok=True)


def table(path):
    """From metric and step to value."""
    with path.open(newline="") as lines:
        return {
            (name, int(row["step"])): float(value)
            for row in csv.DictReader(lines)
            for name, value in row.items()
            if value and name != "step"
        }


def wandb_offline(here):
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger
    from wandb.proto import wandb_internal_pb2

    logger = WandbLogger(project="adadpo", save_dir=here.folder, offline=True)
    ours = AppendingCSVLogger(str(here.folder), name="ours")
    here.same(logger=[logger, ours], log_every_n_steps=1, data=here.lab.held_out)
    wandb.finish()
    (file,) = here.folder.glob("wandb/offline-run-*/run-*.wandb")
    found = {}
    for content in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        items = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
        step = items.get("trainer/global_step")
        found |= {(name, int(step)): float(v) for name, v in items.items() if step and not name.startswith("_")}
    check_logged(here, found)


def records(content, header=7, block=1 << 15):
    """The records of a W&B file, which is a LevelDB log: parts with checksum, length and kind, none across a block."""
    at, record = header, b""
    while at + 7 <= len(content):
        if (left := block - at % block) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def mlflow_files(here, monkeypatch):
    pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 would rather have a database
    logger = MLFlowLogger("adadpo", tracking_uri=f"file:{here.folder / 'mlruns'}")
    ours = AppendingCSVLogger(str(here.folder), name="ours")
    here.same(logger=[logger, ours], log_every_n_steps=1, data=here.lab.held_out)
    client, found = logger.experiment, {}
    for name in client.get_run(logger.run_id).data.metrics:
        found |= {(name, m.step): m.value for m in client.get_metric_history(logger.run_id, name)}
    check_logged(here, found)


def check_logged(here, found):
    ours = table(here.folder / "ours/version_0/metrics.csv")
    ours = {key: value for key, value in ours.items() if not math.isnan(value)}
    assert len(ours) > 100
    assert {key: found[key] for key in ours} == pytest.approx(ours, rel=1e-6)
