"""TRL's configs: every key of its own classes is spoken for, and what comes out runs and means the same."""

import dataclasses

import pytest
import yaml

from adadpo_lightning.cli import main
from adadpo_lightning.convert.from_trl import SAME, TRL_DEFAULTS, convert, from_trl_file, known_keys
from tests.support.runs import run
from tests.support.tiny import make_rows, write_rows

trl = pytest.importorskip("trl")


def own_fields(config):
    from transformers import TrainingArguments

    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    return {field.name: field for field in dataclasses.fields(config) if field.name not in inherited}


def test_every_key_that_dpo_adds_is_spoken_for():
    # What has no rule is reported as left out; these are the ones that we know of.
    left_out = {"model_init_kwargs", "router_aux_loss_coef"}
    assert set(own_fields(trl.DPOConfig)) - known_keys() == left_out
    model = {field.name for field in dataclasses.fields(trl.ModelConfig)} - known_keys()
    assert model == {"lora_target_parameters", "lora_modules_to_save", "use_bnb_nested_quant", "bnb_4bit_quant_storage"}
    script = {field.name for field in dataclasses.fields(trl.ScriptArguments)} - known_keys()
    assert script == {"ignore_bias_buffers"}


def test_the_defaults_are_trls():
    fields = {field.name: field for kind in (trl.DPOConfig, trl.ScriptArguments) for field in dataclasses.fields(kind)}
    for name, value in TRL_DEFAULTS.items():
        default = fields[name].default
        if default is dataclasses.MISSING:
            default = fields[name].default_factory()
        if name != "bf16":  # null there, and then true
            assert default == value or str(getattr(default, "value", default)) == str(value), name


def test_values_arrive(tmp_path):
    given = {
        "model_name_or_path": "org/model",
        "dataset_name": "org/pairs",
        "eval_strategy": "steps",
        "eval_steps": 50,
        "learning_rate": 5e-7,
        "beta": 0.02,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 8,
        "warmup_steps": 0.1,
        "lr_scheduler_type": "cosine",
        "loss_type": ["sigmoid", "sft"],
        "loss_weights": [0.9, 0.1],
        "use_peft": True,
        "lora_r": 8,
        "padding_free": True,
        "use_weighting": True,
        "hub_model_id": "me/x",
    }
    (tmp_path / "dpo.yaml").write_text(yaml.safe_dump(given))
    text, parts = from_trl_file(str(tmp_path / "dpo.yaml"), ranks=4)
    config = yaml.safe_load(text)
    assert config["data"]["global_batch_size"] == 64
    assert config["data"]["val"] == {"path": "org/pairs", "split": "test"}
    assert config["trainer"]["val_check_interval"] == 400  # 50 steps of 8 micro-batches
    assert config["model"]["scheduler"] == {"name": "cosine", "warmup_ratio": 0.1}
    assert config["model"]["policy"]["lora"] == {"r": 8, "alpha": 32, "dropout": 0.05, "target_modules": "all-linear"}
    losses = config["model"]["loss"]["init_args"]
    assert [spec["class_path"].rpartition(".")[2] for spec in losses["losses"]] == ["DPO", "SFT"]
    assert losses["weights"] == [0.9, 0.1]
    assert losses["losses"][0]["init_args"]["beta"] == 0.02
    assert set(parts.dropped) == {"use_weighting", "hub_model_id"}
    assert set(parts.needless) == {"padding_free"}
    assert "# left out: use_weighting" in text


def test_a_converted_config_runs(tmp_path, model_dir, capsys):
    pairs = write_rows(tmp_path / "pairs.jsonl", make_rows(8))
    given = {
        "model_name_or_path": str(model_dir),
        "dataset_name": str(pairs),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 1,
        "max_length": 40,
        "bf16": False,
        "use_cpu": True,
        "output_dir": str(tmp_path / "out"),
        "loss_type": "ipo",
    }
    (tmp_path / "dpo.yaml").write_text(yaml.safe_dump(given))
    assert main(["from-trl", str(tmp_path / "dpo.yaml"), f"--output={tmp_path / 'ours.yaml'}"]) == 0
    assert "written" in capsys.readouterr().out
    assert run(["fit", f"--config={tmp_path / 'ours.yaml'}", "--trainer.enable_progress_bar=false"]) == 0
    saved = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    assert saved["model"]["loss"]["init_args"]["tau"] == 0.1
    assert saved["data"]["global_batch_size"] == 4
    assert saved["model"]["optimizer"]["lr"] == 1e-6
    assert saved["trainer"]["gradient_clip_val"] == 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss_type": "hinge"}, "loss_type: 'hinge' has no counterpart"),
        ({"betta": 0.1}, "did you mean 'beta'"),
        ([1], "expected keys and values"),
    ],
)
def test_what_cannot_be_converted_is_said(tmp_path, capsys, given, message):
    (tmp_path / "dpo.yaml").write_text(yaml.safe_dump(given))
    assert main(["from-trl", str(tmp_path / "dpo.yaml")]) == 2
    assert message in capsys.readouterr().err


def test_every_counterpart_is_an_option():
    from adadpo_lightning.cli.app import known_options

    known = {*known_options(), "trainer.strategy.timeout"}
    assert not [name for name in SAME.values() if name not in known]
    assert convert({}).config["data"]["global_batch_size"] == 8
