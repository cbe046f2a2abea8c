"""Convert a config or script of TRL into a config of this package, and report what has no counterpart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

import yaml

from adadpo_lightning.convert import training_arguments, trl_rules
from adadpo_lightning.convert.converted import Converted, checked_numbers, mapping_of, read_text
from adadpo_lightning.convert.trl_keys import (
    BY_RULE,
    COUNTS,
    DEFAULTS,
    NEEDLESS,
    NEUTRAL,
    NULLABLE,
    NUMBERS,
    OLD_NAMES,
    SAME,
    TRL_DEFAULTS,
    Trainer,
    known_keys,
)
from adadpo_lightning.convert.trl_losses import LOSS_OF
from adadpo_lightning.convert.trl_script import Script, read_script
from adadpo_lightning.errors import UserError, did_you_mean

CONFIG_NAMES: dict[Trainer, str] = {
    "dpo": "DPOConfig",
    "cpo": "CPOConfig",
    "orpo": "ORPOConfig",
    "simpo": "SimPOConfig",
}
# Keys that only one trainer's config has.
OWN_KEYS: dict[str, Trainer] = {
    **dict.fromkeys(("cpo_alpha", "simpo_gamma"), "cpo"),
    **dict.fromkeys(("gamma_beta_ratio", "sft_weight"), "simpo"),
}
# A name that says which trainer a config without its own keys is for.
SAID = re.compile(r"(?<![a-z])(orpo|cpo|simpo)(?![a-z])", re.IGNORECASE)
# Without these a config is still right: the run asks for them, or only their names are at stake.
ASKED_LATER = ("model_name_or_path", "model_revision", "dataset_name", "output_dir")


def convert(given: dict[str, Any], ranks: int = 1, trainer: Trainer = "dpo") -> Converted:
    """Convert a TRL config (the trainer's config, ModelConfig and ScriptArguments in one mapping).

    Args:
        given: The config.
        ranks: Number of devices, for the global batch size.
        trainer: The trainer whose config it is.

    Returns:
        The config of this package, and notes.

    Raises:
        UserError: If a loss has no counterpart, or a numeric option is not a number.
    """
    given = {OLD_NAMES.get(key, key): value for key, value in given.items()}
    given = trl_rules.with_model_options(given)
    values = checked_numbers(TRL_DEFAULTS | DEFAULTS[trainer] | given, NUMBERS, NULLABLE, COUNTS)
    out = Converted()
    for key, name in SAME.items():
        if values.get(key) is not None:
            out.put(name, values[key])
    out.put("model.loss", LOSS_OF[trainer](values, out))
    training_arguments.optimization(values, ranks, out)
    training_arguments.duration(values, out)
    trl_rules.model(values, trainer, out)
    trl_rules.data(values, out)
    for key, value in given.items():
        if key in NEEDLESS:
            out.needless[key] = NEEDLESS[key]
        elif key in NEUTRAL and value != NEUTRAL[key]:
            out.dropped[key] = f"{value} has no counterpart"
        elif key.startswith("hub_"):
            out.dropped[key] = "nothing is uploaded"
        elif key not in known_keys():
            out.dropped[key] = "no counterpart"
    if given.get("disable_dropout") is False:
        out.dropped["disable_dropout"] = "false: the model's own dropout is always off here"
    return out


def from_trl_file(
    path: str, ranks: int = 1, trainer: str = "auto", settings: Sequence[str] = ()
) -> tuple[str, Converted]:
    """Convert a file.

    Args:
        path: YAML, JSON, or a Python script with a call of one of the configs.
        ranks: As for `convert`.
        trainer: As for `convert`; ``auto`` takes the class that a script calls, or what the keys of YAML say.
        settings: ``KEY=VALUE`` in TRL's terms, which replace those of the file.

    Returns:
        The config as YAML, with omitted keys as comments, and the conversion.

    Raises:
        UserError: If the file is not a mapping, a key is unknown, a loss has no counterpart, or a script computes a
            value that the result depends on.
    """
    text = read_text(path, "a TRL config as YAML or JSON, or a Python script")
    is_script = Path(path).suffix == ".py"
    script = read_script(text, path) if is_script else Script(mapping_of(text, path))
    given = script.given | _settings(settings)
    for key in () if is_script else given:
        advice = did_you_mean(key, known_keys()).partition("available")[0]
        if advice and not key.startswith("hub_") and key not in known_keys() | _training_arguments():
            raise UserError(f"{path}: {key}", "unknown to TRL's DPO script", advice.strip())
    open_ones = {key: value for key, value in script.computed.items() if key not in given}
    if blocking := {key: value for key, value in open_ones.items() if _matters(key)}:
        found = "".join(f"\n  {key} = {value}" for key, value in blocking.items())
        options = " ".join(f"{key}=VALUE" for key in blocking)
        raise UserError(path, f"values that only running the script would show:{found}\n", f"add --set {options}")
    chosen = _trainer_of(trainer, script, given, path)
    converted = convert(given, ranks, chosen)
    converted.dropped |= {key: f"{value}: only running the script would show it" for key, value in open_ones.items()}
    converted.differs += script.notes
    converted.differs.insert(0, f"read as TRL's {CONFIG_NAMES[chosen]}")
    heading = f"Converted from {Path(path).name}"
    return converted.as_yaml(f"{heading}; for an adaptive twin, change the loss to its Ada twin."), converted


def _settings(settings: Sequence[str]) -> dict[str, Any]:
    found = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or not key:
            raise UserError("--set", f"expected KEY=VALUE, got {setting!r}")
        found[key] = yaml.safe_load(value)
    return found


def _matters(key: str) -> bool:
    """Whether the result would be wrong, rather than incomplete, without this key's value."""
    return key not in ASKED_LATER and (key in SAME or key in BY_RULE or key in NEUTRAL or key in OLD_NAMES)


def _trainer_of(asked: str, script: Script, given: dict[str, Any], path: str) -> Trainer:
    """Whose config it is.

    Raises:
        UserError: If a name is unknown, or only the file's name says that it is not for `DPOTrainer`.
    """
    names = get_args(Trainer)
    if asked != "auto" and asked not in names:
        raise UserError("--trainer", f"expected one of auto, {', '.join(names)}, got {asked!r}")
    if asked != "auto":
        return cast("Trainer", asked)
    if script.config is not None:
        return next(trainer for trainer, name in CONFIG_NAMES.items() if name == script.config)
    if given.get("loss_type") in ("simpo", "alphapo"):
        return "cpo"
    if own := next((OWN_KEYS[key] for key in given if key in OWN_KEYS), None):
        return own
    texts = (
        "/".join(Path(path).absolute().parts[-3:]),
        *(str(given.get(key)) for key in ("output_dir", "run_name", "hub_model_id")),
    )
    if said := next((found for text in texts if (found := SAID.search(text))), None):
        problem = f"the keys are those of DPOConfig too, but {said.string!r} says {said.group().lower()}"
        raise UserError(path, problem, f"add --trainer {said.group().lower()} or --trainer dpo")
    return "dpo"


def _training_arguments() -> set[str]:
    from dataclasses import fields

    from transformers import TrainingArguments

    return {each.name for each in fields(TrainingArguments)}
