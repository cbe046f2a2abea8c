"""Convert the recipes of tests/fixtures/recipes.yaml and write what each lost as a page of the documentation."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml

from adadpo_lightning.convert.converted import Converted
from adadpo_lightning.convert.from_llama_factory import from_llama_factory_file
from adadpo_lightning.convert.from_trl import from_trl_file

RECIPES = Path(__file__).parent.parent / "tests/fixtures/recipes.yaml"


def recipes() -> list[dict[str, Any]]:
    """The recipes: name, source, kind, and settings or script."""
    found: list[dict[str, Any]] = yaml.safe_load(RECIPES.read_text(encoding="utf-8"))
    return found


def converted(recipe: dict[str, Any]) -> tuple[str, Converted]:
    """One recipe through its converter, by a file as a user has it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("recipe.py" if "script" in recipe else "recipe.yaml")
        path.write_text(recipe.get("script") or yaml.safe_dump(recipe["given"]), encoding="utf-8")
        if recipe["kind"] == "from-llama-factory":
            return from_llama_factory_file(str(path), recipe.get("ranks", 1))
        return from_trl_file(str(path), recipe.get("ranks", 1), recipe.get("trainer", "auto"))


def page() -> str:
    """The table, and for each recipe what was left out and what differs."""
    lines = ["# Public recipes, converted", ""]
    lines += [
        "Settings of public recipes, typed anew, and what `from-trl` and `from-llama-factory` make of them. Each",
        "converted config is parsed by `fit`, and takes a step on a small model, in the tests. Nothing here was",
        "trained at its real size.",
        "",
        "| recipe | loss | what it loses |",
        "|---|---|---|",
    ]
    details = []
    for recipe in recipes():
        _, made = converted(recipe)
        lost = ", ".join(f"`{key}`" for key in made.dropped) or "nothing"
        lines.append(f"| [{recipe['name']}](#{anchor(recipe['name'])}) | {loss_of(made)} | {lost} |")
        details += ["", f"## {recipe['name']}", "", f"Source: {recipe['source']}.", ""]
        details += [f"- left out `{key}`: {why}" for key, why in made.dropped.items()]
        details += [f"- {text}" for text in made.differs]
        if made.needless:
            details.append("- not needed: " + ", ".join(f"`{key}`" for key in made.needless))
    return "\n".join(lines + details) + "\n"


def anchor(title: str) -> str:
    """The anchor of a heading."""
    kept = "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -")
    return "-".join(kept.split())


def loss_of(made: Converted) -> str:
    """The loss and its options, in one line."""
    return _shown(made.config["model"]["loss"])


def _shown(spec: dict[str, Any]) -> str:
    name, options = spec["class_path"].rpartition(".")[2], spec.get("init_args", {})
    if name == "Mixture":
        parts = zip(options["weights"], options["losses"], strict=True)
        return " + ".join(f"{weight:g} {_shown(part)}" for weight, part in parts)
    return f"{name}({', '.join(f'{key} {value}' for key, value in options.items())})" if options else name
