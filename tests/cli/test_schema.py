"""The JSON Schema of a config of fit: up to date, true of what the parser takes, and strict where the parser is."""

import copy
import importlib.util
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from adadpo_lightning import callbacks
from adadpo_lightning.cli.parser import parse
from adadpo_lightning.losses import available_losses, loss_class
from tests.support.cli import CONFIGS, FIT_CONFIGS, parser_of
from tests.support.losses import loss_keys

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((CONFIGS / "schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
GOOD = {
    "trainer": {"max_epochs": 1, "callbacks": [{"class_path": "adadpo_lightning.callbacks.ExportHF"}]},
    "model": {
        "policy": {"path": "x", "lora": {"r": 8}},
        "loss": {"class_path": "adadpo_lightning.losses.AdaDPO", "init_args": {"beta": 0.1, "apply": "margin"}},
        "optimizer": {"lr": 1.0e-4, "betas": [0.9, 0.99]},
    },
    "data": {"train": [{"path": "x", "split": "train"}, "y.jsonl"], "max_length": 64},
}


def changed(path, value):
    """GOOD with one value changed or added."""
    config = copy.deepcopy(GOOD)
    *groups, name = path.split(".")
    node = config
    for group in groups:
        node = node[int(group) if group.isdigit() else group]
    node[name] = value
    return config


@pytest.fixture(scope="module")
def fit_parser():
    return parser_of("fit")


def test_the_committed_schema_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_schema", ROOT / "scripts/make_schema.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert (CONFIGS / "schema.json").read_text(encoding="utf-8") == module.schema(), "run make schema"


@pytest.mark.parametrize("path", FIT_CONFIGS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_shipped_configs_name_the_schema_and_fit_it(path):
    text = path.read_text(encoding="utf-8")
    name = text.partition("\n")[0].removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / name).resolve() == CONFIGS / "schema.json"
    VALIDATOR.validate(yaml.safe_load(text))


@pytest.mark.parametrize("key", [*loss_keys(), "mixture"])
def test_the_config_that_a_run_writes_fits(fit_parser, key):
    stem = "adadpo_sft_mixture" if key == "mixture" else key
    files = [CONFIGS / name for name in ("base.yaml", "model/lora.yaml", "strategy/fsdp2.yaml", f"loss/{stem}.yaml")]
    config = parse(fit_parser, [*(f"--config={file}" for file in files), "--model.policy.path=x", "--data.train=y"])
    VALIDATOR.validate(yaml.safe_load(fit_parser.dump(config)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("trainer.devices", [0, 1]),
        ("trainer.precision", "bf16-mixed"),
        ("trainer.strategy", {"class_path": "FSDP2", "init_args": {"replicas": 2}}),
        ("trainer.callbacks", [{"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}]),
        ("model.loss", "DPO"),
        ("model.loss", {"init_args": {"beta": 0.2}}),
        ("model.loss.init_args.beta", {"from": 0.1, "to": 0.01, "schedule": "cosine"}),
        ("model.loss.init_args.floor", {"from": 0.1, "to": 0.01}),
        ("model.loss", {"class_path": "mine.losses.Mine", "init_args": {"strength": 1}}),
        ("model.optimizer", "optimizer.yaml"),
        ("model.optimizer", {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}),
        ("model.optimizer", {"class_path": "adadpo_lightning.MuonWithAdamW", "init_args": {"adamw_lr": 0.1}}),
        ("model.optimizer", {"init_args": {"momentum": 0.5}}),
        ("model.policy.lora", None),
        ("seed_everything", False),
    ],
)
def test_what_the_parser_takes_is_valid(path, value):
    VALIDATOR.validate(GOOD)
    VALIDATOR.validate(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("optput_dir", "runs/x"),
        ("trainer.max_epoch", 1),
        ("trainer.max_epochs", "one"),
        ("trainer.precision", "bf16-mixd"),
        ("trainer.callbacks.0.class_path", "adadpo_lightning.callbacks.ExportHf"),
        ("trainer.callbacks.0.init_args", {"folder": "x"}),
        ("model.policy.pth", "x"),
        ("model.policy.lora.rank", 8),
        ("model.policy.dtype", "float8"),
        ("model.loss.class_path", "adadpo_lightning.losses.AdaDPOO"),
        ("model.loss.class_path", "AdaDPOO"),
        ("model.loss.init_args.bta", 0.1),
        ("model.loss.init_args.beta", "large"),
        ("model.loss.init_args.beta", {"from": 0.1}),
        ("model.loss.init_args.beta", {"from": 0.1, "to": 0.01, "schedule": "cubic"}),
        ("model.loss.init_args.apply", "both"),
        ("model.loss.init_args.apply", {"from": 0.1, "to": 0.01}),
        ("model.optimizer.lr", "fast"),
        ("model.optimizer.betas", [0.9]),
        ("model.optimizer", {"class_path": "adadpo_lightning.MuonWithAdamW", "init_args": {"adam_lr": 0.1}}),
        ("data.train.0.spilt", "train"),
        ("data.max_length", 64.5),
    ],
)
def test_misspelt_names_and_wrong_types_are_invalid(path, value):
    assert not VALIDATOR.is_valid(changed(path, value))


def test_the_schema_explains_every_loss_and_option():
    named = {made.get("title"): made for made in SCHEMA["definitions"]["PreferenceLoss"]["anyOf"]}
    for key in available_losses():
        made = loss_class(key)
        assert named[made.__name__]["description"]
        options = named[made.__name__]["properties"]["init_args"]["properties"]
        assert options.keys() == made.__dataclass_fields__.keys()
        assert all(option["description"] for option in options.values())
    titles = {made.get("title") for made in SCHEMA["definitions"]["Callback"]["anyOf"]}
    assert {name for name in callbacks.__all__ if not name.endswith("Error")} <= titles
    for group in ("model", "data"):
        assert all(option["description"] for option in SCHEMA["properties"][group]["properties"].values())
