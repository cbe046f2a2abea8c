"""The device that an option names."""

from __future__ import annotations

import torch

from adadpo_lightning.errors import UserError, one_line


def device_of(asked: str, field: str = "device") -> torch.device:
    """The device that was asked for.

    Args:
        asked: A device such as ``cuda:1``; ``auto`` is a GPU if there is one, else the CPU.
        field: The option, for the error.

    Raises:
        UserError: If this machine has no such device.
    """
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=asked).device
    except (RuntimeError, AssertionError) as error:
        problem = f"{asked!r} is no device of this machine: {one_line(error, 120)}"
        raise UserError(field, problem, "use auto, cpu, or an available device such as cuda:0") from error
