"""The commands with a GGUF file as their model."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from adadpo_lightning.cli import main
from adadpo_lightning.models.loading import PolicyConfig, load_model
from tests.support.gguf import make_gguf
from tests.support.runs import arguments, run
from tests.support.tiny import make_rows, write_rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One step of training on a GGUF file, stopped there."""
    folder = tmp_path_factory.mktemp("run")
    file, _ = make_gguf(folder)
    pairs = write_rows(folder / "pairs.jsonl", make_rows(12))
    options = ["--data.max_length=200", "--trainer.limit_val_batches=0", "--trainer.val_check_interval=1.0"]
    constant = ["--model.scheduler.name=constant", "--model.scheduler.warmup_ratio=0"]
    args = arguments(file, pairs, folder / "out", *options, "--trainer.callbacks+=ExportHF", *constant, loss="dpo")
    assert main([*args, "--trainer.max_steps=1", "--checkpoint.every_n_train_steps=1"]) == 0
    return file, args, folder


def test_fit_exports_what_transformers_loads(trained):
    file, _, folder = trained
    before = load_model(PolicyConfig(path=str(file))).state_dict()
    after = AutoModelForCausalLM.from_pretrained(folder / "out/export").state_dict()
    assert before.keys() == after.keys()
    assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"])
    assert "Base model: `tiny.gguf`" in (folder / "out/export/README.md").read_text(encoding="utf-8")


def test_a_checkpoint_exports_from_a_moved_file(trained, tmp_path):
    file, _, folder = trained
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(file.read_bytes())
    target = tmp_path / "export"
    checkpoint = folder / "out/checkpoints/last.ckpt"
    assert main(["export", f"--checkpoint={checkpoint}", f"--output={target}", f"--base={moved}"]) == 0
    exported = AutoModelForCausalLM.from_pretrained(folder / "out/export").state_dict()
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(target).state_dict(), exported, rtol=0, atol=0)


def test_a_resume_takes_the_same_content_anywhere_and_refuses_another(trained, tmp_path, capsys):
    file, args, _ = trained
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(file.read_bytes())
    resumed = [*args, f"--model.policy.path={moved}", "--trainer.max_steps=2", "--ckpt_path=last"]
    assert run(resumed) == 0
    moved.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert run([*resumed, "--trainer.max_steps=3"]) == 2
    assert "model.policy.path.gguf" in capsys.readouterr().err


def test_doctor_and_estimate(trained, capsys):
    _, args, _ = trained
    options = [arg for arg in args[1:] if not arg.startswith(("--trainer.log", "--trainer.val"))]
    assert main(["doctor", *options, "--model.policy.lora.r=2"]) == 0
    printed = capsys.readouterr().out
    assert "ok    loss at step 0: 0.6931, and 0.6931 where policy and reference are the same" in printed
    assert "peak on a rank, GiB" in printed


def test_generate_and_inspect_data(trained, tmp_path, capsys):
    file, _, folder = trained
    prompts, answers = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    prompts.write_text("the cat\na cat\n", encoding="utf-8")
    asked = [f"--model={file}", f"--prompts={prompts}", f"--output={answers}", "--max_new_tokens=4"]
    assert main(["generate", *asked, "--temperature=0"]) == 0
    assert [json.loads(line)["generator"] for line in answers.read_text().splitlines()] == ["tiny.gguf"] * 2
    assert main(["inspect-data", f"--data={folder / 'pairs.jsonl'}", f"--tokenizer={file}"]) == 0
    assert "<|im_start|>" in capsys.readouterr().out
