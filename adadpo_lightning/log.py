"""What a run says to who started it."""

from __future__ import annotations

import sys

from lightning.pytorch.utilities import rank_zero_only


@rank_zero_only
def say(text: str) -> None:
    """Print a line to standard error, once for all ranks."""
    print(text, file=sys.stderr, flush=True)
