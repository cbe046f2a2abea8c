"""Offline preference training on Lightning, with an adaptive, gradient-balanced twin for every loss."""

from __future__ import annotations

from adadpo_lightning._version import __version__

__all__ = ["__version__"]
