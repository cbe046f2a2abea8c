"""The command line."""

from adadpo_lightning.cli.app import main

__all__ = ["main"]
