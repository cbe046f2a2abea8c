"""Strategies for models that do not fit on one device."""

from __future__ import annotations

from adadpo_lightning.strategies.fsdp2 import FSDP2

__all__ = ["FSDP2"]
