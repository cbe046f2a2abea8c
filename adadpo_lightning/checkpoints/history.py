"""The config of a run on disk: the present one, and those that it replaced."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

CONFIG = "config.yaml"
HISTORY = "config.history"
# How a command was started says nothing of the run.
OF_THE_COMMAND = ("ckpt_path", "auto_resume", "allow_changed_config", "config")


def save_config(output_dir: str | Path, text: str) -> Path:
    """Write ``config.yaml``; one with other values is kept as ``config.history/001.yaml``, ``002.yaml``, ...

    Args:
        output_dir: The run's directory.
        text: The config as YAML.

    Returns:
        The path of ``config.yaml``.
    """
    path = Path(output_dir) / CONFIG
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        if read_config(path) == _values(yaml.safe_load(text)):
            return path
        history = path.parent / HISTORY
        history.mkdir(exist_ok=True)
        number = 1 + max((int(file.stem) for file in history.glob("*.yaml") if file.stem.isdigit()), default=0)
        shutil.copy2(path, history / f"{number:03}.yaml")
    partial = path.with_name(f".{CONFIG}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


def read_config(path: str | Path) -> dict[str, Any] | None:
    """What ``config.yaml`` says of a run; None if it is missing, cut short or overwritten."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    return _values(values) if isinstance(values, dict) else None


def _values(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in OF_THE_COMMAND}
