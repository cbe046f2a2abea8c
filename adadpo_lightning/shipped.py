"""Configs shipped with the package."""

from __future__ import annotations

from pathlib import Path

from adadpo_lightning.errors import UserError

PACKAGE = Path(__file__).parent


def config_path(name: str) -> str:
    """The path of a config that a user names: a file, or a shipped config such as ``loss/adadpo``.

    Returns:
        The name itself if it is neither, for whoever reads it to report.
    """
    if Path(name).exists():
        return name
    try:
        return str(find_config(name if name.endswith(".yaml") else f"{name}.yaml"))
    except UserError:
        return name


def find_config(name: str) -> Path:
    """Path of a shipped config: inside the installed package, or in the checkout beside it.

    Raises:
        UserError: If it is in neither place.
    """
    for folder in (PACKAGE / "configs", PACKAGE.parent / "configs"):
        if (folder / name).is_file():
            return folder / name
    raise UserError("config", f"the shipped config {name} is missing", "reinstall the package")
