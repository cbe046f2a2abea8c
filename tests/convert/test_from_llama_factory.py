"""LLaMA-Factory's configs: what its trainer computes under each key, and what has no counterpart."""

import json

import pytest
import torch
import yaml

from adadpo_lightning.cli import main
from adadpo_lightning.convert.from_llama_factory import convert
from adadpo_lightning.convert.llama_factory_keys import NUMBERS, SAME, known_keys
from adadpo_lightning.errors import UserError
from adadpo_lightning.losses.testing import sample_pairs
from tests.convert.test_trl_losses import assert_same, built, leaves, of_ours
from tests.support.runs import run
from tests.support.tiny import make_rows, write_rows

logsigmoid = torch.nn.functional.logsigmoid


def at(config, name):
    for part in name.split("."):
        config = config[part]
    return config


def dpo(**given):
    return convert({"stage": "dpo", "template": "llama3", "finetuning_type": "full", **given})


# Its losses, written from their formulas: v is beta times the difference of the log-ratios; means for ipo and simpo.
def of_sigmoid(h, mean, e=0.1):
    v = 0.2 * (h[0] - h[1])
    return -(1 - e) * logsigmoid(v) - e * logsigmoid(-v)


def of_hinge(h, mean):
    return torch.relu(1 - 0.2 * (h[0] - h[1]))


def of_ipo(h, mean):
    return (mean[0] - mean[1] - 1 / 0.4) ** 2


def of_simpo(h, mean):
    return -logsigmoid(0.2 * (mean[0] - mean[1]) - 0.7)


@pytest.mark.parametrize(
    ("given", "formula", "needs_reference"),
    [
        ({"pref_loss": "sigmoid", "dpo_label_smoothing": 0.1}, of_sigmoid, True),
        ({"pref_loss": "hinge"}, of_hinge, True),
        ({"pref_loss": "ipo"}, of_ipo, True),
        ({"pref_loss": "simpo", "simpo_gamma": 0.7}, of_simpo, False),
    ],
)
@pytest.mark.parametrize("ftx", [0.0, 0.3])
def test_losses(given, formula, needs_reference, ftx):
    x = sample_pairs(6, seed=2)
    chosen, rejected = leaves(x)
    h = (chosen - x.ref_chosen, rejected - x.ref_rejected) if needs_reference else (chosen, rejected)
    mean = (h[0] / x.chosen_len, h[1] / x.rejected_len)
    # The likelihood term is said to be a mean over tokens here, and is one over answers there.
    wanted = formula(h, mean).mean() - ftx * chosen.sum() / x.chosen_len.sum()
    found = dpo(pref_beta=0.2, pref_ftx=ftx, **given)
    assert_same(
        of_ours(built(found.config["model"]["loss"]), x),
        (wanted, torch.autograd.grad(wanted, (chosen, rejected))),
        1e-11,
    )
    assert any("pref_ftx" in text for text in found.differs) is bool(ftx)


def test_orpo_differs_in_its_mean_and_says_so():
    found = dpo(pref_loss="orpo", pref_beta=0.3)
    assert found.config["model"]["loss"] == {"class_path": "adadpo_lightning.losses.ORPO", "init_args": {"lam": 0.3}}
    assert any("ORPO's likelihood term" in text for text in found.differs)


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        ({}, "model.optimizer.lr", 5e-5),
        ({}, "trainer.precision", "32-true"),
        ({}, "model.policy.dtype", "float32"),
        ({}, "model.policy.gradient_checkpointing", True),
        ({"disable_gradient_checkpointing": True}, "model.policy.gradient_checkpointing", False),
        ({"bf16": True}, "trainer.precision", "bf16-mixed"),
        ({"bf16": True, "finetuning_type": "lora"}, "model.policy.dtype", "bfloat16"),
        ({"pure_bf16": True}, "trainer.precision", "bf16-true"),
        ({"pure_bf16": True}, "model.policy.dtype", "bfloat16"),
        ({"finetuning_type": "lora"}, "model.policy.lora", {"r": 8, "alpha": 16, "dropout": 0.0}),
        ({"finetuning_type": "lora", "lora_rank": 4, "lora_alpha": 5}, "model.policy.lora.alpha", 5),
        ({"finetuning_type": "lora"}, "model.policy.lora.target_modules", "all-linear"),
        ({"finetuning_type": "lora", "use_rslora": True}, "model.policy.lora.peft", {"use_rslora": True}),
        (
            {"finetuning_type": "lora", "additional_target": "embed_tokens,lm_head"},
            "model.policy.lora.peft.modules_to_save",
            ["embed_tokens", "lm_head"],
        ),
        ({"finetuning_type": "lora", "lora_target": "q, v"}, "model.policy.lora.target_modules", ["q", "v"]),
        ({"finetuning_type": "lora", "lora_dropout": 0.1}, "model.policy.lora.dropout", 0.0),
        ({"finetuning_type": "lora", "quantization_bit": 4}, "model.policy.lora.quantize", "nf4"),
        ({"finetuning_type": "lora", "adapter_name_or_path": "a"}, "model.reference", "adapter_off"),
        ({"ref_model": "org/ref"}, "model.reference_path", "org/ref"),
        ({"flash_attn": "fa2"}, "model.policy.attn_implementation", "flash_attention_2"),
        ({"cutoff_len": 512}, "data.max_length", 512),
        ({"disable_shuffling": True}, "data.shuffle", False),
        ({"enable_thinking": False}, "data.chat_template_kwargs", {"enable_thinking": False}),
        ({"val_size": 0.1, "eval_strategy": "steps", "eval_steps": 5}, "data.val_size", 0.1),
        ({"val_size": 0.1, "eval_strategy": "steps", "eval_steps": 5}, "trainer.val_check_interval", 5),
        ({"eval_strategy": "steps", "eval_steps": 5}, "trainer.limit_val_batches", 0),
        ({"dataset": "org/a,org/b", "dataset_dir": "ONLINE", "max_samples": 9}, "data.train", [
            {"path": "org/a", "split": "train[:9]"}, {"path": "org/b", "split": "train[:9]"}]),
    ],
)  # fmt: skip
def test_values_keep_their_meaning(given, name, expected):
    found = at(dpo(**given).config, name)
    if isinstance(expected, dict):
        assert expected.items() <= found.items()
    else:
        assert found == expected
        assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stage": "kto"}, "stage: expected dpo, got 'kto'"),
        ({"pref_loss": "kto_pair"}, "pref_loss: 'kto_pair' has no counterpart"),
        ({"pref_loss": "nca"}, "unknown loss 'nca'"),
        ({"pref_loss": "ipo", "dpo_label_smoothing": 0.1}, "dpo_label_smoothing: is only for sigmoid"),
        ({"pref_bco_weight": 0.5}, "pref_bco_weight: has no counterpart: its baseline is a running mean"),
        ({"ld_alpha": 0.5}, "ld_alpha: weights the policy's log-probabilities and not the reference's"),
        ({"finetuning_type": "freeze"}, "finetuning_type: 'freeze' has no counterpart"),
        ({"finetuning_type": "lora", "adapter_name_or_path": "a,b"}, "adapters that are merged"),
        ({"quantization_bit": 4}, "quantization_bit: is only for LoRA"),
        ({"pref_beta": "much"}, "pref_beta: expected a number"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        dpo(**given)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({}, "template"),
        ({"pissa_init": True}, "pissa_init"),
        ({"use_badam": True}, "use_badam"),
        ({"deepspeed": "ds_z3.json"}, "deepspeed"),
        ({"dataset": "dpo_en_demo"}, "dataset dpo_en_demo"),
        ({"galore_rank": 3}, "galore_rank"),
        ({"flash_attn": "fa3"}, "flash_attn"),
    ],
)
def test_what_is_not_carried_over_is_reported(given, key):
    assert key in dpo(**given).dropped


def test_datasets_are_looked_up(tmp_path):
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    table = {
        "local": {"file_name": "a.json", "ranking": True, "columns": columns},
        "hub": {"hf_hub_url": "org/pairs", "ranking": True, "subset": "x", "formatting": "sharegpt"},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(table))
    found = dpo(dataset="local,hub,none", dataset_dir=str(tmp_path), max_samples=5)
    assert found.config["data"]["train"] == [
        {"path": str(tmp_path / "a.json"), "columns": columns},
        {"path": "org/pairs", "subset": "x", "split": "train[:5]"},
    ]
    assert {"dataset none", "max_samples"} <= set(found.dropped)
    assert any("must be rewritten with the columns" in text for text in found.differs)


def test_every_counterpart_is_an_option_and_numbers_are_known():
    from adadpo_lightning.cli.fit_options import known_options

    assert not [name for name in SAME.values() if name not in known_options()]
    assert set(NUMBERS) <= known_keys()


def test_a_converted_config_runs(tmp_path, model_dir, capsys):
    pairs = write_rows(tmp_path / "a.json", make_rows(8))
    (tmp_path / "dataset_info.json").write_text(
        json.dumps({"a": {"file_name": pairs.name, "ranking": True, "columns": {}}})
    )
    given = {
        "model_name_or_path": str(model_dir),
        "stage": "dpo",
        "finetuning_type": "full",
        "pref_loss": "simpo",
        "pref_beta": 2.0,
        "dataset": "a",
        "dataset_dir": str(tmp_path),
        "template": "default",
        "cutoff_len": 40,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 1,
        "learning_rate": "1e-4",
        "output_dir": str(tmp_path / "out"),
        "use_cpu": True,
    }
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(given))
    assert main(["from-llama-factory", str(tmp_path / "theirs.yaml"), f"--output={tmp_path / 'ours.yaml'}"]) == 0
    said = capsys.readouterr().out
    assert "left out: template (default: the tokenizer's own chat template is used" in said
    assert run(["fit", f"--config={tmp_path / 'ours.yaml'}", "--trainer.enable_progress_bar=false"]) == 0
    saved = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    assert saved["model"]["loss"]["init_args"]["gamma_beta_ratio"] == 0.25
    assert saved["model"]["optimizer"]["init_args"]["lr"] == 1e-4
