"""Commands of this package in processes that start with everything imported.

An import of torch, Lightning and transformers takes half as long as a run of the embedded task. A server imports them
once and forks itself for each command. It runs nothing itself, so that no thread is lost in a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from adadpo_lightning import parent

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

COMMAND = (sys.executable, "-m", "adadpo_lightning")
PRELOADED = [
    "accelerate",
    "datasets",
    "docstring_parser",
    "transformers.models.llama.modeling_llama",
    "adadpo_lightning.cli.commands.fit",
    "adadpo_lightning.cli.commands.study",
    "adadpo_lightning.embedded.evaluation",
    "adadpo_lightning.study.cell",
]


class Forked:
    """Runs commands of this package on this machine, a `adadpo_lightning.study.processes.Runner`.

    For runs of one process only: what Lightning starts as further ranks would be this process's command again.

    Raises:
        ValueError: If the system has no fork server, see `is_available`.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._running: set[ForkServerProcess] = set()
        self._lock = threading.Lock()

    def run(
        self, command: Sequence[str], output: IO[Any] | None = None, environment: Mapping[str, str] | None = None
    ) -> int | None:
        """Run a command to its end.

        Args:
            command: `COMMAND` and its arguments.
            output: Open file for its output and errors, which the process opens by its name.
            environment: Variables of all commands: the server keeps those of the first one.

        Returns:
            Exit status; None if `stop` was called before it started.

        Raises:
            ValueError: If it is not a command of this package.
        """
        if tuple(command[: len(COMMAND)]) != COMMAND:
            raise ValueError(f"not a command of this package: {command}")
        name = None if output is None else str(Path(output.name).resolve())
        with self._lock:
            if self.stopped:
                return None
            os.environ.update(environment or {})  # the server inherits it
            process = self._context.Process(target=run_command, args=(list(command[len(COMMAND) :]), name))
            process.start()
            self._running.add(process)
        wait([process.sentinel])
        # An exit status can be read once, and `start` in another thread reads those of all processes.
        with self._lock:
            self._running.discard(process)
            process.join()
            return process.exitcode

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal to all running commands, prevent new ones, and return how many received it."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                if process.pid is not None:  # it has one once it is started
                    with suppress(ProcessLookupError):
                        _signal(process.pid, number)
            return len(self._running)


def is_available() -> bool:
    """Whether this system has a fork server."""
    return "forkserver" in multiprocessing.get_all_start_methods()


def run_command(arguments: Sequence[str], output: str | None) -> None:
    """What a forked process does: become a process of its own session, and run the command line.

    Args:
        arguments: Those of the command line, without the program.
        output: File for its output and errors.

    Raises:
        SystemExit: With the status of the command.
    """
    os.setsid()
    started_by = multiprocessing.parent_process()
    if started_by is not None:
        parent.end_after(started_by.sentinel)
    if output is not None:
        with open(output, "a", encoding="utf-8") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
    sys.argv = [COMMAND[-1], *arguments]
    runpy.run_module(COMMAND[-1], run_name="__main__", alter_sys=True)


def _signal(process: int, number: int) -> None:
    """Signal a process with its descendants, or alone while it has not become the first of its session yet."""
    try:
        os.killpg(process, number)
    except ProcessLookupError:
        os.kill(process, number)
