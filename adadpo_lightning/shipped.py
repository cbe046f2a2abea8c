"""Configs shipped with the package."""

from __future__ import annotations

from pathlib import Path

from adadpo_lightning.errors import UserError

PACKAGE = Path(__file__).parent


def find_config(name: str) -> Path:
    """Path of a shipped config: inside the installed package, or in the checkout beside it.

    Raises:
        UserError: If it is in neither place.
    """
    for folder in (PACKAGE / "configs", PACKAGE.parent / "configs"):
        if (folder / name).is_file():
            return folder / name
    raise UserError("config", f"the shipped config {name} is missing", "reinstall the package")
