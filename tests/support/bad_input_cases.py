"""Bad input, one line a case: what is given, the field that the error names, and a piece of what it says.

A value that is a function gets the case's own directory and the tiny model's, and returns the option's value.
"""

import json
import shutil
from dataclasses import dataclass, field

import torch
from safetensors.torch import load_file, save_file

from tests.support.tiny import make_rows, make_tokenizer

GOOD = make_rows(4)
ROW = GOOD[0]


@dataclass(frozen=True)
class Case:
    """One case.

    Args:
        name: Its name.
        options: Options of `fit` that are laid over good ones; None takes an option away.
        names: What the error has to name.
        says: What it has to say.
        command: Another command than fit.
    """

    name: str
    options: dict
    names: str
    says: str
    command: str = "fit"
    bare: bool = field(default=False)


def text(content, name="pairs.jsonl"):
    """A data file with this content."""

    def write(folder, model):
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def rows(*given, **columns):
    """A data file of these rows, or of good rows with some columns changed."""
    found = given or [{**row, **columns} for row in GOOD]
    return text("".join(json.dumps(row) + "\n" for row in found))


def model_with(change):
    """A copy of the tiny model, changed."""

    def write(folder, model):
        path = shutil.copytree(model, folder / "model")
        change(path)
        return path

    return write


def edit_json(name, **values):
    """Change keys of a JSON file of the model; None removes one."""

    def change(path):
        content = json.loads((path / name).read_text())
        for key, value in values.items():
            content.pop(key, None) if value is None else content.update({key: value})
        (path / name).write_text(json.dumps(content))

    return change


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
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
            (path / file).unlink(missing_ok=True)
        tokenizer.save_pretrained(path)

    return change


def file(name, content=""):
    def write(folder, model):
        (folder / name).write_text(content)
        return folder / name

    return write


def messages(role="user", content="a b", answer="b yes", **extra):
    chosen = [{"role": role, "content": content}, {"role": "assistant", "content": answer}]
    rejected = [{"role": role, "content": content}, {"role": "assistant", "content": "c no"}]
    return {"chosen": chosen, "rejected": rejected, **extra}


D, P, L, OPT, T = "data.", "model.policy.", "model.loss.", "model.optimizer.", "trainer."
TRAIN = "data.train"

CASES = [
    # Files.
    Case("missing file", {TRAIN: "nowhere.jsonl"}, "nowhere.jsonl", "no such file or directory"),
    Case("empty file", {TRAIN: text("")}, "pairs.jsonl", "empty"),
    Case("blank lines alone", {TRAIN: text("\n \n\n")}, "pairs.jsonl", "no rows"),
    Case("unknown ending", {TRAIN: text("x", "pairs.docx")}, "pairs.docx", "unknown file type"),
    Case("directory without data", {TRAIN: lambda f, m: f}, "", "data files"),
    Case("latin-1", {TRAIN: text('{"prompt": "é"}\n'.encode("latin-1"))}, "pairs.jsonl:1", "UTF-8"),
    Case("utf-16", {TRAIN: text(json.dumps(ROW).encode("utf-16"))}, "pairs.jsonl:1", "UTF-8"),
    Case("NUL bytes", {TRAIN: text(b"\x00\x00\x00\n")}, "pairs.jsonl:1", "JSON"),
    Case("broken line", {TRAIN: text(json.dumps(ROW) + "\n{broken\n")}, "pairs.jsonl:2", "JSON"),
    Case("a list on a line", {TRAIN: text("[1, 2]\n")}, "pairs.jsonl:1", "expected an object"),
    Case("deep JSON", {TRAIN: text("[" * 100_000 + "\n")}, "pairs.jsonl:1", "JSON"),
    Case("broken JSON file", {TRAIN: text('[{"prompt": ', "pairs.json")}, "pairs.json", "malformed JSON"),
    Case("no parquet", {TRAIN: text("nonsense", "pairs.parquet")}, "pairs.parquet", "cannot be read"),
    Case("no arrow", {TRAIN: text("nonsense", "pairs.arrow")}, "pairs.arrow", "cannot be read"),
    Case("ragged CSV", {TRAIN: text("prompt,chosen,rejected\na,b\n1,2,3,4,5\n", "pairs.csv")}, "pairs.csv", ""),
    Case("CSV without a header", {TRAIN: text("a,b,c\nd,e,f\n", "pairs.csv")}, "pairs.csv", "chosen"),
    Case("split of a file", {TRAIN: None, "data.train.path": rows(), "data.train.split": "x"}, "split", "leave it out"),
    # Rows.
    Case("no rejected", {TRAIN: rows({"prompt": "a", "chosen": "b"})}, TRAIN, "rejected"),
    Case("no chosen", {TRAIN: rows({"prompt": "a", "rejected": "b"})}, "pairs.jsonl", "chosen"),
    Case(
        "columns of another shape", {TRAIN: rows({"question": "a", "good": "b", "bad": "c"})}, "pairs.jsonl", "question"
    ),
    Case("empty chosen", {TRAIN: rows(chosen="")}, "pairs.jsonl", "empty answer"),
    Case("white chosen", {TRAIN: rows(chosen="  \n ")}, "pairs.jsonl", ""),
    Case("empty prompt", {TRAIN: rows(prompt="")}, "pairs.jsonl", "empty prompt"),
    Case("null chosen", {TRAIN: rows(chosen=None)}, "pairs.jsonl", "missing"),
    Case("number as chosen", {TRAIN: rows(chosen=3)}, "pairs.jsonl", "expected text"),
    Case("list of numbers as chosen", {TRAIN: rows(chosen=[1, 2])}, "pairs.jsonl", "messages"),
    Case("nested object as prompt", {TRAIN: rows(prompt={"a": {"b": 1}})}, "pairs.jsonl", ""),
    Case("identical answers", {TRAIN: rows(chosen="a b", rejected="a b")}, TRAIN, "chosen equals rejected"),
    Case("negative weight", {TRAIN: rows(weight=-1.0)}, "pairs.jsonl", "weight"),
    Case("weight not a number", {TRAIN: rows(weight="much")}, "pairs.jsonl", "weight"),
    Case("margin NaN", {TRAIN: text(json.dumps({**ROW, "margin": float("nan")}))}, "pairs.jsonl", "margin"),
    Case("margin infinite", {TRAIN: text(json.dumps({**ROW, "margin": float("inf")}))}, "pairs.jsonl", "margin"),
    Case(
        "message without a role",
        {TRAIN: rows({"chosen": [{"content": "a"}], "rejected": [{"content": "b"}]})},
        "pairs.jsonl",
        "role",
    ),
    Case("message without content", {TRAIN: rows(messages(content=None))}, "pairs.jsonl", "content"),
    Case(
        "no shared prompt",
        {TRAIN: rows({**messages(), "rejected": messages(content="c d")["rejected"]})},
        "pairs.jsonl",
        "no shared prompt",
    ),
    Case(
        "answer of the user",
        {TRAIN: rows({"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "b"}]})},
        "pairs.jsonl",
        "",
    ),
    Case("tools no JSON", {TRAIN: rows(messages(tools="{"))}, "pairs.jsonl", "tools"),
    Case(
        "bad columns mapping",
        {TRAIN: None, "data.train.path": rows(), "data.train.columns": '{"prompt": "promt"}'},
        "pairs.jsonl",
        "promt",
    ),
    Case("unknown format", {TRAIN: None, "data.train.path": rows(), "data.train.format": "xml"}, "format", ""),
    Case("source weight zero", {TRAIN: None, "data.train.path": rows(), "data.train.weight": 0}, "weight", "above 0"),
    Case("every row dropped", {TRAIN: rows(chosen=""), "data.on_bad_row": "drop"}, "", "no"),
    Case("everything too long", {TRAIN: rows(), "data.max_length": 3, "data.truncation": "drop"}, "", "max_length"),
    # Data options.
    Case("max_length zero", {D + "max_length": 0}, "data.max_length", "at least 2"),
    Case("max_length text", {D + "max_length": "long"}, "data.max_length", "int"),
    Case("prompt as long as all", {D + "max_prompt_length": 40}, "data.max_prompt_length", "max_length"),
    Case("global batch zero", {D + "global_batch_size": 0}, "data.global_batch_size", "at least 1"),
    Case("global batch negative", {D + "global_batch_size": -8}, "data.global_batch_size", "at least 1"),
    Case("micro batch zero", {D + "micro_batch_size": 0}, "data.micro_batch_size", "at least 1"),
    Case("global no multiple of micro", {D + "micro_batch_size": 3}, "data.global_batch_size", "multiple"),
    Case("max_tokens too small", {D + "max_tokens": 5}, "data.max_tokens", "tokens"),
    Case("val_size negative", {D + "val_size": -0.5}, "data.val_size", ""),
    Case("val_size takes all", {D + "val_size": 100}, "data.val_size", ""),
    Case("val twice", {D + "val_size": 0.5, D + "val": rows()}, "data.val_size", "leave one"),
    Case("truncation unknown", {D + "truncation": "middle"}, "data.truncation", "keep_start"),
    Case("on_bad_row unknown", {D + "on_bad_row": "ignore"}, "data.on_bad_row", "drop"),
    Case("template is no file", {D + "chat_template": "nowhere.jinja"}, "data.chat_template", "not found"),
    Case("template does not parse", {D + "chat_template": "{% for %}"}, "pairs.jsonl", "template refused"),
    Case(
        "template reaches outside",
        {D + "chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"},
        "pairs.jsonl",
        "template",
    ),
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
    Case("4-bit on the CPU", {P + "lora.quantize": "nf4"}, "quantize", "CUDA"),
    Case("dtype unknown", {P + "dtype": "int8"}, "model.policy.dtype", ""),
    Case("chunk zero", {P + "head_chunk_size": 0}, "model.policy.head_chunk_size", "at least 1"),
    Case("varlen on the CPU", {P + "packed_attention": "varlen"}, "packed_attention", ""),
    # Losses.
    Case("no loss", {"model.loss": None}, "loss", ""),
    Case("unknown loss", {"model.loss": "adapdo"}, "model.loss", "AdaDPO"),
    Case("beta zero", {L + "beta": 0}, "beta", "above 0"),
    Case("beta negative", {L + "beta": -0.1}, "beta", "above 0"),
    Case("beta text", {L + "beta": "strong"}, "beta", "number"),
    Case("smoothing too large", {L + "label_smoothing": 0.5}, "label_smoothing", ""),
    Case("ceiling below floor", {L + "ceiling": 0.5, L + "floor": 1.0}, "floor", ""),
    Case("ceiling zero", {L + "ceiling": 0}, "ceiling", ""),
    Case("unknown option of a loss", {L + "betta": 0.1}, "betta", "beta"),
    Case("option of another loss", {L + "gamma_beta_ratio": 0.1}, "gamma_beta_ratio", ""),
    Case("space unknown", {L + "space": "time"}, "space", "policy"),
    Case("reference none", {"model.reference": "none"}, "model.reference", "needs a reference"),
    Case("adapter_off without LoRA", {"model.reference": "adapter_off"}, "model.reference", "LoRA"),
    # Optimisation and trainer.
    Case("rate zero", {OPT + "lr": 0}, "model.optimizer.lr", "above 0"),
    Case("rate negative", {OPT + "lr": -1e-6}, "model.optimizer.lr", "above 0"),
    Case("betas outside", {OPT + "betas": "[0.9, 1.0]"}, "model.optimizer.betas", "[0, 1)"),
    Case("warm-up above one", {"model.scheduler.warmup_ratio": 2}, "warmup_ratio", "[0, 1]"),
    Case("scheduler unknown", {"model.scheduler.name": "cosin"}, "model.scheduler", "cosine"),
    Case("nothing bounds the run", {T + "max_epochs": -1, T + "max_steps": -1}, "trainer.max_epochs", "max_steps"),
    Case("accumulation contradicts", {T + "accumulate_grad_batches": 7}, "accumulate_grad_batches", "remove it"),
    Case("limit inside a step", {T + "limit_train_batches": 1}, "limit_train_batches", "multiple"),
    Case("validation every 0", {T + "val_check_interval": 0, D + "val": rows()}, "val_check_interval", "more than 0"),
    Case("validation never", {T + "val_check_interval": 9, D + "val": rows()}, "val_check_interval", "an epoch's 2"),
    Case("monitor of no logger", {T + "callbacks": "LearningRateMonitor", T + "logger": "false"}, "trainer", "logger"),
    Case("strategy unknown", {T + "strategy": "fsdp3"}, "fsdp3", ""),
    Case("GPU that is not there", {T + "accelerator": "gpu"}, "", "gpu"),
    Case("precision nonsense", {T + "precision": "13"}, "precision", ""),
    Case("precision that spoils", {T + "precision": "bf16-true"}, "trainer.precision", "bf16-mixed"),
    Case("devices zero", {T + "devices": 0}, "devices", ""),
    Case("unknown callback", {T + "callbacks": "NoSuchCallback"}, "callbacks", ""),
    Case("unknown logger", {T + "logger": "NoSuchLogger"}, "logger", ""),
    # Configs and the command line.
    Case("unknown option", {"data.trian": "x"}, "data.trian", "data.train"),
    Case("unknown section", {"modle.loss": "dpo"}, "modle", ""),
    Case("config missing", {"config": "nowhere.yaml"}, "nowhere.yaml", "not exist"),
    Case("config broken", {"config": file("c.yaml", "a: [1\n")}, "c.yaml", ""),
    Case("config a list", {"config": file("c.yaml", "- 1\n- 2\n")}, "c.yaml", ""),
    Case("config with an unknown key", {"config": file("c.yaml", "data:\n  trian: x\n")}, "trian", "train"),
    Case("config with a wrong type", {"config": file("c.yaml", "data:\n  max_length: many\n")}, "max_length", ""),
    Case("unknown command", {}, "command", "did you mean 'fit'", command="fitt"),
    # The file system.
    Case("output is a file", {"output_dir": file("out_file")}, "output_dir", "is a file"),
    Case("output below a file", {"output_dir": lambda f, m: file("out_file")(f, m) / "run"}, "output_dir", ""),
    Case("output cannot be written", {"output_dir": "/proc/run"}, "output_dir", ""),
    Case("checkpoint missing", {"ckpt_path": "nowhere.ckpt"}, "ckpt_path", "no checkpoint"),
    Case("last of nothing", {"ckpt_path": "last"}, "ckpt_path", "no checkpoint"),
    Case("checkpoint damaged", {"ckpt_path": file("x.ckpt", "PK")}, "ckpt_path", "damaged"),
    Case(
        "export of nothing",
        {"checkpoint": "nowhere.ckpt", "output": "out"},
        "nowhere.ckpt",
        "",
        command="export",
        bare=True,
    ),
]
