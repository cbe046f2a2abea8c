"""The bar and the lines: what they show, when they read it, and how fast the run is said to be."""

import io
import re
import time

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console

from adadpo_lightning.callbacks import PreferenceMetrics, PreferenceProgressBar, ProgressLines, Throughput, progress
from tests.training.test_module import QUIET, data, module


def fit(model_dir, pairs_file, callbacks, **options):
    options = {"max_epochs": 2, "log_every_n_steps": 2, "enable_checkpointing": False} | options
    settings = QUIET | {"enable_progress_bar": any(isinstance(c, progress.ProgressBar) for c in callbacks)}
    trainer = Trainer(**settings, **options, callbacks=[PreferenceMetrics(), Throughput(), *callbacks])
    dm = data(pairs_file, micro_batch_size=2, val=str(pairs_file), eval_batch_size=20)
    trainer.fit(module(model_dir, "adadpo"), datamodule=dm)
    return trainer


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self, *args):
        return self.now


class Steps(Callback):
    """Each micro-batch takes 2 seconds, each validation 1000, which checkpoints and the like prolong by 500."""

    def __init__(self, clock):
        self.clock = clock

    def on_train_batch_start(self, *args):
        self.clock.now += 2.0

    def on_validation_batch_start(self, trainer, *args):
        self.clock.now += 1000.0

    def on_validation_end(self, *args):
        self.clock.now += 500.0


def test_throughput_counts_tokens_and_pairs_of_training_alone(model_dir, pairs_file, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("adadpo_lightning.callbacks.throughput._now", clock)
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append((batch.input_ids.numel(), len(batch)))
            if trainer.global_step and trainer.global_step % 2 == 0 and not trainer.fit_loop._should_accumulate():
                logged = trainer.callback_metrics
                tokens, pairs = map(sum, zip(*seen, strict=True))
                seconds = 2.0 * len(seen)
                assert float(logged["train/tokens_per_second"]) == pytest.approx(tokens / seconds)
                assert float(logged["train/pairs_per_second"]) == pytest.approx(pairs / seconds)
                windows.append(seconds)
                seen.clear()

    windows = []
    fit(model_dir, pairs_file, [Watch(), Steps(clock)], val_check_interval=8)
    # Two steps of four micro-batches; an epoch of 37 pairs has 19, and its last step three.
    assert windows == [16.0, 16.0, 14.0, 16.0, 14.0]


def test_the_bar_reads_metrics_only_where_they_are_logged(model_dir, pairs_file, monkeypatch):
    """Reading a metric waits for the device: in between, the bar may not."""
    reads = []
    read = Trainer.progress_bar_metrics.fget
    monkeypatch.setattr(
        Trainer,
        "progress_bar_metrics",
        property(lambda self: (reads.append((self.global_step, self.validating)), read(self))[1]),
    )
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr("lightning.pytorch.callbacks.progress.rich_progress.get_console", lambda: console)
    bar = PreferenceProgressBar()
    trainer = fit(model_dir, pairs_file, [bar], limit_val_batches=0)
    assert trainer.global_step == 10
    assert {step for step, _ in reads} <= {2, 4, 5, 6, 8, 10}  # 5 is the end of an epoch
    assert [step for step, _ in reads].count(2) == 1
    shown = console.file.getvalue()
    assert "10/10" in shown
    assert re.search(r"loss [\d.]+  accuracy [\d.]+  margin [\d.]+  balance [\d.e-]+  tokens/s [\d,]+  pairs/s", shown)
    assert "val_loss" not in shown


def test_the_bar_shows_validation_below_training(model_dir, pairs_file, monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr("lightning.pytorch.callbacks.progress.rich_progress.get_console", lambda: console)
    bar = PreferenceProgressBar()
    fit(model_dir, pairs_file, [bar], max_epochs=1)
    train, val = bar.shown.splitlines()
    assert train.startswith("loss ")
    assert re.fullmatch(r"val_loss [\d.]+  val_accuracy [\d.]+  val_margin [\d.]+", val)


def test_lines_say_step_metrics_and_time_left(model_dir, pairs_file, capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    fit(model_dir, pairs_file, [ProgressLines(), Steps(clock)], val_check_interval=16)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split("  ")[0] for line in lines] == [
        *("step 2/10", "step 4/10", "step 4/10", "step 6/10", "step 8/10", "step 9/10", "step 10/10")
    ]
    # 16 s for two steps: 8 more of the same.
    assert lines[0].endswith("  0:01:04 to go")
    assert re.search(r"  loss [\d.]+  accuracy [\d.]+  margin -?[\d.e-]+  balance [\d.]+  tokens/s ", lines[0])
    assert lines[2].startswith("step 4/10  val_loss ")
    assert "to go" not in lines[2]
    # Validations belong to the time of a run: here two batches of 1000 s, and 500 s after them.
    micro_batches = 16 + 3 + 4
    left = (micro_batches * 2.0 + 2500.0) / 6 * 4
    assert lines[3].endswith(f"  {progress.clock(left)} to go")
    assert lines[-1].endswith("  0:00:00 to go")


def test_other_ranks_print_nothing(model_dir, pairs_file, capsys):
    lines = ProgressLines()
    lines.disable()
    lines.enable = lambda: None
    fit(model_dir, pairs_file, [lines], max_epochs=1)
    assert "step " not in capsys.readouterr().out


@pytest.mark.parametrize(("terminal", "kind"), [(True, PreferenceProgressBar), (False, ProgressLines)])
def test_the_bar_is_for_terminals(monkeypatch, terminal, kind):
    monkeypatch.setattr(Console, "is_terminal", property(lambda self: terminal))
    assert type(progress.progress_bar()) is kind


def test_short_names_keep_the_order_and_large_numbers_are_read_easily():
    metrics = {"val/loss": torch.tensor(0.5), "train/memory_gib": 12.345, "train/tokens_per_second": 98765.4, "x": 1}
    shown = list(progress.short_metrics(metrics).items())
    assert shown == [("tokens/s", "98,765"), ("GiB", "12.3"), ("val_loss", "0.5")]


def test_time_left_is_unknown_before_the_first_step_and_counts_from_the_resume():
    class Run:
        global_step, estimated_stepping_batches = 40, 100

    clock = progress.RunTime(Run())
    assert clock.remaining(40) is None
    clock.start -= 10.0
    assert clock.remaining(42) == pytest.approx(5.0 * 58, rel=0.01)


@pytest.mark.gpu
def test_memory_is_logged_on_cuda(model_dir, pairs_file):
    options = QUIET | {"accelerator": "cuda", "devices": 1, "max_steps": 2, "log_every_n_steps": 1}
    trainer = Trainer(**options, enable_checkpointing=False, callbacks=[Throughput()])
    lit = module(model_dir, "dpo", dtype="float32")
    trainer.fit(lit, datamodule=data(pairs_file, micro_batch_size=8))
    peak = torch.cuda.max_memory_allocated() / 2**30
    assert float(trainer.callback_metrics["train/memory_gib"]) == pytest.approx(peak, rel=0.1)
