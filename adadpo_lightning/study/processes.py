"""Child processes that end with their parent, see `adadpo_lightning.parent`."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import IO, Any, Protocol, TypeVar

from adadpo_lightning import log, parent

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


T = TypeVar("T")


class Runner(Protocol):
    """Runs commands and can stop them: `Processes` on this machine, `adadpo_lightning.study.ray_tasks` on a cluster."""

    stopped: bool

    def run(
        self, command: Sequence[str], output: IO[Any] | None = None, environment: Mapping[str, str] | None = None
    ) -> int | None:
        """Run a command to its end and return its exit status; None if `stop` was called before it started."""

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal to all running commands, prevent new ones, and return how many received it."""


class Processes:
    """Runs commands, each in its own session, and can stop all of them with their descendants.

    Commands of this package also end when this process is killed.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def run(
        self, command: Sequence[str], output: IO[Any] | None = None, environment: Mapping[str, str] | None = None
    ) -> int | None:
        """Run a command to its end.

        Args:
            command: Program and arguments.
            output: Open file for its output and errors; None writes to those of this process.
            environment: Its environment; None is that of this process.

        Returns:
            Exit status; None if `stop` was called before it started.
        """
        with self._lock:
            if self.stopped:
                return None
            end = parent.reading_end()
            # Our own command line, no shell.
            process = subprocess.Popen(  # noqa: S603
                command,
                stdout=output,
                stderr=output,
                env={**(os.environ if environment is None else environment), parent.VARIABLE: str(end)},
                pass_fds=[end],
                start_new_session=True,
            )
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal to all running commands, prevent new ones, and return how many received it."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            return len(self._running)


def run_in_turn(commands: Generator[list[str], None, T]) -> T:
    """Print and run commands of this package one after the other, each in its own process.

    SIGTERM, SIGINT and SIGHUP are passed on as SIGTERM, and this process waits until the command has ended.

    Args:
        commands: Yields the arguments of each command once the one before it has succeeded.

    Returns:
        What the generator returns.

    Raises:
        SystemExit: With the status of a command that failed, after its error was printed.
    """
    processes = Processes()
    # The thread waits for the command, also after the signal handler has left this one.
    with stop_on_signals(processes), closing(commands), ThreadPoolExecutor(1) as pool:
        while True:
            try:
                arguments = next(commands)
            except StopIteration as end:
                found: T = end.value
                return found
            print(f"python -m adadpo_lightning {shlex.join(arguments)}", flush=True)
            command = [sys.executable, "-m", "adadpo_lightning", *arguments]
            if status := pool.submit(processes.run, command).result():
                raise SystemExit(status if status > 0 else 128 - status)


@contextmanager
def stop_on_signals(processes: Runner) -> Iterator[None]:
    """Stop `processes` when this process receives a signal; a second signal kills them.

    Raises:
        SystemExit: With status 128 + signal, after a signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return

    def handle(number: int, frame: Any) -> None:
        again = processes.stopped
        count = processes.stop(signal.SIGKILL if again else signal.SIGTERM)
        log.info(
            f"{signal.Signals(number).name}: stopping {count} running jobs{'' if again else '; again to kill them'}"
        )
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
