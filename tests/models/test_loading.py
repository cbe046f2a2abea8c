"""Loading: what is random is seeded, what is loaded is whole, and what is wrong is said before training."""

import json
import logging
import shutil
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file

from adadpo_lightning.errors import UserError
from adadpo_lightning.models.checks import check_vocabulary, note_slow_bfloat16
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig, load_model, load_tokenizer
from adadpo_lightning.models.lora import quantization_config

GPT2 = {"model_type": "gpt2", "vocab_size": 20, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}


@pytest.fixture
def broken(model_dir, tmp_path):
    """A copy of the model that a test may break."""
    return shutil.copytree(model_dir, tmp_path / "broken")


def test_local_directory(model_dir):
    config = PolicyConfig(path=str(model_dir))
    model, tokenizer = load_model(config), load_tokenizer(config)
    saved = load_file(model_dir / "model.safetensors")
    torch.testing.assert_close(model.model.embed_tokens.weight, saved["model.embed_tokens.weight"], rtol=0, atol=0)
    assert len(tokenizer) == model.config.vocab_size


@pytest.mark.parametrize(
    ("dtype", "expected"), [("bfloat16", torch.bfloat16), ("float64", torch.float64), ("auto", torch.float32)]
)
def test_dtype(model_dir, dtype, expected):
    for config in (PolicyConfig(path=str(model_dir), dtype=dtype), PolicyConfig(config=GPT2, dtype=dtype)):
        assert {p.dtype for p in load_model(config).parameters()} == {expected}


def test_random_weights_are_seeded_and_leave_the_run_alone(model_dir):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = load_model(PolicyConfig(config=GPT2, init_seed=1)).state_dict()
    assert torch.rand(1) == expected
    torch.testing.assert_close(first, load_model(PolicyConfig(config=GPT2, init_seed=1)).state_dict(), rtol=0, atol=0)
    other = load_model(PolicyConfig(config=GPT2, init_seed=2)).state_dict()
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])


@pytest.mark.parametrize("suffix", ["", "config.json"])
def test_random_weights_from_a_config_file(model_dir, suffix):
    config = PolicyConfig(config=str(model_dir / suffix))
    assert load_model(config).config.model_type == "llama"
    assert load_tokenizer(config).eos_token == "<eos>"


def test_all_dropout_is_off_and_said_once(caplog):
    with caplog.at_level(logging.INFO, logger="adadpo_lightning"):
        model = load_model(PolicyConfig(config={**GPT2, "attn_pdrop": 0.3}))
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    assert model.config.resid_pdrop == model.config.attn_pdrop == 0.0
    (record,) = [r for r in caplog.records if "Dropout" in r.message]
    assert "attn_pdrop" in record.message
    ids = torch.arange(10)[None]
    assert torch.equal(model.train()(ids).logits, model.train()(ids).logits)


def test_attention_dropout_of_modules_is_off():
    config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = load_model(PolicyConfig(config={**config, "vocab_size": 9, "attention_dropout": 0.5}))
    assert model.model.layers[0].self_attn.attention_dropout == 0.0


@pytest.mark.parametrize(
    ("device", "used", "known", "said"),
    [
        ("cpu", True, {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True),
        ("cpu", True, {"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, False),
        ("cpu", True, {"architecture": "aarch64"}, False),
        ("cpu", False, {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, False),
        ("cuda", True, {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, False),
    ],
)
def test_bfloat16_on_a_cpu_that_emulates_it(device, used, known, said, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    note_slow_bfloat16(torch.device(device), used=used)
    assert ("slower than float32" in caplog.text) == said


def test_lora_from_a_directory_goes_on(model_dir, tmp_path):
    options = LoraOptions(r=2, alpha=4, dropout=0.1)
    first = load_model(PolicyConfig(path=str(model_dir), lora=options))
    with torch.no_grad():
        for name, p in first.named_parameters():
            if "lora_B" in name:
                p.fill_(0.1)
    first.save_pretrained(tmp_path)
    again = load_model(PolicyConfig(path=str(model_dir), lora=LoraOptions(adapter=str(tmp_path))))
    trained = {name: p for name, p in again.named_parameters() if p.requires_grad}
    assert trained
    for name, p in first.named_parameters():
        if p.requires_grad:
            assert torch.equal(trained[name], p)
    assert not any(isinstance(m, torch.nn.Dropout) and m.p for m in again.modules())


# Bad input.


@pytest.mark.parametrize("values", [{}, {"path": "x", "config": GPT2}])
def test_neither_or_both_of_path_and_config(values):
    with pytest.raises(UserError, match=r"model\.policy\.path: expected either"):
        PolicyConfig(**values)


def test_chunk_size_below_one():
    with pytest.raises(UserError, match=r"model\.policy\.head_chunk_size: expected at least 1, got 0"):
        PolicyConfig(config=GPT2, head_chunk_size=0)


def test_no_tokenizer_named():
    with pytest.raises(UserError, match=r"model\.policy\.tokenizer: expected a directory or hub id, got null"):
        load_tokenizer(PolicyConfig(config=GPT2))


def test_directory_without_a_tokenizer(broken):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (broken / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"model\.policy\.tokenizer: no tokenizer could be loaded"):
        load_tokenizer(PolicyConfig(path=str(broken)))


def refused(match, **values):
    with pytest.raises(UserError, match=match):
        load_model(PolicyConfig(**values))


def test_no_such_directory(tmp_path):
    refused(r"model\.policy\.path: directory not found: .*/nothing", path=str(tmp_path / "nothing"))


def test_hub_id_that_cannot_be_reached():
    refused(r"model\.policy\.path: cannot load a model from 'nobody/nothing'", path="nobody/nothing")


def test_directory_without_a_config(tmp_path):
    refused("has no config.json", path=str(tmp_path))


def test_adapter_directory_as_path(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(r"contains a LoRA adapter, not a model; .*model\.policy\.lora\.adapter", path=str(tmp_path))


def test_pickled_weights_are_refused(broken):
    torch.save(load_file(broken / "model.safetensors"), broken / "pytorch_model.bin")
    (broken / "model.safetensors").unlink()
    refused(r"no file named model\.safetensors", path=str(broken))


def test_truncated_weights(broken):
    with (broken / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    refused(r"model\.policy\.path: cannot load a model", path=str(broken))


def test_missing_weights_are_not_made_up(broken):
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    refused(r"lacks 1 of the model's weights.*model\.layers\.1\.mlp\.up_proj\.weight", path=str(broken))


def test_weights_of_another_shape(broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "intermediate_size": 17}))
    refused(r"model\.policy\.path: cannot load a model", path=str(broken))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"hidden_size": 8}, r"expected a key model_type, got the keys \['hidden_size'\]"),
        ({"model_type": "lama"}, r"model\.policy\.config: is not a Hugging Face config"),
        ({"model_type": "t5"}, "does not define a causal language model"),
        ("nowhere/config.json", "cannot be read as JSON"),
    ],
)
def test_bad_config(config, match):
    refused(match, config=config)


def test_vocabulary_larger_than_the_embedding(model_dir):
    tokenizer = load_tokenizer(PolicyConfig(path=str(model_dir)))
    with pytest.raises(UserError, match=f"{len(tokenizer)} tokens and the model's embedding has only 20 rows"):
        load_model(PolicyConfig(config=GPT2), tokenizer)
    check_vocabulary(20, 20)


def test_lora_without_peft(model_dir, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    refused(r"pip install 'adadpo-lightning\[lora\]'", path=str(model_dir), lora=LoraOptions())


def test_lora_modules_that_do_not_exist(model_dir):
    refused(
        r"model\.policy\.lora\.target_modules", path=str(model_dir), lora=LoraOptions(target_modules=["nothing_here"])
    )


def test_adapter_that_does_not_exist(model_dir, tmp_path):
    refused(
        r"model\.policy\.lora\.adapter: cannot load an adapter",
        path=str(model_dir),
        lora=LoraOptions(adapter=str(tmp_path / "nothing")),
    )


def test_prompt_tuning_is_no_adapter(model_dir, tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    base = load_model(PolicyConfig(path=str(model_dir)))
    get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).save_pretrained(tmp_path)
    refused(
        "prompt learning.*use a directory with adapter_config.json and LoRA weights",
        path=str(model_dir),
        lora=LoraOptions(adapter=str(tmp_path)),
    )


def test_four_bits_are_refused_where_they_cannot_serve(model_dir):
    lora = LoraOptions(quantize="nf4")
    with pytest.raises(UserError, match=r"lora\.quantize: 4-bit weights need a CUDA device"):
        load_model(PolicyConfig(path=str(model_dir), lora=lora))
    with pytest.raises(UserError, match="need a model to load"):
        load_model(PolicyConfig(config=GPT2, tokenizer=str(model_dir), lora=lora))
    package = patch("adadpo_lightning.models.lora.find_spec", return_value=None)
    has_device = patch("torch.cuda.is_available", return_value=True)
    with package, has_device, pytest.raises(UserError, match="package bitsandbytes"):
        quantization_config(PolicyConfig(path=str(model_dir), lora=lora))
