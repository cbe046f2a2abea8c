"""Write configs/schema.json, the JSON Schema of a config of ``fit``, which editors and validators read.

It follows from the options of the parser. Nothing is required, because configs are composed. Lightning's own options
are described in its documentation.

Usage: python scripts/make_schema.py
"""

from __future__ import annotations

import json
import types
from argparse import SUPPRESS
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from datetime import timedelta
from importlib import import_module
from inspect import isclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from lightning.pytorch.strategies import Strategy
from torch.optim import Optimizer

import adadpo_lightning
from adadpo_lightning import callbacks, strategies
from adadpo_lightning.cli.parser import build_parser
from adadpo_lightning.cli.registry import find_command
from adadpo_lightning.compat import actions_of, type_of
from adadpo_lightning.losses import Mixture, PreferenceLoss, Schedule, available_losses, loss_class
from adadpo_lightning.losses.schedule import KEYS, SHAPES, Number
from adadpo_lightning.training.muon import MuonWithAdamW
from adadpo_lightning.training.optim import DefaultAdamW, OptimizerConfig

FILE = Path(__file__).parent.parent / "configs/schema.json"
SIMPLE = {
    **{bool: "boolean", int: "integer", float: "number", str: "string"},
    **{type(None): "null", Path: "string", timedelta: "string", dict: "object"},
}
# Of a class of another package, the schema knows only that it has a name; a loss needs its full one.
OTHER_CLASS = r"^(?!adadpo_lightning\.)"
OTHER_LOSS = OTHER_CLASS + r".*\."
SITE = "https://lightning.ai/docs/pytorch/stable"
LIGHTNINGS = {
    "trainer": f"Options of Lightning's Trainer: {SITE}/common/trainer.html",
    "checkpoint": f"Options of ModelCheckpoint: {SITE}/api/lightning.pytorch.callbacks.ModelCheckpoint.html",
    "ckpt_path": "Checkpoint to resume from: a path, or `last` for the latest valid one.",
    "weights_only": "Whether to read only tensors and plain types from `ckpt_path`.",
}


def schema() -> str:
    """The schema as JSON, of draft 7, which every editor reads."""
    parser = build_parser("fit", find_command("fit").load())
    definitions: dict[str, Any] = {}
    root = options(parser, definitions)
    for dotted, group in parser.groups.items():
        if (node := at(root, dotted)) is not None:
            node["description"] = LIGHTNINGS.get(dotted, f"{group.title}.")
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Config of adadpo-lightning fit"}
    return json.dumps({**head, **root, "definitions": definitions}, indent=1) + "\n"


def options(parser: ArgumentParser, definitions: dict[str, Any], hints: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object with the options of a parser; those with dots in their names are nested.

    Args:
        parser: The parser.
        definitions: Schemas of classes by name, which grows.
        hints: Types that win over those that the parser found.
    """
    root = mapping()
    for action in actions_of(parser):
        found = type_of(action)
        if found is None or action.dest.endswith(".help"):
            continue
        *groups, name = action.dest.split(".")
        node = root
        for group in groups:
            node = node["properties"].setdefault(group, {**mapping(), "type": ["object", "string"]})
        described = node["properties"][name] = of_type((hints or {}).get(name, found), definitions)
        first = (groups or [name])[0]
        if text := LIGHTNINGS.get(name) if first in LIGHTNINGS else " ".join((action.help or "").split()):
            described["description"] = text
        if action.default != SUPPRESS and is_plain(action.default):
            described["default"] = action.default
    return root


SCHEDULE = {
    "type": "object",
    "description": " ".join((Schedule.__doc__ or "").split(";")[0].split()) + ".",
    "properties": {
        **{key: {"type": "number"} for key in KEYS[:2]},
        KEYS[2]: {"enum": list(SHAPES), "default": SHAPES[0]},
    },
    "required": list(KEYS[:2]),
    "additionalProperties": False,
}


def mapping() -> dict[str, Any]:
    """An object of which no key is known yet."""
    return {"type": "object", "properties": {}, "additionalProperties": False}


def at(node: dict[str, Any] | None, dotted: str) -> dict[str, Any] | None:
    """The schema of a group of options, if there is one."""
    for name in dotted.split("."):
        node = (node or {}).get("properties", {}).get(name)
    return node


def is_plain(value: object) -> bool:
    """Whether a default can be written in JSON; null says nothing."""
    return isinstance(value, (bool, int, float, str))


def of_type(found: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a type."""
    origin, args = get_origin(found), get_args(found)
    if origin in (Union, types.UnionType):
        number, schedule = get_args(Number)
        parts = [Schedule if arg == schedule and number in args else arg for arg in args]
        return any_of([of_type(part, definitions) for part in parts])
    if found is Schedule:
        definitions[found.__name__] = SCHEDULE
        return any_of([{"$ref": f"#/definitions/{found.__name__}"}])
    if origin is Callable:
        return of_optimizer(definitions)
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (list, Iterable):
        return {"type": "array", "items": of_type(args[0], definitions)}
    if origin is tuple:
        items = [of_type(arg, definitions) for arg in args]
        return {"type": "array", "items": items, "minItems": len(items), "maxItems": len(items)}
    if (simple := SIMPLE.get(origin or found)) is not None:
        return {"type": simple}
    if not isclass(found):
        raise TypeError(f"no schema for an option of type {found}")
    if found.__name__ not in definitions:
        definitions[found.__name__] = {}  # a class may have options of its own type
        definitions[found.__name__] = of_class(found, definitions)
    return any_of([{"$ref": f"#/definitions/{found.__name__}"}])  # beside a bare $ref, draft 7 ignores a description


def any_of(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One of several schemas; bare types become one list."""
    bare = list(dict.fromkeys(part["type"] for part in parts if part.keys() == {"type"}))
    rest = [inner for part in parts if part.keys() != {"type"} for inner in part.get("anyOf", [part])]
    if not rest:
        return {"type": bare if len(bare) > 1 else bare[0]}
    return {"anyOf": [*rest, *({"type": name} for name in bare)]}


def of_optimizer(definitions: dict[str, Any]) -> dict[str, Any]:
    """AdamW by its numbers alone, or any optimizer by its class."""
    other = {"class_path": {"type": "string", "pattern": OTHER_CLASS}, "init_args": {"type": "object"}}
    return any_of(
        [
            of_type(OptimizerConfig, definitions),
            *(named(made, definitions) for made in (MuonWithAdamW, DefaultAdamW)),
            {"type": "object", "properties": other, "required": ["class_path"], "additionalProperties": False},
            {"type": "object", "properties": {"init_args": {"type": "object"}}, "additionalProperties": False},
        ]
    )


def of_class(found: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """A dataclass by its options, or by a file of them; any other class by its name and the options under it."""
    if is_dataclass(found):
        return {**arguments(found, definitions), "type": ["object", "string"]}
    known = known_classes(found)
    spec = {"class_path": {"type": "string", "pattern": OTHER_LOSS if found is PreferenceLoss else OTHER_CLASS}}
    others = {**spec, "init_args": {"type": "object"}, "dict_kwargs": {"type": "object"}}
    names = [name for made in known for name in names_of(made)]
    return any_of(
        [
            *(named(made, definitions) for made in known),
            {"type": "object", "properties": others, "required": ["class_path"], "additionalProperties": False},
            # Options alone, for the class that a config before this one names.
            {"type": "object", "properties": {"init_args": {"type": "object"}}, "additionalProperties": False},
            {"enum": names} if names else {"type": "string"},
            *([spec["class_path"]] if names else []),
        ]
    )


def known_classes(base: type) -> list[type]:
    """The classes of this package that an option of this type may name."""
    if base is PreferenceLoss:
        own = [loss_class(key) for key in available_losses()]
        return [*(made for made in own if made.__module__.startswith("adadpo_lightning.")), Mixture]
    room = {Callback: callbacks, Strategy: strategies}.get(base)
    found = [getattr(room, name) for name in room.__all__] if room is not None else []
    return [made for made in found if issubclass(made, base)]


def names_of(made: type) -> list[str]:
    """How a config may name a class of this package: the shipped configs' way, in short, and as a run writes it."""
    *package, _ = made.__module__.split(".")
    root = [f"adadpo_lightning.{made.__name__}"] if made.__name__ in adadpo_lightning.__all__ else []
    room = ".".join(package)
    short = [f"{room}.{made.__name__}"] if hasattr(import_module(room), made.__name__) else []
    return [*short, made.__name__, *root, f"{made.__module__}.{made.__name__}"]


def named(made: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """A class of this package with its options."""
    spec = {"class_path": {"enum": names_of(made)}, "init_args": arguments(made, definitions)}
    text = (made.__doc__ or "").partition("\n")[0]
    return {
        **{"type": "object", "title": made.__name__, "description": text},
        **{"properties": spec, "required": ["class_path"], "additionalProperties": False},
    }


def arguments(made: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """The options of a class."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(made, fail_untyped=False, skip={"params"} if issubclass(made, Optimizer) else set())
    # jsonargparse 4.53 does not resolve the fields of a dataclass whose base is none, as those of losses are.
    hints = get_type_hints(made) if is_dataclass(made) else {}
    if issubclass(made, PreferenceLoss):
        hints = {name: Number if hint is float else hint for name, hint in hints.items()}
    return options(parser, definitions, hints)


def main() -> None:
    """Write it."""
    FILE.write_text(schema(), encoding="utf-8")
    print(f"written: {FILE}")


if __name__ == "__main__":
    main()
