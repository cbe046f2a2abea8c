"""For callbacks of Lightning: that a run does with each what ``docs/trainer.md`` says."""

import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    OnExceptionCheckpoint,
    WeightAveraging,
)
from lightning.pytorch.tuner import Tuner
from safetensors.torch import load_file

from adadpo_lightning.callbacks import ExportHF
from adadpo_lightning.errors import UserError
from adadpo_lightning.runs.csv_logger import AppendingCSVLogger
from tests.support.lab import EPOCHS, STEPS, assert_equal
from tests.support.trainer_options import table

MONITORS = (
    "train/loss",
    "val/two/rewards/margins",
    "val/loss",
    "val/one/loss",
    "val/kl/chosen",
    "train/rewards/margins",
)


def early_stopping(here, monitors=MONITORS[:2]):
    two = {"val": {"one": here.lab.pairs(7, seed=1), "two": here.lab.pairs(5, seed=2)}}
    for monitor in monitors:
        # Every value passes the threshold, so the run ends where the metric is first known.
        stop = EarlyStopping(monitor, stopping_threshold=math.inf, check_finite=True)
        named = two if "/one/" in monitor or "/two/" in monitor else here.lab.held_out
        run = here.fit(callbacks=[stop], data=named, log_every_n_steps=1)
        assert (run.trainer.global_step, stop.stopped_epoch, stop.wait_count) == (STEPS, 0, 0)
        assert "threshold reached" in stop.stopping_reason_message
        assert_equal(run.weights, here.lab.plain.seen.weights[STEPS - 1])
    here.refused(r"EarlyStopping.monitor: 'val/loss' is not logged", callbacks=[EarlyStopping("val/loss")], data=two)


def rate_monitor(here):
    ours = AppendingCSVLogger(str(here.folder), name="ours")
    watch = {"callbacks": [LearningRateMonitor("step")], "logger": [ours], "log_every_n_steps": 1}
    run = here.fit(**watch, module={"scheduler": "linear"})
    found = table(here.folder / "ours/version_0/metrics.csv")
    names = {name for name, _ in found if name.startswith("lr-")}
    assert names
    for name in names:
        assert [found[name, step] for step in range(EPOCHS * STEPS)] == pytest.approx(run.seen.rates)


def device_stats(here):
    pytest.importorskip("psutil")
    ours = AppendingCSVLogger(str(here.folder), name="ours")
    here.same(callbacks=[DeviceStatsMonitor()], logger=[ours], log_every_n_steps=3)
    found = table(here.folder / "ours/version_0/metrics.csv")
    assert any(name.endswith("cpu_percent") for name, _ in found)


def averaged(here):
    """The mean of the weights after each step, for all weights."""
    run = here.fit(callbacks=[WeightAveraging(), ExportHF(str(here.folder / "hf"))])
    plain = here.lab.plain.seen.weights
    mean = {name: torch.stack([step[name] for step in plain]).mean(0) for name in plain[0]}
    check_averaged(here, run, mean)


def exponential(here):
    run = here.fit(callbacks=[EMAWeightAveraging(decay=0.8), ExportHF(str(here.folder / "hf"))])
    first, *rest = here.lab.plain.seen.weights
    mean = dict(first)
    for step in rest:
        mean = {name: 0.8 * mean[name] + 0.2 * step[name] for name in mean}
    check_averaged(here, run, mean)
    rounded = {"module": {"dtype": "bfloat16"}, "callbacks": [EMAWeightAveraging()]}
    here.refused(r"EMAWeightAveraging of bfloat16 weights would round away", **rounded)
    here.refused(r"would average the reference", module={"reference": "synced"}, callbacks=[WeightAveraging()])


def check_averaged(here, run, mean):
    assert_equal(run.seen.weights[-1], here.lab.plain.weights)  # training itself is unchanged
    assert_equal(run.weights, mean, rtol=1e-5, atol=1e-6)
    exported = load_file(here.folder / "hf/model.safetensors")
    assert exported.keys() == {name.removeprefix("policy.model.") for name in mean}
    for name, value in exported.items():
        torch.testing.assert_close(value, mean[f"policy.model.{name}"], rtol=1e-5, atol=1e-6)
        assert not torch.equal(value, here.lab.plain.weights[f"policy.model.{name}"])


# At which hook of which micro-batch: within a step, at the last micro-batch of one, and after a step.
DISASTERS = (("backward", 3), ("end", 1), ("start", 0), ("start", 1), ("end", 2), ("start", 5), ("end", 4))


def on_exception(here, cases=DISASTERS[:2]):
    """Nothing is lost or done twice."""
    for hook, at in cases:
        saver = OnExceptionCheckpoint(here.folder, f"{hook}{at}")
        with pytest.raises(RuntimeError, match="disaster"):
            here.fit(callbacks=[Disaster(hook, at), saver], enable_checkpointing=True)
        # Without the saver, which removes its file after a success.
        again = here.same(ckpt_path=here.folder / f"{hook}{at}.ckpt", enable_checkpointing=True)
        assert again.seen.rows == here.lab.plain.seen.rows[finished(hook, at) :]


def finished(hook, at):
    """Micro-batches of whole steps, which end with the 2nd, 4th and 5th of an epoch."""
    done = at + (hook == "end")
    return max(end for end in (0, 2, 4, 5, 7, 9, 10) if end <= done)


class Disaster(Callback):
    """An error at one micro-batch."""

    def __init__(self, hook, at):
        self.hook, self.at, self.count = hook, at, -1

    def _fail(self, hook):
        if (hook, self.count) == (self.hook, self.at):
            raise RuntimeError("disaster")

    def on_train_batch_start(self, *args):
        self.count += 1
        self._fail("start")

    def on_after_backward(self, *args):
        self._fail("backward")

    def on_train_batch_end(self, *args):
        self._fail("end")


def refused(make, message):
    """The check that a callback is refused, by name and with a reason."""

    def check_refusal(here):
        callback = make()
        here.refused(rf"trainer.callbacks: {type(callback).__name__} {message}", callbacks=[callback])

    return check_refusal


def tuner(here):
    for method in ("lr_find", "scale_batch_size"):
        trainer = here.lab.trainer(default_root_dir=here.folder)
        with pytest.raises(UserError, match=r"trainer.callbacks: (LearningRate|BatchSize)Finder "):
            getattr(Tuner(trainer), method)(here.lab.module(), datamodule=here.lab.data())
