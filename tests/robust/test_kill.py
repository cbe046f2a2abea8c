"""SIGKILL at any moment, also while a checkpoint is being written: the run can always go on, and ends the same.

A child is forked for each attempt, after everything is imported: a process of its own without the seconds of its start.
"""

import multiprocessing as mp
import os
import random
import signal
import time

import pytest
import torch

from adadpo_lightning.callbacks.checkpoint import RunCheckpoint
from adadpo_lightning.checkpoints.integrity import WholeFileIO, step_of
from adadpo_lightning.checkpoints.resume import latest_valid
from tests.support.runs import PAIRS, arguments, assert_same, main_of_child, run
from tests.support.tiny import make_rows, write_rows

SAVING = [
    "--checkpoint.every_n_train_steps=1",
    "--auto_resume=true",
    "--trainer.logger=adadpo_lightning.runs.csv_logger.AppendingCSVLogger",
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory, model_dir):
    """A run that nobody kills: its directory, its command line, and how long a child takes for it."""
    folder = tmp_path_factory.mktemp("whole")
    pairs = write_rows(folder / "pairs.jsonl", make_rows(PAIRS))
    options = [
        *SAVING,
        f"--trainer.logger.save_dir={folder / 'out'}",
        "--trainer.logger.name=csv",
        "--trainer.logger.resume=true",
    ]
    args = arguments(model_dir, pairs, folder / "out", *options)
    assert run(args) == 0
    begun = time.monotonic()
    process = child([arg.replace(str(folder / "out"), str(folder / "again")) for arg in args])
    process.join()
    assert process.exitcode == 0
    return folder / "out", args, time.monotonic() - begun


def child(args):
    """Start the command line in a forked process."""
    process = mp.get_context("fork").Process(target=main_of_child, args=(args,))
    process.start()
    return process


def kill_until_done(args, kills, wait):
    """Kill the run `kills` times, then let it end."""
    done = 0
    while done < kills:
        process = child(args)
        process.join(timeout=wait())
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            done += 1
        else:
            assert process.exitcode == 0
            return done
    process = child(args)
    process.join()
    assert process.exitcode == 0
    return done


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments(reference, tmp_path, kills):
    out, args, seconds = reference
    args = [arg.replace(str(out), str(tmp_path)) for arg in args]
    draw = random.Random(kills)
    killed = 0
    for attempt in range(3 * kills):  # each round ends a whole run, until there were enough kills
        here = tmp_path / str(attempt)
        round_args = [arg.replace(str(tmp_path), str(here)) for arg in args]
        killed += kill_until_done(round_args, min(kills - killed, 10), lambda: draw.uniform(0.2, 1.0) * seconds)
        assert_same(here, out)
        if killed == kills:
            break
    assert killed == kills


class SlowIO(WholeFileIO):
    """Writes a checkpoint in pieces, so that a kill falls into the middle of it."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        save = torch.save

        def slowly(what, file):
            class Slow:
                def write(self, data):
                    time.sleep(0.001)
                    return file.write(data)

                def flush(self):
                    file.flush()

            save(what, Slow())

        torch.save = slowly
        try:
            super().save_checkpoint(checkpoint, path, storage_options)
        finally:
            torch.save = save


def test_killed_while_a_checkpoint_is_written(reference, tmp_path, monkeypatch):
    out, args, _ = reference
    monkeypatch.setattr("adadpo_lightning.callbacks.checkpoint.WholeFileIO", SlowIO)
    args = [arg.replace(str(out), str(tmp_path)) for arg in args]
    saved = tmp_path / "checkpoints"
    caught = 0
    while caught < 2:
        process = child(args)
        seen = 0
        while process.exitcode is None:
            writing = list(saved.glob(".*.partial"))
            # Not the first file each time: there is to be something to go on from.
            seen += bool(writing)
            if writing and seen > 1 + caught and latest_valid(saved)[0] is not None:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                caught += bool(list(saved.glob(".*.partial")))
                break
            time.sleep(0.003)
        assert latest_valid(saved)[0] is not None
        if process.exitcode == 0:
            break
    assert caught >= 1
    process = child(args)
    process.join()
    assert process.exitcode == 0
    assert_same(tmp_path, out)


def test_killed_between_the_last_two_checkpoints(reference, tmp_path, monkeypatch):
    """The final step is in its own file and not yet in last.ckpt: the resumed run has no step left to take."""
    out, args, _ = reference
    args = [arg.replace(str(out), str(tmp_path)) for arg in args]
    save = RunCheckpoint._save_last_checkpoint

    def killed(self, trainer, candidates):
        if trainer.global_step == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, trainer, candidates)

    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoint, "_save_last_checkpoint", killed)
        process = child(args)
        process.join()
    assert process.exitcode == -signal.SIGKILL
    saved = tmp_path / "checkpoints"
    assert step_of(saved / "step6.ckpt") == 6
    assert step_of(saved / "last.ckpt") == 5
    assert run(args) == 0
    assert_same(tmp_path, out)
