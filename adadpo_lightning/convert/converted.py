"""What a conversion yields, and what every converter does: read the file, check the numbers, write the result."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from adadpo_lightning.errors import UserError
from adadpo_lightning.losses.registry import loss_class

# Stands for null, "never truncate": no text has that many tokens.
NO_LIMIT = 2**31 - 1
SHOWN = 200  # characters of an odd value in a message


@dataclass
class Converted:
    """A converted config, and the keys of the source without a place in it.

    Args:
        config: The nested config.
        dropped: Keys without a counterpart, with the reason.
        needless: Keys that need no counterpart, with the reason.
        differs: Differences in meaning, one sentence each.
    """

    config: dict[str, Any] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    needless: dict[str, str] = field(default_factory=dict)
    differs: list[str] = field(default_factory=list)

    def put(self, name: str, value: Any) -> None:
        """Set a dotted key."""
        *sections, last = name.split(".")
        place = self.config
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value

    def as_yaml(self, heading: str) -> str:
        """The config as YAML, after comments with the heading and with all that was left out or differs."""
        lines = [heading]
        lines += [f"left out: {key} ({why})" for key, why in (self.dropped | self.needless).items()]
        lines += [f"note: {text}" for text in self.differs]
        comments = "".join(f"# {' '.join(line.split())}\n" for line in lines)
        return comments + yaml.safe_dump(self.config, sort_keys=False)


def spec(key: str, **options: Any) -> dict[str, Any]:
    """A loss as a config has it: the class that is registered under `key`, with all of its options.

    Raises:
        UserError: If there is no such loss.
    """
    return _spec(loss_class(key).__name__, options)


def _spec(name: str, options: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": f"adadpo_lightning.losses.{name}", **({"init_args": options} if options else {})}


def mixture(specs: list[dict[str, Any]], weights: list[float]) -> dict[str, Any]:
    """The weighted sum of losses; one loss of weight 1 is itself."""
    if len(specs) == 1 and weights[0] == 1:
        return specs[0]
    return _spec("Mixture", {"losses": specs, "weights": weights})


def read_text(path: str, wanted: str) -> str:
    """The text of a file.

    Raises:
        UserError: If it does not exist or is not UTF-8.
    """
    if not Path(path).is_file():
        raise UserError(path, "file not found", f"pass {wanted}")
    try:
        return Path(path).read_text(encoding="utf-8")
    except ValueError as error:
        raise UserError(path, f"not UTF-8: {error}", "save the file as UTF-8") from error


def mapping_of(text: str, path: str) -> dict[str, Any]:
    """Keys and values of YAML or JSON text.

    Raises:
        UserError: If it is neither, or no mapping.
    """
    try:
        given = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(path, f"not valid YAML: {' '.join(str(error).split())}", "fix the file") from error
    if not isinstance(given, dict):
        raise UserError(path, f"expected keys and values, got {type(given).__name__}")
    return {str(key): value for key, value in given.items()}


def checked_numbers(
    values: dict[str, Any], numbers: Iterable[str], nullable: Iterable[str], counts: Iterable[str]
) -> dict[str, Any]:
    """Check the numbers, and convert those that YAML 1.1 reads as text (``5e-7``), as transformers' parser does.

    Raises:
        UserError: If one is not a number, or a count is not a whole number of at least 1.
    """
    values = dict(values)
    for key in numbers:
        value = values.get(key)
        if value is None and (key in nullable or key not in values):
            continue
        values[key] = _number(key, value)
    for key in counts:
        if values[key] < 1 or values[key] != int(values[key]):
            raise UserError(key, f"expected a whole number of at least 1, got {shown(values[key])}")
        values[key] = int(values[key])
    return values


def _number(key: str, value: Any) -> int | float:
    if isinstance(value, str):
        try:
            value = int(value) if value.lstrip("-").isdigit() else float(value)
        except ValueError:
            raise UserError(key, f"expected a number, got {shown(value)}") from None
    if type(value) not in (int, float):
        raise UserError(key, f"expected a number, got {shown(value)}")
    if not abs(value) <= sys.float_info.max:  # nor NaN, nor an integer that no float holds
        raise UserError(key, f"expected a finite number, got {shown(value)}")
    return value  # type: ignore[no-any-return]  # the type was checked above


def names_of(key: str, value: Any) -> list[str]:
    """A list of names, which may be written with commas.

    Raises:
        UserError: If it is neither.
    """
    if isinstance(value, str):
        return [name.strip() for name in value.split(",")]
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise UserError(key, f"expected a name or a list of names, got {shown(value)}")
    return list(value)


def shown(value: Any) -> str:
    """An odd value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def deliver(text: str, converted: Converted, output: str | None) -> None:
    """Print a converted config, or write it and print what was left out.

    Args:
        text: The config as YAML.
        converted: Where it comes from.
        output: File to write; None prints.
    """
    if output is None:
        print(text)
        return
    Path(output).write_text(text, encoding="utf-8")
    for key, why in converted.dropped.items():
        print(f"left out: {key} ({why})")
    print("\n".join([*converted.differs, f"written to {output}"]))
