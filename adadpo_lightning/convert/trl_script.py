"""Read the call of a TRL config in a Python script, without running the script: literals only."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

from adadpo_lightning.errors import UserError

CONFIGS = ("DPOConfig", "CPOConfig", "ORPOConfig", "SimPOConfig")
TRAINERS = ("DPOTrainer", "CPOTrainer", "ORPOTrainer", "SimPOTrainer")
# peft's names and defaults of the options of an adapter, and TRL's names for them.
LORA = {"r": ("lora_r", 8), "lora_alpha": ("lora_alpha", 8), "lora_dropout": ("lora_dropout", 0.0)}
LORA_OTHERS = {"target_modules": "lora_target_modules", "use_rslora": "use_rslora", "use_dora": "use_dora"}
LORA_OTHERS["modules_to_save"] = "lora_modules_to_save"


@dataclass
class Script:
    """What a file says.

    Args:
        given: Keys of TRL with their literal values.
        computed: Keys whose value is no literal, with its text and line.
        config: Name of the config class; None if the file is no script.
        notes: What else the reader should know.
    """

    given: dict[str, Any] = field(default_factory=dict)
    computed: dict[str, str] = field(default_factory=dict)
    config: str | None = None
    notes: list[str] = field(default_factory=list)

    def read(self, key: str, value: ast.expr) -> None:
        """Take a literal, or note what stands in its place."""
        try:
            self.given[key] = ast.literal_eval(_DtypeNames().visit(ast.parse(ast.unparse(value), mode="eval")))
        except (ValueError, TypeError):
            self.computed[key] = f"{ast.unparse(value)} (line {value.lineno})"


class _DtypeNames(ast.NodeTransformer):
    """Replaces ``torch.bfloat16`` by its name."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:  # the name is that of the node
        """Replace an attribute of torch."""
        return ast.Constant(node.attr) if isinstance(node.value, ast.Name) and node.value.id == "torch" else node


def read_script(text: str, path: str) -> Script:
    """Read the one call of a config, and of the trainer if it names model, data or adapter.

    Args:
        text: The script.
        path: Its path, for messages.

    Raises:
        UserError: If it is not Python, or has no call of a config, or several.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UserError(path, f"not valid Python: {error}", "fix the script") from error
    calls = _calls(tree)
    configs = [(name, call) for name, call in calls if name in CONFIGS]
    trainers = [(name, call) for name, call in calls if name in TRAINERS]
    if not configs and len(trainers) == 1 and "args" not in {keyword.arg for keyword in trainers[0][1].keywords}:
        script = Script(config=trainers[0][0].replace("Trainer", "Config"))  # all of its defaults
    elif len(configs) == 1:
        script = _config(*configs[0])
    else:
        lines = ", ".join(f"{name} in line {call.lineno}" for name, call in configs) or "none"
        fix = (
            "pass a file with one" if configs else "a script that parses its command line has none: pass those as YAML"
        )
        raise UserError(path, f"expected one call of {', '.join(CONFIGS)}, found {lines}", fix)
    if len(trainers) == 1:
        _trainer(trainers[0][1], script)
    return script


def _config(name: str, call: ast.Call) -> Script:
    """The keywords of a config's call; its only positional argument is the output directory."""
    script = Script(config=name)
    for position, value in enumerate(call.args):
        script.read("output_dir" if position == 0 else f"argument {position + 1}", value)
    _keywords(call, script)
    return script


def _calls(tree: ast.Module) -> list[tuple[str, ast.Call]]:
    """All calls by the name that was imported, in the order of their lines."""
    imported = {
        alias.asname: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname is not None
    }
    found = [(_name(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return sorted(((imported.get(name, name), call) for name, call in found), key=lambda each: each[1].lineno)


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _keywords(call: ast.Call, script: Script) -> None:
    for keyword in call.keywords:
        if keyword.arg is None:  # **options
            text = ast.unparse(keyword.value)
            script.notes.append(f"**{text} (line {keyword.value.lineno}) was not read: add its keys with --set")
        else:
            script.read(keyword.arg, keyword.value)


def _trainer(call: ast.Call, script: Script) -> None:
    """Model, data and adapter, where the trainer's call itself says them."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if call.args:
        given["model"] = call.args[0]
    if "model" in given:
        script.read("model_name_or_path", given["model"])
    data = given.get("train_dataset")
    if isinstance(data, ast.Call) and _name(data.func) == "load_dataset":
        names = ("dataset_name", "dataset_config")
        keys = {"path": "dataset_name", "name": "dataset_config", "split": "dataset_train_split"}
        for key, value in zip(names, data.args, strict=False):
            script.read(key, value)
        for keyword in data.keywords:
            if keyword.arg in keys:
                script.read(keys[keyword.arg], keyword.value)
            else:
                script.notes.append(f"load_dataset's {keyword.arg} was not read")
    elif data is not None:
        script.read("dataset_name", data)
    adapter = given.get("peft_config")
    if isinstance(adapter, ast.Call) and _name(adapter.func) == "LoraConfig":
        _adapter(adapter, script)
    elif adapter is not None and not (isinstance(adapter, ast.Constant) and adapter.value is None):
        script.computed["use_peft"] = f"{ast.unparse(adapter)} (line {adapter.lineno})"


def _adapter(call: ast.Call, script: Script) -> None:
    script.given["use_peft"] = True
    options = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}
    for name, (key, default) in LORA.items():
        script.given[key] = default
        if name in options:
            del script.given[key]
            script.read(key, options.pop(name))
    for name, value in options.items():
        if name not in ("task_type", "bias", "inference_mode"):
            script.read(LORA_OTHERS.get(name, f"LoraConfig.{name}"), value)
