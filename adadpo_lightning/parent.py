"""Processes that end with the process that started them, also if that one was killed by SIGKILL.

Of a command: the parent holds the writing end of a pipe, which the system closes when the parent ends, and the child
waits for that. Of a worker that was forked, which holds that end too: it asks from time to time who its parent is.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import cache

VARIABLE = "ADADPO_LIGHTNING_PARENT"
SECONDS = 0.5


@cache
def reading_end() -> int:
    """The end of this process's pipe that its children inherit, as the file descriptor that `VARIABLE` tells them."""
    reading, _writing_stays_open = os.pipe()
    return reading


def follow_parent() -> None:
    """End this process and its group by SIGTERM when the parent has ended, if the parent asked for it by `VARIABLE`."""
    if (handle := os.environ.pop(VARIABLE, None)) is not None:
        end_after(int(handle))


def end_after(handle: int) -> None:
    """End this process and its group by SIGTERM when the last writer of a pipe has closed it.

    Args:
        handle: File descriptor of its reading end.
    """
    threading.Thread(target=_end_after, args=(handle,), daemon=True).start()


def _end_after(handle: int) -> None:
    os.read(handle, 1)  # nothing is ever written
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGTERM)
    else:
        os.kill(os.getpid(), signal.SIGTERM)


@cache
def end_with(starter: int) -> None:
    """End this process soon after its parent has ended, if it is a worker of the process `starter`."""
    if os.getppid() == starter:
        threading.Thread(target=_end_without, args=(starter,), daemon=True).start()


def _end_without(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(SECONDS)
    os._exit(1)
