"""One way to talk to the user: every message of the package goes through these functions.

Messages go to standard error through the logger ``adadpo_lightning`` of Python's `logging`, from rank zero alone unless
a message says something about one rank. Levels:

- ``info``: facts and progress of a run (what was resumed, reused, saved). Shown by default.
- ``warning``: the run continues, but not as asked or not as fast as it could. Shown with the prefix ``warning:``.
- ``error``: something failed that no exception reports, such as a lost rank. Shown with the prefix ``error:``.

Errors that the user can fix are raised as `adadpo_lightning.errors.UserError` and not logged. ``print`` is for the
result of a command. ``logging.getLogger("adadpo_lightning").setLevel("WARNING")`` silences the rest; a program that has
configured a stream handler on the root logger gets the messages there and not twice.
"""

from __future__ import annotations

import logging
import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

NAME = "adadpo_lightning"
# Where launchers put the rank of a process before Lightning knows it, in this order.
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def info(message: str, *, every_rank: bool = False) -> None:
    """Log a fact or the progress of a run."""
    _emit(logging.INFO, message, every_rank)


def warn(message: str, *, every_rank: bool = False) -> None:
    """Log that the run continues, but not as asked."""
    _emit(logging.WARNING, message, every_rank)


def error(message: str, *, every_rank: bool = False) -> None:
    """Log a failure that no exception reports."""
    _emit(logging.ERROR, message, every_rank)


def show(content: RenderableType) -> None:
    """Print a table or a line to standard output, on rank zero: progress and summaries that belong to a run's output.

    Args:
        content: Text, printed as it is, or anything that rich renders.
    """
    if not is_rank_zero():
        return
    if isinstance(content, str):
        print(content, flush=True)
        return
    from rich.console import Console

    Console().print(content)


def is_rank_zero() -> bool:
    """Whether this process is the one that speaks for all ranks."""
    lightning = sys.modules.get("lightning.fabric.utilities.rank_zero")  # never imported for this: it takes seconds
    rank = getattr(getattr(lightning, "rank_zero_only", None), "rank", None)
    if rank is None:
        rank = next((os.environ[name] for name in _RANK_VARIABLES if name in os.environ), "0")
    return int(rank) == 0


def _emit(level: int, message: str, every_rank: bool) -> None:
    if every_rank or is_rank_zero():
        _logger().log(level, message)


@cache
def _logger() -> logging.Logger:
    logger = logging.getLogger(NAME)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(_StandardError())
    return logger


class _StandardError(logging.Handler):
    """Writes to what is standard error at the time, with the level in front of everything above INFO."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message, unless the root logger's own stream handler shows it."""
        root: list[Any] = logging.getLogger().handlers
        if any(type(handler) is logging.StreamHandler for handler in root):
            return
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        print(f"{prefix}{record.getMessage()}", file=sys.stderr, flush=True)
