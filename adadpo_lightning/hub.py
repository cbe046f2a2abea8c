"""The Hugging Face hub: asked once whether it answers, so that a missing network costs seconds and one line.

Its libraries try each file again and again, for 23 seconds and eleven lines, before they say that there is no network.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from adadpo_lightning import compat, log
from adadpo_lightning.errors import first_line

# Seconds that the first answer may take; hub libraries read the same variable.
TIMEOUT = float(os.environ.get("HF_HUB_ETAG_TIMEOUT", "4"))
SWITCH = "HF_HUB_OFFLINE"


def is_hub_id(name: str) -> bool:
    """Whether a path is that of a repository on the hub: one slash, and no file or directory here.

    Example:
        >>> is_hub_id("meta-llama/Meta-Llama-3-8B-Instruct"), is_hub_id("/data/pairs.jsonl"), is_hub_id("pairs.jsonl")
        (True, False, False)
    """
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


@contextmanager
def loading(path: str) -> Iterator[None]:
    """Within this context something is loaded that is a local path or on the hub.

    If the hub gives no answer, or must not be asked, only its local cache is used, here and from now on.

    Args:
        path: Local path or hub id.

    Raises:
        OSError: If the hub gives no answer and the cache does not have it.
    """
    reason = None if Path(path).expanduser().exists() else silence()
    if reason is None:
        yield
        return
    compat.work_offline()
    try:
        yield
    except (OSError, ValueError) as error:
        if not isinstance(error, OSError) and not isinstance(error.__context__, OSError):
            raise  # it was found, and is wrong
        raise OSError(f"{reason}, and the local cache has no {path!r}") from error
    _say(reason)


@cache
def silence() -> str | None:
    """Why the hub gives no answer; None if it does. Asked once in a process, through the proxy that is configured."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return f"offline mode is on ({SWITCH})"
    found: list[str | None] = []
    # A thread, because looking up a name has no time limit of its own.
    asking = threading.Thread(target=lambda: found.append(_ask(constants.ENDPOINT)), daemon=True)
    asking.start()
    asking.join(TIMEOUT)
    reason = found[0] if found else f"no answer within {TIMEOUT:g} s"
    return reason and f"{constants.ENDPOINT} cannot be reached ({reason}; {SWITCH}=1 does not ask)"


def _ask(endpoint: str) -> str | None:
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=TIMEOUT)
    except Exception as error:  # the types are those of the session's HTTP library
        return first_line(error)
    return None


@cache
def _say(reason: str) -> None:
    """Say once that the cache stands in for the hub, unless the user asked for that."""
    if not reason.startswith("offline mode"):
        log.warn(f"{reason}: using what the local cache has.")
