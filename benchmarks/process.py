"""Run a command as a process of its own and measure it from outside."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

SAMPLE_S = 0.05


@dataclass(frozen=True)
class Ended:
    """What a process took.

    Args:
        start: When it was started, seconds since the epoch.
        wall_s: From its start to its end.
        memory_gib: Highest resident memory, summed over the process and its descendants.
    """

    start: float
    wall_s: float
    memory_gib: float


def run_process(command: list[str], folder: Path, environment: dict[str, str]) -> Ended:
    """Run to the end; output goes to the file ``log`` in `folder`, where the command runs.

    Raises:
        RuntimeError: If it fails; the message has the end of its output.
    """
    with (folder / "log").open("w") as log:
        start, began, peak = time.time(), time.perf_counter(), 0
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT
        )
        while True:
            peak = max(peak, tree_memory(process.pid))
            # The kernel's own high-water mark of the process also has what came and went between two samples.
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(SAMPLE_S)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(folder / 'log').read_text()[-3000:]}")
    return Ended(start, wall, max(peak, usage.ru_maxrss * 1024) / 2**30)


def tree_memory(pid: int) -> int:
    """Resident memory of a process and its descendants now, bytes."""
    total, waiting = 0, [pid]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        try:
            status = (folder / "status").read_text()
            for task in (folder / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:  # ended in the meantime
            continue
        total += next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0)
    return total
