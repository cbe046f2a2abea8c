"""What is exported is what transformers loads, all of it or nothing."""

import json
import shutil
from dataclasses import asdict

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from adadpo_lightning.checkpoints.directory import new_directory
from adadpo_lightning.checkpoints.export import export_checkpoint, export_model
from adadpo_lightning.errors import UserError
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig, load_model, load_tokenizer
from adadpo_lightning.models.policy import PolicyModel
from tests.support.runs import arguments, run
from tests.support.tiny import make_model_dir, make_rows, write_rows

IDS = torch.tensor([[1, 5, 9, 2, 7]])


def trained(model_dir, **options):
    """A policy whose trained weights have moved, as it is in training: packed."""
    config = PolicyConfig(path=str(model_dir), **options)
    policy = PolicyModel(load_model(config), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in policy.parameters():
            if p.requires_grad:
                p += torch.randn(p.shape, generator=generator) * 0.1
    return policy, load_tokenizer(config), config


def logits(policy):
    with policy.plain_attention() as model, torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_full_model(model_dir, tmp_path, dtype):
    policy, tokenizer, _ = trained(model_dir, dtype=dtype)
    export_model(policy.model, tokenizer, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype)
    assert torch.equal(loaded(IDS).logits, logits(policy))
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.chat_template == tokenizer.chat_template
    assert "adadpo" not in (tmp_path / "out" / "config.json").read_text()
    assert not list((tmp_path / "out").glob("*.bin"))


def test_tied_embeddings(model_dir, tmp_path):
    config = PolicyConfig(
        config={**json.loads((model_dir / "config.json").read_text()), "tie_word_embeddings": True},
        tokenizer=str(model_dir),
    )
    policy = PolicyModel(load_model(config), config)
    export_model(policy.model, load_tokenizer(config), tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded(IDS).logits, logits(policy))


def test_adapter_as_such(model_dir, tmp_path):
    policy, tokenizer, _ = trained(model_dir, lora=LoraOptions(r=2))
    export_model(policy.model, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")  # transformers finds the base model by itself
    torch.testing.assert_close(loaded(IDS).logits, logits(policy), rtol=1e-5, atol=1e-5)


def test_adapter_merged(model_dir, tmp_path):
    policy, tokenizer, _ = trained(model_dir, lora=LoraOptions(r=2))
    expected = logits(policy)
    export_model(policy.model, tokenizer, tmp_path / "out", merge=True)
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(loaded(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_an_empty_directory_is_filled(model_dir, tmp_path):
    policy, tokenizer, _ = trained(model_dir)
    (tmp_path / "out").mkdir()
    export_model(policy.model, tokenizer, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_there_stays(model_dir, tmp_path, kind):
    policy, tokenizer, _ = trained(model_dir)
    target = tmp_path / "out"
    if kind == "directory":
        target.mkdir()
    kept = target / "mine.txt" if kind == "directory" else target
    kept.write_text("mine")
    with pytest.raises(UserError, match=r"output: .*out exists and is not empty"):
        export_model(policy.model, tokenizer, target)
    assert kept.read_text() == "mine"


def test_nothing_half_written(model_dir, tmp_path):
    policy, _, _ = trained(model_dir)

    class Failing:
        def save_pretrained(self, path):
            raise OSError("disk full")

    with pytest.raises(UserError, match="out could not be written: disk full"):
        export_model(policy.model, Failing(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


# From a checkpoint.


def save_checkpoint(path, policy, config):
    state = {f"policy.{name}": w for name, w in policy.state_dict().items()}
    if config.lora is not None:
        state = {name: w for name, w in state.items() if "lora_" in name}
    torch.save({"adadpo_lightning": {"policy": asdict(config)}, "state_dict": state}, path)
    return str(path)


@pytest.mark.parametrize("lora", [None, LoraOptions(r=2)])
def test_checkpoint(model_dir, tmp_path, lora):
    policy, _, config = trained(model_dir, lora=lora)
    checkpoint = save_checkpoint(tmp_path / "last.ckpt", policy, config)
    export_checkpoint(checkpoint, str(tmp_path / "out"), merge=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(loaded(IDS).logits, logits(policy), rtol=1e-4, atol=1e-4)


def test_missing_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"checkpoint: no file or directory of shards .*none\.ckpt found"):
        export_checkpoint(str(tmp_path / "none.ckpt"), str(tmp_path / "out"))


def test_foreign_checkpoint(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="was not written by adadpo_lightning"):
        export_checkpoint(str(tmp_path / "other.ckpt"), str(tmp_path / "out"))


def test_checkpoint_that_lacks_a_weight(model_dir, tmp_path):
    policy, _, config = trained(model_dir)
    path = save_checkpoint(tmp_path / "last.ckpt", policy, config)
    content = torch.load(path)
    del content["state_dict"]["policy.model.model.norm.weight"]
    torch.save(content, path)
    with pytest.raises(UserError, match=r"missing \['model\.norm\.weight'\]"):
        export_checkpoint(path, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# From a run: what its checkpoint and its callback export.

TEMPLATE = "{% for m in messages %} <user> {{ m['content'] }} <eos>{% endfor %}"
LORA = ["--model.policy.lora.r=2", "--model.policy.lora.target_modules=[q_proj,v_proj]"]


@pytest.fixture(params=["chat_template", "tokenizer"])
def exported(request, tmp_path, model_dir):
    """The folder of a LoRA run whose pairs have a chat template that the policy's directory lacks, and its export."""
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATE)
    model = shutil.copytree(model_dir, tmp_path / "model")
    other = shutil.copytree(model_dir, tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(other)
    pairs = write_rows(tmp_path / "pairs.jsonl", make_rows(8))
    how = f"--data.chat_template={template}" if request.param == "chat_template" else f"--data.tokenizer={other}"
    options = [how, "--trainer.max_steps=1", "--trainer.callbacks+=adadpo_lightning.callbacks.ExportHF", *LORA]
    args = arguments(model, pairs, tmp_path / "out", *options)
    assert run(args) == 0
    return tmp_path


def test_an_export_has_the_template_of_the_pairs_and_its_base_must_not_change(exported, capsys):
    folder = exported
    checkpoint = f"--checkpoint={folder}/out/checkpoints/last.ckpt"
    assert run(["export", checkpoint, f"--output={folder}/by_command"]) == 0
    for name in ("out/export", "by_command"):
        assert AutoTokenizer.from_pretrained(folder / name).chat_template == TEMPLATE
        assert json.loads((folder / name / "training.json").read_text())["step"] == 1
    shutil.move(folder / "model", folder / "moved")
    assert run(["export", checkpoint, f"--output={folder}/again", f"--base={folder}/moved", "--merge=true"]) == 0
    make_model_dir(folder / "model", seed=1)
    assert run(["export", checkpoint, f"--output={folder}/wrong", "--merge=true"]) == 2
    assert "path.weights.model.safetensors: " in capsys.readouterr().err
    assert not (folder / "wrong").exists()


def test_a_resumed_run_replaces_its_own_export_and_no_other(tmp_path, model_dir, capsys):
    pairs = write_rows(tmp_path / "pairs.jsonl", make_rows(8))
    export = ["--trainer.callbacks+=adadpo_lightning.callbacks.ExportHF", "--auto_resume=true", "--trainer.max_steps=1"]
    args = arguments(model_dir, pairs, tmp_path / "out", *export, f"--trainer.callbacks.path={tmp_path / 'export'}")
    assert run(args) == 0
    before = (tmp_path / "export").stat().st_ino
    (tmp_path / "out/finished.json").unlink()  # killed after the export
    assert run(args) == 0
    assert (tmp_path / "export").stat().st_ino != before
    other = [arg.replace(str(tmp_path / "out"), str(tmp_path / "other")) for arg in args]
    assert run(other) == 2
    assert "export exists and is not empty" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()  # found before the first step


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
@pytest.mark.parametrize("replace", [False, True])
def test_a_full_disk_leaves_what_was_there(tmp_path, error, replace):
    target = tmp_path / "export"
    target.mkdir()
    if replace:
        (target / "old").write_text("whole")
    full = pytest.raises(UserError, match=r"output: .*export could not be written: .*No space left.*; free some")
    with full, new_directory(target, replace=replace) as partial:
        (partial / "new").write_text("cut")
        raise error
    assert [path.name for path in target.iterdir()] == (["old"] if replace else [])
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
