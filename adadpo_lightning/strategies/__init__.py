"""Strategies for models that one device cannot hold."""

from __future__ import annotations

from adadpo_lightning.strategies.fsdp2 import FSDP2

__all__ = ["FSDP2"]
