"""Started by torchrun on two ranks: a whole run, one that a signal to ONE rank ends, and its resume.

torchrun --nproc-per-node=2 -m tests.support.two_ranks FOLDER MODEL PAIRS STRATEGY
"""

import os
import signal
import sys
from pathlib import Path

import torch

from adadpo_lightning.cli import trainer as command_line
from tests.robust.test_resume_exact import Interrupt
from tests.support.runs import arguments, run


def main(folder, model_dir, pairs, *options):
    torch.set_num_threads(1)
    folder = Path(folder)
    build = command_line.build_trainer
    added = []
    command_line.build_trainer = lambda method, options, callbacks: build(method, options, [*added, *callbacks])

    def args(name):
        args = arguments(model_dir, pairs, folder / name, "--data.micro_batch_size=1", *options)
        return [arg.replace("--trainer.devices=1", "--trainer.devices=2") for arg in args]

    assert run(args("whole")) == 0
    rank = int(os.environ["RANK"])
    for number, at in enumerate((6, 2)):  # the second time in a resumed run
        added[:] = [Interrupt(at)] if rank == 1 else []
        status = run([*args("stopped"), *(["--ckpt_path=last"] if number else [])])
        assert status == 128 + signal.SIGTERM, status
    added.clear()
    assert run([*args("stopped"), "--auto_resume=true"]) == 0


if __name__ == "__main__":
    main(*sys.argv[1:])
