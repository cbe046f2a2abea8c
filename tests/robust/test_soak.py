"""A long run, and the same run interrupted again and again: equal numbers; memory, files and threads stay flat.

``ADADPO_SOAK_STEPS=2000 ADADPO_SOAK_EVERY=100 pytest -s -m slow tests/robust/test_soak.py`` is the long form.
"""

import gc
import os
import signal
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from lightning.pytorch import Callback

from adadpo_lightning.cli import trainer as command_line
from adadpo_lightning.compat import accumulating
from tests.support.runs import arguments, assert_same, curves, run
from tests.support.tiny import make_rows, write_rows

STEPS = int(os.environ.get("ADADPO_SOAK_STEPS", "200"))
EVERY = int(os.environ.get("ADADPO_SOAK_EVERY", "20"))
# An epoch has 13 optimizer steps of 4 micro-batches, the last one of 4 pairs; validation comes after each epoch.
PAIRS, VALIDATED = 100, 23
MEMORY_GROWTH = 0.25  # MiB for each leg


class Usage(NamedTuple):
    """What this process holds now."""

    memory: float  # resident, MiB
    files: int
    threads: int

    @classmethod
    def now(cls):
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files = len(os.listdir("/proc/self/fd")) - 1  # without the one of the listing
        return cls(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, files, threading.active_count())


class Watch(Callback):
    """Measures every `EVERY` optimizer steps; interrupts the first time, if it is asked to."""

    def __init__(self, *, interrupts):
        self.interrupts, self.steps, self.found = interrupts, 0, []

    def on_train_batch_end(self, trainer, *args):
        if accumulating(trainer):
            return
        self.steps += 1
        if self.steps % EVERY == 0 and trainer.global_step < STEPS:
            if self.interrupts:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                self.found.append(Usage.now())


@pytest.fixture
def watched(tmp_path, model_dir, monkeypatch):
    pairs = write_rows(tmp_path / "pairs.jsonl", make_rows(PAIRS))
    held_out = write_rows(tmp_path / "val.jsonl", make_rows(VALIDATED, seed=1))

    def _watched(out, watch, *options):
        args = arguments(
            model_dir,
            pairs,
            out,
            f"--data.val={held_out}",
            "--trainer.max_epochs=-1",
            f"--trainer.max_steps={STEPS}",
            "--trainer.log_every_n_steps=1",
            "--trainer.val_check_interval=1.0",
            f"--model.reference_cache={tmp_path / 'cache'}",
            *options,
        )
        build = command_line.build_trainer
        with monkeypatch.context() as patch:
            patch.setattr(command_line, "build_trainer", lambda m, o, others: build(m, o, [watch, *others]))
            return run(args)

    return _watched


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_long_run_and_many_resumes(tmp_path, watched):
    whole = Watch(interrupts=False)
    assert watched(tmp_path / "whole", whole) == 0
    within = whole.found

    after, status = [], None
    while status != 0:
        status = watched(tmp_path / "legs", Watch(interrupts=True), "--auto_resume=true")
        assert status in (0, 128 + signal.SIGTERM)
        after.append(Usage.now())
    assert len(after) == STEPS // EVERY

    for name, found in (("within one run", within), ("after each resume", after)):
        for number, usage in enumerate(found, 1):
            print(
                f"{name}, {number * EVERY:5}: {usage.memory:8.1f} MiB {usage.files:4} files {usage.threads:3} threads"
            )
    assert_flat(within)
    assert_flat(after)
    assert len({step for name, step in curves(tmp_path / "whole") if name == "train/loss"}) == STEPS
    assert_same(tmp_path / "legs", tmp_path / "whole")


def assert_flat(found):
    """After the first fifth, when caches are full: no more files or threads, and no steady growth of memory."""
    settled = found[len(found) // 5 :]
    assert {usage.files for usage in settled} == {settled[0].files}
    assert {usage.threads for usage in settled} == {settled[0].threads}
    growth = np.polyfit(range(len(settled)), [usage.memory for usage in settled], 1)[0]
    assert growth < MEMORY_GROWTH, f"{growth:.2f} MiB for each {EVERY} steps"
