"""SIGTERM, SIGINT, SIGHUP and SLURM's requeue signal: finish the micro-batch, save, say how to resume, exit."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback

from adadpo_lightning import log
from adadpo_lightning.callbacks.checkpoint import RunCheckpoint
from adadpo_lightning.callbacks.requeue import requeue
from adadpo_lightning.compat import requeue_signal

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))

IGNORED = signal.SIG_IGN


class GracefulStop(Callback):
    """Ends a run on SIGTERM, SIGINT or SIGHUP without losing a finished optimizer step.

    ``last.ckpt`` is saved after the current micro-batch or validation. In the middle of an optimizer step the
    checkpoint holds the state at the start of the step: weights and optimizer have not changed since, and the resumed
    run recomputes the step's micro-batches, so the gradient is exact. The exit status is 128 plus the signal number. A
    second signal ends the process immediately. A SIGHUP that is ignored, as under ``nohup``, stays ignored.

    Under SLURM the signal that precedes the time limit (SIGUSR1, ``--signal=SIGUSR1@120``) does the same, and then
    requeues the job; Lightning's own handler would save at any instruction, also within an optimizer step.

    With several ranks, a signal to any rank stops all ranks at the same micro-batch: they exchange a flag over a gloo
    group, delayed by one micro-batch, without waiting for the device.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._requeues: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._group: Any = None
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._asked: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers. Lightning's own would end the run without a checkpoint, or save a part of a step."""
        self._requeues = requeue_signal(trainer)
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            wanted = [*SIGNALS, *([] if self._requeues is None else [self._requeues])]
            ignored = [number for number in wanted if number.name == "SIGHUP" and signal.getsignal(number) is IGNORED]
            self._before = {n: signal.signal(n, self._receive) for n in wanted if n not in ignored}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = signal.Signals(number)
        # Not `print`: the signal may have interrupted one.
        os.write(2, f"\n{self.received.name}: saving after this micro-batch; send it again to exit now.\n".encode())

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Save and exit before the next micro-batch if this or another rank received a signal."""
        if self._told(trainer):
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save and exit after an epoch's validation."""
        if self._told(trainer):
            self._stop(trainer)

    def _told(self, trainer: Trainer) -> bool:
        if self._group is None:
            return self.received is not None
        told = False
        if self._asked is not None:
            self._asked.wait()
            told = bool(self._flag.item())
        self._flag.fill_(0 if self.received is None else self.received.value)
        self._asked = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return told

    def _stop(self, trainer: Trainer) -> None:
        if self._asked is not None:
            self._asked.wait()
        number = self.received or signal.Signals(int(self._flag.item()) or signal.SIGTERM)
        path = None
        saver = next((c for c in trainer.checkpoint_callbacks if isinstance(c, RunCheckpoint)), None)
        if saver is not None:
            path = saver.save_now(trainer)
            log.info(
                f"{number.name}: saved {path} at step {trainer.global_step}. Resume with:\n  {resume_command(path)}"
            )
        else:
            log.info(f"{number.name}: stopped at step {trainer.global_step}; checkpoints are disabled, none was saved.")
        if number == self._requeues:
            requeue(trainer, path)
        raise SystemExit(128 + number)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the previous handlers."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the previous handlers."""
        self._release()

    def _release(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def resume_command(checkpoint: str) -> str:
    """The command that resumes this run: a command line, or a call if the run was started from Python.

    Commands that run ``fit`` as one of their stages resume it by themselves, when called again.

    Args:
        checkpoint: Path of the saved checkpoint.
    """
    if Path(sys.argv[0]).parent.name != "adadpo_lightning" and Path(sys.argv[0]).name != "adadpo-lightning":
        return f'trainer.fit(module, data, ckpt_path="{checkpoint}")'
    if sys.argv[1] != "fit":
        return shlex.join(["python", "-m", "adadpo_lightning", *sys.argv[1:]])
    arguments, skip = [], False
    for argument in sys.argv[1:]:
        if not (skip or argument.startswith(("--ckpt_path", "--auto_resume"))):
            arguments.append(argument)
        skip = argument in ("--ckpt_path", "--auto_resume")
    return shlex.join(["python", "-m", "adadpo_lightning", *arguments, "--ckpt_path", "last"])
