"""Convert a config of TRL's DPO script into one of this package, and report what has no counterpart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from adadpo_lightning.convert import trl_rules
from adadpo_lightning.convert.trl_keys import (
    COUNTS,
    NEEDLESS,
    NEUTRAL,
    NULLABLE,
    NUMBERS,
    SAME,
    TRL_DEFAULTS,
    known_keys,
)
from adadpo_lightning.convert.trl_rules import Converted
from adadpo_lightning.errors import UserError, did_you_mean


def convert(given: dict[str, Any], ranks: int = 1) -> Converted:
    """Convert a TRL config (DPOConfig, ModelConfig and ScriptArguments in one mapping).

    Args:
        given: The config.
        ranks: Number of devices, for the global batch size.

    Returns:
        The config of this package, and notes.

    Raises:
        UserError: If a loss has no counterpart, or a numeric option is not a number.
    """
    values = _numbers(TRL_DEFAULTS | given)
    out = Converted()
    for key, name in SAME.items():
        if values.get(key) is not None:
            out.put(name, values[key])
    trl_rules.loss(values, out)
    trl_rules.optimization(values, ranks, out)
    trl_rules.duration(values, out)
    trl_rules.model(values, out)
    trl_rules.data(values, out)
    for key, value in given.items():
        if key in NEEDLESS:
            out.needless[key] = NEEDLESS[key]
        elif key in NEUTRAL and value != NEUTRAL[key]:
            out.dropped[key] = f"{value} has no counterpart"
        elif key not in known_keys():
            out.dropped[key] = "no counterpart"
    return out


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """Check the numbers, and convert those that YAML read as text."""
    values = dict(values)
    for key in NUMBERS:
        value = values.get(key)
        if value is None and (key in NULLABLE or key not in values):
            continue
        if isinstance(value, str):
            try:
                value = int(value) if value.lstrip("-").isdigit() else float(value)
            except ValueError:
                raise UserError(key, f"expected a number, got {value!r}") from None
        if type(value) not in (int, float):
            raise UserError(key, f"expected a number, got {value!r}")
        values[key] = value
    for key in COUNTS:
        if values[key] < 1 or values[key] != int(values[key]):
            raise UserError(key, f"expected a whole number of at least 1, got {values[key]!r}")
        values[key] = int(values[key])
    return values


def from_trl_file(path: str, ranks: int = 1) -> tuple[str, Converted]:
    """Convert a file.

    Args:
        path: YAML or JSON.
        ranks: As for `convert`.

    Returns:
        The config as YAML, with omitted keys as comments, and the conversion.

    Raises:
        UserError: If the file is not a mapping, a key is unknown, or a loss has no counterpart.
    """
    if not Path(path).is_file():
        raise UserError(path, "file not found", "pass a TRL config as YAML or JSON")
    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(path, f"not valid YAML: {' '.join(str(error).split())}", "fix the file") from error
    if not isinstance(given, dict):
        raise UserError(path, f"expected keys and values, got {type(given).__name__}")
    for key in given:
        advice = did_you_mean(str(key), known_keys()).partition("available")[0]
        if advice and key not in known_keys() and key not in _training_arguments():
            raise UserError(f"{path}: {key}", "unknown to TRL's DPO script", advice.strip())
    converted = convert(given, ranks)
    notes = [f"# Converted from TRL's {Path(path).name}; for an adaptive twin, add --model.loss=adadpo."]
    notes += [f"# left out: {key} ({why})" for key, why in (converted.dropped | converted.needless).items()]
    notes += [f"# note: {text}" for text in converted.differs]
    return "\n".join(notes) + "\n" + yaml.safe_dump(converted.config, sort_keys=False), converted


def _training_arguments() -> set[str]:
    from dataclasses import fields

    from transformers import TrainingArguments

    return {each.name for each in fields(TrainingArguments)}
