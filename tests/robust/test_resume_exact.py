"""A run that was interrupted anywhere and resumed gives the numbers and the weights of one that was not."""

import os
import shutil
import signal

import pytest
from lightning.pytorch.callbacks import Callback

from adadpo_lightning.callbacks.graceful_stop import resume_command
from adadpo_lightning.cli import trainer as command_line
from tests.support.runs import PAIRS, arguments, assert_same, curves, run
from tests.support.tiny import make_rows, write_rows


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", make_rows(PAIRS))


class Interrupt(Callback):
    """Sends this process a signal at one micro-batch of training or validation."""

    def __init__(self, at, number=signal.SIGTERM, validation=False):
        self.at, self.number, self.validation, self.seen = at, number, validation, 0

    def _count(self):
        if self.seen == self.at:
            os.kill(os.getpid(), self.number)
        self.seen += 1

    def on_train_batch_start(self, *args):
        if not self.validation:
            self._count()

    def on_validation_batch_start(self, trainer, *args):
        if self.validation and not trainer.sanity_checking:
            self._count()


@pytest.fixture
def interrupted(monkeypatch):
    """Run a command line that is interrupted by a callback."""

    def _interrupted(args, callback):
        build = command_line.build_trainer
        with monkeypatch.context() as patch:
            patch.setattr(command_line, "build_trainer", lambda m, o, others: build(m, o, [callback, *others]))
            return run(args)

    return _interrupted


KINDS = {
    "dpo": ["--model.loss=dpo"],
    "adadpo": [],
    "adacpo": ["--model.loss=adacpo"],
    "lora": ["--model.policy.lora.r=2", "--model.policy.lora.target_modules=[q_proj,v_proj]"],
    "dropout": [
        "--model.policy.lora.r=2",
        "--model.policy.lora.target_modules=[q_proj,v_proj]",
        "--model.policy.lora.dropout=0.3",
    ],
    "cached": ["--model.reference=cached"],
    "scheduled": [
        "--model.loss.beta={from: 0.3, to: 0.05, schedule: cosine}",
        "--model.loss.ceiling={from: 1.0, to: 3.0, schedule: linear}",
    ],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model_dir, pairs):
    """Uninterrupted runs, made once each."""
    done = {}

    def _whole(kind):
        if kind not in done:
            out = done[kind] = tmp_path_factory.mktemp(kind)
            assert run(arguments(model_dir, pairs, out, *options(kind, out))) == 0
        return done[kind]

    return _whole


def options(kind, out):
    return [*KINDS[kind], f"--model.reference_cache={out.parent / 'cache'}"]


# Micro-batches: 4 make an optimizer step, 12 an epoch; validation comes after the 6th and the 12th of each.
@pytest.mark.parametrize(
    ("kind", "at"),
    [("adadpo", 0), ("adadpo", 7), ("lora", 9), ("cached", 9)]
    + [pytest.param("adadpo", at, marks=pytest.mark.slow) for at in (5, 11, 21)]
    + [pytest.param(kind, 9, marks=pytest.mark.slow) for kind in KINDS if kind not in ("adadpo", "lora", "cached")],
)
def test_resumed_equals_uninterrupted(tmp_path, model_dir, pairs, whole, interrupted, capsys, kind, at):
    expected = whole(kind)
    args = arguments(model_dir, pairs, tmp_path, *options(kind, expected))
    assert interrupted(args, Interrupt(at)) == 128 + signal.SIGTERM
    said = capsys.readouterr().err
    assert f"SIGTERM: saved {tmp_path}/checkpoints/last.ckpt at step {at // 4}. Resume with:" in said
    assert run([*args, "--ckpt_path=last"]) == 0
    assert_same(tmp_path, expected)


def test_a_signal_during_validation_waits_for_its_end(tmp_path, model_dir, pairs, whole, interrupted):
    expected = whole("adadpo")
    args = arguments(model_dir, pairs, tmp_path, *options("adadpo", expected))
    stop = Interrupt(2, signal.SIGINT, validation=True)
    assert interrupted(args, stop) == 128 + signal.SIGINT
    assert any(name == "val/loss" for name, _ in curves(tmp_path))
    assert run([*args, "--auto_resume=true"]) == 0
    assert_same(tmp_path, expected)


@pytest.mark.slow
def test_interrupted_many_times(tmp_path, model_dir, pairs, whole, interrupted):
    expected = whole("adadpo")
    args = arguments(model_dir, pairs, tmp_path, *options("adadpo", expected), "--auto_resume=true")
    statuses = [interrupted(args, Interrupt(5)) for _ in range(6)]
    assert statuses == [128 + signal.SIGTERM] * 5 + [0]
    assert_same(tmp_path, expected)


def test_resumed_from_every_kind_of_checkpoint(tmp_path, model_dir, pairs, whole):
    """Of a step, of a validation and of an epoch's end."""
    expected = whole("adadpo")
    args = arguments(model_dir, pairs, tmp_path / "steps", *options("adadpo", expected))
    assert run([*args, "--checkpoint.every_n_train_steps=1", "--checkpoint.save_top_k=-1"]) == 0
    saved = sorted((tmp_path / "steps/checkpoints").glob("step*.ckpt"))
    assert len(saved) == 6
    for checkpoint in saved[:-1]:
        out = tmp_path / checkpoint.stem
        shutil.copytree(tmp_path / "steps/csv", out / "csv")
        resumed = arguments(model_dir, pairs, out, *options("adadpo", expected), f"--ckpt_path={checkpoint}")
        assert run(resumed) == 0
        assert_same(out, expected)


@pytest.mark.parametrize(
    "how", ["another working directory", *(pytest.param(how, marks=pytest.mark.slow) for how in ("moved", "copied"))]
)
def test_a_run_that_is_elsewhere_resumes(tmp_path, model_dir, pairs, whole, interrupted, monkeypatch, how):
    """All its paths are relative."""
    expected = whole("adadpo")

    def args(out):
        return arguments(os.path.relpath(model_dir), os.path.relpath(pairs), out, *options("adadpo", expected))

    start, there = tmp_path / "start", tmp_path / "a" / "there"
    start.mkdir()
    there.mkdir(parents=True)
    monkeypatch.chdir(start)
    assert interrupted(args("run"), Interrupt(9)) == 128 + signal.SIGTERM
    monkeypatch.chdir(there)
    if how == "moved":
        shutil.move(start / "run", there / "run")
    elif how == "copied":
        shutil.copytree(start / "run", there / "run")
    runs = {"moved": ["run"], "copied": ["run", "../../start/run"]}.get(how, ["../../start/run"])
    for out in runs:
        assert run([*args(out), "--ckpt_path=last"]) == 0
        assert_same((there / out).resolve(), expected)


def test_the_same_seed_gives_the_same_bits_and_workers_change_nothing(tmp_path, model_dir, pairs, whole):
    expected = whole("adadpo")
    args = arguments(model_dir, pairs, tmp_path, *options("adadpo", expected), "--data.num_workers=2")
    assert run(args) == 0
    assert_same(tmp_path, expected)


def test_dropout_masks_are_drawn_at_all(whole):
    lora, dropout = (curves(whole(kind)) for kind in ("lora", "dropout"))
    assert lora["train/loss", 1] == dropout["train/loss", 1]  # an adapter starts at zero
    assert lora["train/loss", 5] != dropout["train/loss", 5]


def test_a_hangup_saves(tmp_path, model_dir, pairs, interrupted, capsys):
    args = arguments(model_dir, pairs, tmp_path)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under `nohup` the test process ignores it
    try:
        assert interrupted(args, Interrupt(5, signal.SIGHUP)) == 128 + signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)
    assert "SIGHUP: saved" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "resumes"),
    [
        ("fit --data.train p --ckpt_path last", "fit --data.train p --ckpt_path last"),
        ("fit --auto_resume true --data.train p", "fit --data.train p --ckpt_path last"),
        ("study --config s.yaml --job a", "study --config s.yaml --job a"),  # runs `fit` with --auto_resume itself
    ],
)
def test_the_command_that_resumes(monkeypatch, typed, resumes):
    monkeypatch.setattr("sys.argv", ["/somewhere/adadpo_lightning/__main__.py", *typed.split()])
    assert resume_command("last.ckpt") == f"python -m adadpo_lightning {resumes}"


def test_slurm_requeues_at_a_whole_step(tmp_path, model_dir, pairs, whole, interrupted, monkeypatch, capsys):
    """The signal comes in the middle of an optimizer step; `scontrol` is a script that writes down its arguments."""
    expected = whole("adadpo")
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    slurm = {"JOB_ID": "7", "JOB_NAME": "mine", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    out = tmp_path / "out"
    args = [*arguments(model_dir, pairs, out, *options("adadpo", expected)), "--auto_resume=true"]
    assert interrupted(args, Interrupt(9, signal.SIGUSR1)) == 128 + signal.SIGUSR1
    assert "requeued SLURM job 7" in capsys.readouterr().err
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert (out / "hpc_ckpt_1.ckpt").samefile(out / "checkpoints/last.ckpt")
    assert run(args) == 0
    assert_same(out, expected)
