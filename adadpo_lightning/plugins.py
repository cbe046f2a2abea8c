"""What other installed packages add through entry points."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from adadpo_lightning.errors import UserError


@cache
def load_plugins(group: str) -> None:
    """Import, once, everything that installed packages declare under an entry-point group; it registers itself.

    Args:
        group: The group, such as ``adadpo_lightning.losses``.

    Raises:
        UserError: If an import fails; names the package to fix or uninstall.
    """
    for entry in entry_points(group=group):
        try:
            entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist else "unknown package"
            raise UserError(
                f"entry point {entry.name!r} of {package}",
                f"could not be loaded: {type(error).__name__}: {error}",
                "fix or uninstall that package",
            ) from error
