"""What the demo needs installed, checked before anything is downloaded."""

from __future__ import annotations

from importlib.util import find_spec

from adadpo_lightning.errors import UserError

NEEDED = ("peft", "vaderSentiment")
FOR_GGUF = ("accelerate", "gguf")


def check_packages(*, quick: bool) -> None:
    """Check the packages of the extra ``demo``.

    Args:
        quick: Whether no GGUF file is read.

    Raises:
        UserError: If one is missing.
    """
    needed = NEEDED if quick else (*NEEDED, *FOR_GGUF)
    if missing := [name for name in needed if find_spec(name) is None]:
        raise UserError(
            "demo", f"needs the packages {', '.join(missing)}, not installed", "pip install 'adadpo-lightning[demo]'"
        )
