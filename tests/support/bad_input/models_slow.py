"""More bad model directories, slow: each case builds a parser and a run."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.support.bad_input.case import (
    Case,
    P,
    edit_json,
    file,
    text,
)
from tests.support.bad_input.models import model, value, without
from tests.support.tiny import make_adapter_dir


def replaced(name, content, removed=None):
    """Another content of one file, and without another file."""

    def change(path):
        (path / name).unlink(missing_ok=True)
        (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        if removed is not None:
            (path / removed).unlink()

    return change


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def retyped(path, dtype, nan=False):
    weights = {name: weight.to(dtype) for name, weight in load_file(path / "model.safetensors").items()}
    if nan:
        weights["model.norm.weight"][0] = float("nan")
    save_file(weights, path / "model.safetensors", {"format": "pt"})


def adapter(change):
    """A trained adapter, changed."""

    def write(folder, model):
        path = make_adapter_dir(model, Path(folder) / "adapter")
        change(path)
        return path

    return write


def config(name, content, names, says):
    return model(f"config.json {name}", replaced("config.json", content), names, says)


def sized(**values):
    """A config of a tiny Llama, with some values changed."""
    small = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 1}
    return json.dumps({"model_type": "llama", **small, **values})


def random(config):
    """Random weights of a config, with the tiny model's tokenizer."""
    return {P + "path": None, P + "config": config, P + "tokenizer": lambda f, m: m}


CASES = [
    # config.json.
    config("a list", "[]", "model.policy.tokenizer", "TypeError:"),
    config("deep", "[" * 200_000, "model.policy.tokenizer", "RecursionError: maximum recursion depth"),
    config("not UTF-8", b'{"model_type": "\xe9"}', "model.policy.tokenizer", "no tokenizer could be loaded from"),
    value("hidden_size", "16", "Validation error for field 'hidden_size':"),
    value("hidden_size", 0, "You set `ignore_mismatched_sizes` to `False`,"),
    value("hidden_size", 7, "Class validation error for validator"),
    value("num_hidden_layers", "two", "Validation error for field 'num_hidden_layers':"),
    value("num_hidden_layers", 0, "config.json has num_hidden_layers: 0"),
    value("num_attention_heads", 0, "ZeroDivisionError: integer modulo by zero"),
    value("num_attention_heads", 3, "Class validation error for validator"),
    value("num_key_value_heads", 3, "You set `ignore_mismatched_sizes` to `False`,"),
    value("intermediate_size", -1, "Trying to create tensor with negative dimension"),
    value("vocab_size", 5, "You set `ignore_mismatched_sizes` to `False`,"),
    value("vocab_size", 10**12, "You set `ignore_mismatched_sizes` to `False`,"),
    value("rms_norm_eps", "small", "Validation error for field 'rms_norm_eps':"),
    value("rope_parameters", {"rope_type": "nonesuch", "rope_theta": 10000.0}, "cannot load a model from"),
    value("hidden_act", "nonesuch", "cannot load a model from"),
    value("dtype", "floaty", "AttributeError: module 'torch' has no attribute"),
    value("model_type", 5, "The checkpoint you are trying to load has model"),
    value("eos_token_id", "x", "Validation error for field 'eos_token_id':"),
    value("pad_token_id", 10**9, "Padding_idx must be within num_embeddings"),
    value("quantization_config", 5, "AttributeError: 'int' object has no attribute"),
    value("layer_types", ["nonesuch"], "Class validation error for validator"),
    # Other files of the directory.
    model(
        "index of a list",
        replaced("model.safetensors.index.json", "[]", "model.safetensors"),
        "model.policy.path",
        "TypeError: list indices must be integers or",
    ),
    model(
        "index with a null map",
        replaced("model.safetensors.index.json", '{"weight_map": null}', "model.safetensors"),
        "model.policy.path",
        "AttributeError: 'NoneType' object has no",
    ),
    model(
        "index with an empty map",
        replaced("model.safetensors.index.json", '{"weight_map": {}}', "model.safetensors"),
        "model.policy.path",
        "cannot load a model from",
    ),
    model(
        "weights with a huge header",
        replaced("model.safetensors", b"\xff" * 8 + b"{}"),
        "model.policy.path",
        "Error while deserializing header: header too",
    ),
    model("weights of numbers", lambda p: retyped(p, torch.int8), "model.policy.path", "as I8: quantized weights"),
    model(
        "tokenizer of an object",
        replaced("tokenizer.json", "{}"),
        "model.policy.tokenizer",
        "no tokenizer could be loaded from",
    ),
    model(
        "truncated tokenizer",
        lambda p: cut(p / "tokenizer.json"),
        "model.policy.tokenizer",
        "Unterminated string starting at: line 64 column",
    ),
    model(
        "tokenizer with a list as model",
        edit_json("tokenizer.json", model=[1]),
        "model.policy.tokenizer",
        "data did not match any variant of untagged enum",
    ),
    model(
        "tokenizer of an unknown kind",
        edit_json("tokenizer.json", model={"type": "nonesuch", "vocab": {}}),
        "model.policy.tokenizer",
        "data did not match any variant of untagged enum",
    ),
    model(
        "tokenizer with text as ids",
        edit_json("tokenizer.json", model={"type": "WordLevel", "vocab": {"a": "b"}, "unk_token": "a"}),
        "model.policy.tokenizer",
        'invalid type: string "b", expected u32 at line',
    ),
    model(
        "tokenizer with a broken added token",
        edit_json("tokenizer.json", added_tokens=[{"id": "x"}]),
        "model.policy.tokenizer",
        'invalid type: string "x", expected u32 at line',
    ),
    model(
        "tokenizer_config of a list",
        replaced("tokenizer_config.json", "[]"),
        "model.policy.tokenizer",
        "AttributeError: 'list' object has no attribute",
    ),
    model(
        "EOS a number",
        edit_json("tokenizer_config.json", eos_token=5),
        "model.policy.tokenizer",
        "TypeError: Special token eos_token has to be",
    ),
    model(
        "EOS not in the vocabulary",
        edit_json("tokenizer_config.json", eos_token="<nonesuch>"),
        "model.policy.tokenizer",
        "the tokenizer has 32 tokens and the model's",
    ),
    model(
        "chat template a number",
        lambda p: [edit_json("tokenizer_config.json", chat_template=5)(p), (p / "chat_template.jinja").unlink()],
        "model.policy.tokenizer",
        "is a int, expected text",
    ),
    model(
        "chat template not UTF-8",
        replaced("chat_template.jinja", b"\xe9"),
        "model.policy.tokenizer",
        "utf-8' codec can't decode byte 0xe9 in position",
    ),
    model(
        "generation config a list",
        replaced("generation_config.json", "[]"),
        "model.policy.path",
        "TypeError: 'list' object is not a mapping",
    ),
    # Adapters, references, random weights.
    Case(
        "adapter missing",
        {P + "lora.adapter": "./nowhere"},
        "model.policy.lora.adapter",
        "cannot load an adapter from './nowhere': Can't",
    ),
    Case(
        "adapter without weights",
        {P + "lora.adapter": adapter(without("adapter_model.safetensors"))},
        "model.policy.lora.adapter",
        "Repo id must be in the form 'repo_name' or",
    ),
    Case(
        "adapter with a broken config",
        {P + "lora.adapter": adapter(replaced("adapter_config.json", "{"))},
        "model.policy.lora.adapter",
        "Expecting property name enclosed in double",
    ),
    Case(
        "adapter of another rank",
        {P + "lora.adapter": adapter(edit_json("adapter_config.json", r=5))},
        "model.policy.lora.adapter",
        "Error(s) in loading state_dict for",
    ),
    Case(
        "adapter truncated",
        {P + "lora.adapter": adapter(lambda p: cut(p / "adapter_model.safetensors"))},
        "model.policy.lora.adapter",
        "Error while deserializing header: incomplete",
    ),
    Case(
        "adapter as the model",
        {P + "path": adapter(lambda p: None)},
        "model.policy.tokenizer",
        "Couldn't instantiate the backend tokenizer from",
    ),
    Case(
        "LoRA alpha zero",
        {P + "lora.r": 2, P + "lora.alpha": 0},
        "model.policy.lora.alpha",
        "expected at least 1, got 0",
    ),
    Case(
        "LoRA dropout of one",
        {P + "lora.r": 2, P + "lora.dropout": 1.0},
        "model.policy.lora.dropout",
        "expected a number in [0, 1), got 1.0",
    ),
    Case(
        "LoRA dropout negative",
        {P + "lora.r": 2, P + "lora.dropout": -0.1},
        "model.policy.lora.dropout",
        "expected a number in [0, 1), got -0.1",
    ),
    Case(
        "LoRA targets empty",
        {P + "lora.target_modules": "[]"},
        "model.policy.lora.target_modules",
        "No `target_modules` passed but also no",
    ),
    Case(
        "reference missing",
        {"model.reference_path": "./nowhere"},
        "model.policy.path",
        "directory not found: ./nowhere",
    ),
    Case(
        "reference cache a file",
        {"model.reference": "cached", "model.reference_cache": file("x")},
        "model.reference_cache",
        "expected a directory, got",
    ),
    Case(
        "reference cache below a file",
        {"model.reference": "cached", "model.reference_cache": lambda f, m: file("x")(f, m) / "y"},
        "model.reference_cache",
        "is not a directory",
    ),
    Case(
        "random weights of a broken file",
        random(text("{", "config.json")),
        "model.policy.config",
        "cannot be read as JSON: Expecting property name",
    ),
    Case(
        "random weights of a list",
        random(text("[]", "config.json")),
        "model.policy.config",
        "expected a mapping, got list",
    ),
    Case(
        "random weights of an unknown type",
        random(sized(model_type="nonesuch")),
        "model.policy.config",
        "is not a Hugging Face config: Unrecognized",
    ),
    Case(
        "random weights of negative size",
        random(sized(hidden_size=-16)),
        "model.policy.config",
        "does not define a causal language model: Trying",
    ),
    Case(
        "random weights without layers",
        random(sized(num_hidden_layers=-1)),
        "model.policy",
        "config.json has num_hidden_layers: -1",
    ),
    Case(
        "random weights too few for the tokenizer",
        random(sized(vocab_size=4)),
        "model.policy.tokenizer",
        "the tokenizer has 31 tokens and the model's",
    ),
    Case(
        "random weights and no tokenizer",
        {P + "path": None, P + "config": '{"model_type": "llama"}'},
        "model.policy.tokenizer",
        "expected a directory or hub id, got null",
    ),
    Case(
        "GGUF of nothing",
        {P + "path": text(b"", "m.gguf")},
        "model.policy.tokenizer",
        "no tokenizer could be loaded from",
    ),
    Case("GGUF missing", {P + "path": lambda f, m: f / "nowhere.gguf"}, "model.policy.tokenizer", "not found"),
    Case("path empty", {P + "path": ""}, "model.policy.tokenizer", "expected a directory or hub id, got null"),
    Case(
        "path with a NUL",
        {P + "path": "a\0b"},
        "model.policy.tokenizer",
        "no tokenizer could be loaded from 'a\\x00b':",
    ),
    Case("revision of a directory", {P + "revision": "nonesuch"}, "model.policy.revision", "is for hub ids"),
]
