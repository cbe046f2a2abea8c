"""GGUF files: the same numbers as the safetensors of the same weights, and errors before anything is trained."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from adadpo_lightning.checkpoints.record import of_policy
from adadpo_lightning.errors import UserError
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig, load_model, load_tokenizer
from tests.support.gguf import make_gguf

MESSAGES = [{"role": "user", "content": "the cat, a the théâtre"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_gguf(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def config(made):
    return PolicyConfig(path=str(made[0]))


def test_the_two_ways_to_name_a_file_are_one(made, config):
    file, _ = made
    other = PolicyConfig(path=str(file.parent), gguf_file=file.name)
    assert config == other
    assert config.where == str(file)


def test_weights_and_logits_are_those_of_the_safetensors(made, config):
    read, plain = load_model(config), load_model(PolicyConfig(path=str(made[1])))
    torch.testing.assert_close(read.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert read.lm_head.weight is read.model.embed_tokens.weight
    ids = torch.arange(20)[None]
    torch.testing.assert_close(read(ids).logits, plain(ids).logits, rtol=1e-6, atol=1e-6)
    assert not hasattr(read.config, "quantization_config")


def test_tokenizer_and_template_are_those_of_the_directory(made, config):
    read, plain = load_tokenizer(config), load_tokenizer(PolicyConfig(path=str(made[1])))
    assert read.get_vocab() == plain.get_vocab()
    assert (read.bos_token_id, read.eos_token_id, read.pad_token_id) == (1, 2, 2)
    options = {"add_generation_prompt": True, "return_dict": False}
    assert read.apply_chat_template(MESSAGES, **options) == plain.apply_chat_template(MESSAGES, **options)


@pytest.mark.parametrize("lora", [None, LoraOptions(r=2)])
def test_saves_safetensors(config, tmp_path, lora):
    model = load_model(replace(config, lora=lora))
    model.save_pretrained(tmp_path)
    if lora is None:
        torch.testing.assert_close(load_model(PolicyConfig(path=str(tmp_path))).state_dict(), model.state_dict())
    else:
        assert "lora_A" in next(iter(load_file(tmp_path / "adapter_model.safetensors")))


def test_bfloat16_rounds_weights_but_not_rotary_frequencies(config):
    model = load_model(replace(config, dtype="bfloat16"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_fingerprint_is_of_the_content(made, config, tmp_path):
    moved = tmp_path / "renamed.gguf"
    moved.write_bytes(made[0].read_bytes())
    assert of_policy(PolicyConfig(path=str(moved))) == of_policy(config)
    content = bytearray(moved.read_bytes())
    content[-1] ^= 1
    moved.write_bytes(content)
    assert of_policy(PolicyConfig(path=str(moved))) != of_policy(config)


def test_a_directory_may_hold_several_files(made):
    with pytest.raises(UserError, match=r"other\.gguf not found; GGUF files in that directory: tiny\.gguf"):
        load_model(PolicyConfig(path=str(made[0].parent), gguf_file="other.gguf"))


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_package_is_named(config, monkeypatch, package):
    monkeypatch.setattr("adadpo_lightning.gguf.find_spec", lambda name: None if name == package else name)
    for load in (load_model, load_tokenizer):
        with pytest.raises(UserError, match=rf"the package {package}, not installed; pip install .*\[gguf\]"):
            load(config)


def test_a_damaged_file_is_refused(made, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(made[0].read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"gguf_file: cannot load a model from .*cut\.gguf"):
        load_model(PolicyConfig(path=str(cut)))
    cut.write_text("no such format", encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer: no tokenizer could be loaded"):
        load_tokenizer(PolicyConfig(path=str(cut)))


def test_contradictions_are_refused(made):
    file, folder = made
    with pytest.raises(UserError, match=r"path names the file tiny\.gguf and gguf_file names x\.gguf"):
        PolicyConfig(path=str(file), gguf_file="x.gguf")
    with pytest.raises(UserError, match=r"name of a \.gguf file in model\.policy\.path, got 'model\.safetensors'"):
        PolicyConfig(path=str(folder), gguf_file="model.safetensors")
    with pytest.raises(UserError, match=r"name of a \.gguf file in model\.policy\.path"):
        PolicyConfig(config={"model_type": "llama"}, gguf_file="x.gguf")
    with pytest.raises(UserError, match="quantized twice"):
        PolicyConfig(path=str(file), lora=LoraOptions(quantize="nf4"))


def test_a_reference_path_does_not_inherit_the_file(made, config):
    from adadpo_lightning.models.policy import PolicyModel
    from adadpo_lightning.reference.live import build_reference

    policy = PolicyModel(load_model(config), config)
    for path in made:  # the file, and the directory without one
        reference = build_reference("path", policy, config, load_tokenizer(config), path=str(path))
        weights = reference.model.causal_lm.state_dict()
        torch.testing.assert_close(weights, policy.causal_lm.state_dict(), rtol=0, atol=0)


def test_config_json_beside_it_is_not_read(made, config):
    (made[0].parent / "config.json").write_text(json.dumps({"model_type": "gpt2"}), encoding="utf-8")
    assert load_model(config).config.model_type == "llama"
