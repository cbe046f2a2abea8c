"""Bad model directories: config.json, weights, tokenizer, adapters, references, random weights."""

import json

import torch
from safetensors.torch import load_file, save_file

from tests.support.bad_input.case import (
    NULL,
    TRAIN,
    Case,
    D,
    P,
    edit_json,
    messages,
    model_with,
    rows,
)
from tests.support.tiny import make_tokenizer


def truncate_weights(path):
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-500])


def wrong_shape(path):
    weights = load_file(path / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(3)
    save_file(weights, path / "model.safetensors", {"format": "pt"})


def missing_weight(path):
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", {"format": "pt"})


def missing_shard(path):
    names = list(load_file(path / "model.safetensors"))
    (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
    files = {n: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, n in enumerate(names)}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def pickled_weights(path):
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def without(name):
    return lambda path: (path / name).unlink()


def tokenizer_without(**options):
    def change(path):
        tokenizer = make_tokenizer()
        for name, value in options.items():
            setattr(tokenizer, name, value)
        for part in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
            (path / part).unlink(missing_ok=True)
        tokenizer.save_pretrained(path)

    return change


def model(name, change, names, says):
    return Case(name, {P + "path": model_with(change)}, names, says)


def value(key, found, says):
    """A value in config.json that is of no use; transformers' own words do not always have the key."""
    shown = json.dumps(found)
    given = NULL if found is None else found
    name = f"{key} {shown if len(shown) < 30 else shown[:30]}"
    return model(name, edit_json("config.json", **{key: given}), "model.policy", says)


CASES = [
    # Tokenizers.
    Case("no EOS", {P + "path": model_with(tokenizer_without(eos_token=None))}, "tokenizer", "no EOS token"),
    Case(
        "messages without a template",
        {P + "path": model_with(tokenizer_without(chat_template=None)), TRAIN: rows(messages())},
        "",
        "template",
    ),
    Case(
        "template demanded",
        {P + "path": model_with(tokenizer_without(chat_template=None)), D + "chat": "always"},
        "data.chat",
        "template",
    ),
    Case(
        "no tokenizer",
        {P + "path": model_with(lambda p: [without(n)(p) for n in ("tokenizer.json", "tokenizer_config.json")])},
        "tokenizer",
        "",
    ),
    # Models.
    Case("no model", {P + "path": None}, "model.policy", ""),
    Case("model directory missing", {P + "path": "./nowhere"}, "model.policy.path", "directory not found"),
    Case("hub id offline", {P + "path": "nobody/no-model"}, "model.policy", ""),
    Case("no config.json", {P + "path": model_with(without("config.json"))}, "model.policy.path", "config.json"),
    Case(
        "config.json broken",
        {P + "path": model_with(lambda p: (p / "config.json").write_text("{"))},
        "config.json",
        "not a valid JSON",
    ),
    Case(
        "unknown architecture",
        {P + "path": model_with(edit_json("config.json", model_type="nonesuch"))},
        "model.policy.path",
        "nonesuch",
    ),
    Case("encoder-decoder", {P + "path": model_with(edit_json("config.json", model_type="t5"))}, "model.policy", ""),
    Case("no weights", {P + "path": model_with(without("model.safetensors"))}, "model.policy.path", "safetensors"),
    Case("pickled weights", {P + "path": model_with(pickled_weights)}, "model.policy.path", "safetensors"),
    Case("truncated weights", {P + "path": model_with(truncate_weights)}, "model.policy.path", ""),
    Case("wrong shape", {P + "path": model_with(wrong_shape)}, "model.policy.path", "sizes of weights"),
    Case("missing weight", {P + "path": model_with(missing_weight)}, "model.policy.path", "up_proj"),
    Case("missing shard", {P + "path": model_with(missing_shard)}, "model.policy.path", "00002-of-00002"),
    Case(
        "remote code",
        {P + "path": model_with(edit_json("config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config"}))},
        "model.policy",
        "trust_remote_code",
    ),
    Case("path and config", {P + "config": '{"model_type": "llama"}'}, "model.policy", ""),
    Case(
        "no layers",
        {P + "path": model_with(edit_json("config.json", num_hidden_layers=-1))},
        "model.policy",
        "num_hidden_layers: -1",
    ),
    Case("LoRA without targets there", {P + "lora.target_modules": "[nonesuch]"}, "lora.target_modules", "nonesuch"),
    Case("LoRA rank zero", {P + "lora.r": 0}, "lora", ""),
    Case("unknown option of peft", {P + "lora.peft": '{"use_dorra": true}'}, "lora.peft.use_dorra", "use_dora"),
    Case("peft option set elsewhere", {P + "lora.peft": '{"r": 4}'}, "lora.peft.r", "set model.policy.lora.r"),
    Case("biases of the base", {P + "lora.peft": '{"bias": "all"}'}, "lora.peft.bias", "reference would share"),
    Case("copy of no module", {P + "lora.peft": '{"modules_to_save": ["no"]}'}, "lora.peft.modules_to_save", "'no'"),
    Case("4-bit on the CPU", {P + "lora.quantize": "nf4"}, "quantize", "CUDA"),
    Case("dtype unknown", {P + "dtype": "int8"}, "model.policy.dtype", ""),
    Case("chunk zero", {P + "head_chunk_size": 0}, "model.policy.head_chunk_size", "at least 1"),
    Case("varlen on the CPU", {P + "packed_attention": "varlen"}, "packed_attention", ""),
]
