"""Findings that ``doctor`` reports, and those about the installation."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import torch

PACKAGES = (
    "adadpo-lightning",
    "torch",
    "lightning",
    "transformers",
    "datasets",
    "jsonargparse",
    "peft",
    "scikit-learn",
)


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis."""

    what: str
    detail: str
    status: Literal["ok", "info", "FAIL"] = "info"

    def __str__(self) -> str:
        """Text for the terminal."""
        return f"{self.status:<4}  {self.what}: {self.detail}"


def versions() -> list[Finding]:
    """Versions of Python and of the packages that results depend on."""
    found = [Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    for name in PACKAGES:
        try:
            found.append(Finding(name, version(name)))
        except PackageNotFoundError:
            found.append(Finding(name, "not installed"))
    return found


def devices() -> list[Finding]:
    """Processors and GPUs of this machine."""
    found = [Finding("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")]
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        found.append(Finding(f"cuda:{i}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"))
    return found if len(found) > 1 else [*found, Finding("cuda", "none")]
