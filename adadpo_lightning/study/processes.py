"""Child processes that end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

from adadpo_lightning import log

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class Processes:
    """Runs commands, each in its own session, and can stop all of them with their descendants."""

    def __init__(self) -> None:
        self.stopped = False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def run(self, command: Sequence[str], output: IO[Any], environment: Mapping[str, str]) -> int | None:
        """Run a command to its end.

        Args:
            command: Program and arguments.
            output: Open file for its output and errors.
            environment: Its environment.

        Returns:
            Exit status; None if `stop` was called before it started.
        """
        with self._lock:
            if self.stopped:
                return None
            # Our own command line, no shell.
            process = subprocess.Popen(  # noqa: S603
                command, stdout=output, stderr=output, env=dict(environment), start_new_session=True
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


@contextmanager
def stop_on_signals(processes: Processes) -> Iterator[None]:
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
