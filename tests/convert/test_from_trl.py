"""TRL's configs: every key of its own classes is spoken for, and what comes out runs and means the same."""

import dataclasses

import pytest
import yaml

from adadpo_lightning.cli import main
from adadpo_lightning.convert.converted import NO_LIMIT
from adadpo_lightning.convert.from_trl import convert, from_trl_file
from adadpo_lightning.convert.trl_keys import DEFAULTS, NUMBERS, SAME, TRL_DEFAULTS, known_keys
from adadpo_lightning.errors import UserError
from tests.support.runs import run
from tests.support.tiny import make_rows, write_rows

trl = pytest.importorskip("trl")


from trl.experimental.cpo import CPOConfig  # noqa: E402
from trl.experimental.orpo import ORPOConfig  # noqa: E402

KINDS = (trl.DPOConfig, trl.ModelConfig, trl.ScriptArguments)


def own_fields(config):
    from transformers import TrainingArguments

    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    return {field.name: field for field in dataclasses.fields(config) if field.name not in inherited}


def test_every_key_that_dpo_adds_is_spoken_for():
    for config in (trl.DPOConfig, CPOConfig, ORPOConfig):
        assert set(own_fields(config)) - known_keys() == set(), config
    # What has no rule is reported as left out; these are the ones that we know of.
    model = {field.name for field in dataclasses.fields(trl.ModelConfig)} - known_keys()
    assert model == {"lora_target_parameters", "use_bnb_nested_quant", "bnb_4bit_quant_storage"}
    script = {field.name for field in dataclasses.fields(trl.ScriptArguments)} - known_keys()
    assert script == {"ignore_bias_buffers"}


@pytest.mark.parametrize(
    ("trainer", "kinds"), [("dpo", KINDS), ("cpo", (*KINDS, CPOConfig)), ("orpo", (*KINDS, ORPOConfig))]
)
def test_the_defaults_are_trls(trainer, kinds):
    fields = {field.name: field for kind in kinds for field in dataclasses.fields(kind)}
    for name, value in (TRL_DEFAULTS | DEFAULTS[trainer]).items():
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
        "hub_model_id": "me/x",
    }
    (tmp_path / "dpo.yaml").write_text(yaml.safe_dump(given))
    text, parts = from_trl_file(str(tmp_path / "dpo.yaml"), ranks=4)
    config = yaml.safe_load(text)
    assert config["data"]["global_batch_size"] == 64
    assert config["data"]["val"] == {"path": "org/pairs", "split": "test"}
    assert config["trainer"]["val_check_interval"] == 400  # 50 steps of 8 micro-batches
    assert config["model"]["scheduler"] == {"name": "cosine", "warmup_ratio": 0.1}
    assert config["model"]["policy"]["lora"] == {"r": 8, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"}
    losses = config["model"]["loss"]["init_args"]
    assert [spec["class_path"].rpartition(".")[2] for spec in losses["losses"]] == ["DPO", "SFT"]
    assert losses["weights"] == [0.9, 0.1]
    assert losses["losses"][0]["init_args"]["beta"] == 0.02
    assert set(parts.dropped) == {"hub_model_id"}
    assert set(parts.needless) == {"padding_free"}
    assert "# left out: hub_model_id" in text


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
    assert saved["model"]["optimizer"]["init_args"]["lr"] == 1e-6
    assert saved["trainer"]["gradient_clip_val"] == 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss_type": "aot"}, "loss_type: 'aot' has no counterpart: it sorts the pairs of a batch"),
        ({"loss_type": "hing"}, "loss_type: 'hing' is no loss of DPOConfig"),
        ({"loss_type": "sigmoid", "loss_weights": [1, 2]}, "loss_weights: expected one weight for each of 1 losses"),
        ({"betta": 0.1}, "did you mean 'beta'"),
        ([1], "expected keys and values"),
    ],
)
def test_what_cannot_be_converted_is_said(tmp_path, capsys, given, message):
    (tmp_path / "dpo.yaml").write_text(yaml.safe_dump(given))
    assert main(["from-trl", str(tmp_path / "dpo.yaml")]) == 2
    assert message in capsys.readouterr().err


def test_every_counterpart_is_an_option():
    from adadpo_lightning.cli.fit_options import known_options

    known = {*known_options(), "trainer.strategy.timeout"}
    assert not [name for name in SAME.values() if name not in known]
    assert convert({}).config["data"]["global_batch_size"] == 8


def at(config, name):
    for part in name.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        ({"data_seed": 0}, "data.seed", 0),
        ({"seed": 0}, "data.seed", 0),
        ({"seed": 7, "data_seed": None}, "data.seed", 7),
        ({"max_length": None}, "data.max_length", NO_LIMIT),
        ({}, "data.max_length", 1024),
        ({"max_grad_norm": None}, "trainer.gradient_clip_val", None),
        ({"max_grad_norm": 0}, "trainer.gradient_clip_val", 0),
        ({"max_steps": 0}, "trainer.max_epochs", 3),
        ({"max_steps": 100, "num_train_epochs": 0.5}, "trainer.max_epochs", -1),
        ({"max_steps": 100, "logging_steps": 0.1}, "trainer.log_every_n_steps", 10),
        ({"logging_steps": 0.1}, "trainer.log_every_n_steps", 10),
        ({"max_steps": 100, "save_steps": 0.25}, "checkpoint.every_n_train_steps", 25),
        ({"save_strategy": "epoch"}, "checkpoint.every_n_epochs", 1),
        ({"save_total_limit": None}, "checkpoint.save_top_k", -1),
        ({"save_total_limit": 0}, "checkpoint.save_top_k", -1),
        ({"save_total_limit": 3}, "checkpoint.monitor", "step"),
        ({"resume_from_checkpoint": True}, "auto_resume", True),
        ({"bf16": None}, "trainer.precision", "bf16-mixed"),
        ({"bf16": None, "fp16": True}, "trainer.precision", "16-mixed"),
        ({"bf16": False}, "trainer.precision", "32-true"),
        ({"dtype": None}, "model.policy.dtype", "auto"),
        ({"learning_rate": "5e-7"}, "model.optimizer.lr", 5e-7),
        ({"warmup_ratio": 0.1, "warmup_steps": 100}, "model.scheduler", {"warmup_ratio": 0.0, "warmup_steps": 100}),
        ({"warmup_ratio": None}, "model.scheduler", {"warmup_ratio": 0.0, "warmup_steps": 0}),
        ({"warmup_steps": 0, "warmup_ratio": 0.2}, "model.scheduler.warmup_ratio", 0.2),
        ({"use_peft": True, "lora_dropout": 0}, "model.policy.lora.dropout", 0.0),
        ({"use_peft": True, "disable_dropout": False}, "model.policy.lora.dropout", 0.05),
        ({"use_peft": True, "use_dora": True}, "model.policy.lora.peft", {"use_dora": True}),
        (
            {"use_peft": True, "lora_modules_to_save": ["a"]},
            "model.policy.lora.peft.modules_to_save",
            ["a"],
        ),
        ({"torch_dtype": "bfloat16"}, "model.policy.dtype", "bfloat16"),
        ({"model_init_kwargs": {"dtype": "bfloat16", "revision": "v2"}}, "model.policy.revision", "v2"),
        ({"sync_ref_model": True}, "model.reference", "synced"),
        ({"sync_ref_model": True}, "model.sync", {"alpha": 0.6, "every_n_steps": 512}),
        ({"sync_ref_model": True, "ref_model_mixup_alpha": 1.0}, "model.sync.alpha", 1.0),
        ({"ld_alpha": 1.0}, "model.loss.class_path", "adadpo_lightning.losses.DPO"),
        ({"label_smoothing": 0.1}, "model.loss.init_args.label_smoothing", 0.0),
        ({"gradient_checkpointing": False}, "model.policy.gradient_checkpointing", False),
        ({"weight_decay": 0}, "model.optimizer.weight_decay", 0),
        ({"train_sampling_strategy": "sequential"}, "data.shuffle", False),
    ],
)
def test_zero_false_null_and_fractions_keep_their_meaning(given, name, expected):
    found = at(convert(given).config, name)
    if isinstance(expected, dict):
        assert expected.items() <= found.items()
    else:
        assert found == expected
        assert type(found) is type(expected)


def test_max_steps_of_0_is_unset():
    assert "max_steps" not in convert({"max_steps": 0}).config["trainer"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"eval_steps": 0.1}, {"val_check_interval": pytest.approx(0.3), "check_val_every_n_epoch": 1}),
        ({"eval_steps": 0.5, "num_train_epochs": 4}, {"val_check_interval": 1.0, "check_val_every_n_epoch": 2}),
        ({"eval_steps": 0.1, "max_steps": 200}, {"val_check_interval": 80, "check_val_every_n_epoch": None}),
        ({"eval_steps": 50}, {"val_check_interval": 200, "check_val_every_n_epoch": None}),
        ({"eval_steps": None, "logging_steps": 5}, {"val_check_interval": 20, "check_val_every_n_epoch": None}),
        ({"eval_steps": 0, "logging_steps": 5}, {"val_check_interval": 20, "check_val_every_n_epoch": None}),
        ({"eval_strategy": "epoch"}, {"val_check_interval": 1.0}),
        ({"eval_strategy": False}, {"limit_val_batches": 0}),  # how YAML 1.1 reads an unquoted no
        ({"eval_strategy": "no"}, {"limit_val_batches": 0}),
    ],
)
def test_validation_comes_as_often_as_trl_has_it(given, expected):
    base = {"dataset_name": "org/pairs", "eval_strategy": "steps", "gradient_accumulation_steps": 4}
    found = convert(base | given).config
    assert expected.items() <= found["trainer"].items()
    assert ("val" in found["data"]) is ("limit_val_batches" not in expected)


def test_a_local_file_has_no_test_split(tmp_path):
    path = write_rows(tmp_path / "pairs.jsonl", make_rows(4))
    found = convert({"dataset_name": str(path), "eval_strategy": "steps", "eval_steps": 5})
    assert found.config["data"]["train"] == {"path": str(path)}
    assert "val" not in found.config["data"]
    assert found.config["trainer"]["limit_val_batches"] == 0
    assert "has no test split; set data.val or data.val_size" in found.differs[0]


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"save_strategy": "best"}, "save_strategy"),
        ({"resume_from_checkpoint": "out/checkpoint-500"}, "resume_from_checkpoint"),
        ({"disable_dropout": False}, "disable_dropout"),
        ({"use_peft": True, "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "bnb_4bit_quant_type"),
        ({"load_in_4bit": True}, "load_in_4bit"),
        ({"ddp_timeout": 60}, "ddp_timeout"),
        ({"optim": "adafactor"}, "optim"),
        ({"optim": "rmsprop", "optim_args": "alpha=0.9"}, "optim"),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
            "lr_scheduler_kwargs",
        ),
    ],
)
def test_what_is_not_carried_over_is_reported(given, key):
    assert key in convert(given).dropped


def test_torchs_optimizers_are_carried_over():
    found = convert({"optim": "rmsprop", "learning_rate": 1e-6, "weight_decay": 0.1})
    arguments = {"lr": 1e-6, "weight_decay": 0.1}
    assert found.config["model"]["optimizer"] == {"class_path": "torch.optim.RMSprop", "init_args": arguments}
    assert "optim" not in found.dropped


@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_are_checked(key):
    for value in ("many", True, [1]):
        with pytest.raises(UserError, match=f"{key}: expected a number"):
            convert({key: value})


@pytest.mark.parametrize("given", [{"gradient_accumulation_steps": 0}, {"logging_steps": 0}, {"seed": None}])
def test_numbers_without_a_meaning_are_refused(given):
    with pytest.raises(UserError, match=f"{next(iter(given))}: expected"):
        convert(given)


def test_what_means_the_same_is_not_reported():
    found = convert(
        {"optim": "adamw_torch", "router_aux_loss_coef": 0.0, "disable_dropout": True, "padding_free": False}
    )
    assert found.dropped == {}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"label_smoothing": 0.1}, "TRL 1.16's sigmoid ignores it"),
        ({"use_peft": True}, "lora_dropout 0.05: TRL's disable_dropout switches the adapters' dropout off"),
        ({"model_name_or_path": "Qwen/Qwen3-30B-A3B"}, "router_aux_loss_coef of the model's config.json; set"),
        ({"router_aux_loss_coef": 0.01}, "with each of them in TRL"),
    ],
)
def test_other_readings_are_said(given, sentence):
    assert any(sentence in note for note in convert(given).differs)


def test_the_routers_coefficient_arrives():
    found = convert({"model_name_or_path": "Qwen/Qwen3-30B-A3B", "router_aux_loss_coef": "1e-3"})
    assert found.config["model"]["router_aux_loss_coef"] == 1e-3
    assert "router_aux_loss_coef" not in found.dropped
    for given in (
        {"router_aux_loss_coef": 0.0, "model_name_or_path": "org/Mixtral"},
        {"model_name_or_path": "org/dense"},
    ):
        found = convert(given)
        assert "router_aux_loss_coef" not in found.config["model"]
        assert not any("router" in note for note in found.differs)
    # TRL's other trainers add the loss only where the model's config asks for router logits.
    (note,) = (note for note in convert({"model_name_or_path": "org/Mixtral"}, 1, "orpo").differs if "router" in note)
    assert "where output_router_logits in it is true" in note


@pytest.mark.parametrize("other", ["use_peft", "precompute_ref_log_probs"])
def test_a_synced_reference_is_refused_where_trl_refuses_it(other):
    with pytest.raises(UserError, match=f"sync_ref_model: is true together with {other}"):
        convert({"sync_ref_model": True, other: True})


def test_trl_switches_the_adapters_dropout_off(model_dir, tmp_path):
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer

    trainer = trl.DPOTrainer(
        str(model_dir),
        args=trl.DPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to=[]),
        train_dataset=Dataset.from_list(make_rows(2)),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        peft_config=LoraConfig(lora_dropout=0.05, task_type="CAUSAL_LM"),
    )
    rates = {module.p for name, module in trainer.model.named_modules() if "lora_dropout.default" in name}
    assert rates == {0}


def test_the_handbooks_data_sections():
    entry = {"id": "org/a", "config": "default", "split": "train_prefs", "columns": ["chosen"], "weight": 0.5}
    given = {"dataset_mixture": {"datasets": [entry], "test_split_size": 100, "seed": 0}, "eval_strategy": "steps"}
    found = convert(given | {"eval_steps": 10}).config
    assert found["data"]["train"] == [{"path": "org/a", "subset": "default", "split": "train_prefs", "weight": 0.5}]
    assert found["data"]["val_size"] == 100
    assert found["trainer"]["val_check_interval"] == 10
    given = {
        "dataset_mixer": {"org/a": 1.0, "org/b": 0.5},
        "dataset_splits": ["train_x", "test_x"],
        "eval_strategy": "epoch",
    }
    found = convert(given).config["data"]
    assert found["train"] == [
        {"path": "org/a", "split": "train_x"},
        {"path": "org/b", "split": "train_x", "weight": 0.5},
    ]
    assert found["val"] == [{"path": "org/a", "split": "test_x"}, {"path": "org/b", "split": "test_x"}]


@pytest.mark.parametrize(
    ("name", "given", "read_as"),
    [
        ("dpo.yaml", {"beta": 0.2}, "DPOConfig"),
        ("a.yaml", {"loss_type": "simpo"}, "CPOConfig"),
        ("a.yaml", {"cpo_alpha": 0.0}, "CPOConfig"),
        ("simpo.yaml", {"gamma_beta_ratio": 0.5}, "SimPOConfig"),
    ],
)
def test_whose_config_it_is(tmp_path, name, given, read_as):
    (tmp_path / name).write_text(yaml.safe_dump(given))
    text, found = from_trl_file(str(tmp_path / name))
    assert found.differs[0] == f"read as TRL's {read_as}"
    assert f"# note: read as TRL's {read_as}\n" in text


def test_an_orpo_config_is_not_silently_read_as_dpo(tmp_path):
    path = tmp_path / "orpo" / "config.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump({"beta": 0.05}))
    with pytest.raises(UserError, match="says orpo; add --trainer orpo or --trainer dpo"):
        from_trl_file(str(path))
    loss = from_trl_file(str(path), trainer="orpo")[1].config["model"]["loss"]
    assert loss == {"class_path": "adadpo_lightning.losses.ORPO", "init_args": {"lam": 0.05}}
    with pytest.raises(UserError, match="--trainer: expected one of"):
        from_trl_file(str(path), trainer="kto")
