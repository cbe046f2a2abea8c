"""The lines before the first step, against numbers counted by hand."""

import pytest
from lightning.pytorch import Callback, Trainer
from transformers import AutoModelForCausalLM

from adadpo_lightning.callbacks import RunSummary
from adadpo_lightning.callbacks.summary import run_lines
from adadpo_lightning.losses import SFT, Mixture, build_loss
from adadpo_lightning.models.loading import LoraOptions
from tests.support.tiny import make_rows, make_tokenizer
from tests.training.test_module import QUIET, data, module


class Lines(Callback):
    def on_train_start(self, trainer, pl_module):
        self.lines = dict(run_lines(trainer, pl_module))


def summary_of(lit, dm, callbacks=(), **options):
    watch = Lines()
    options = {"max_epochs": 3, "enable_checkpointing": False, "limit_val_batches": 0} | options
    Trainer(**QUIET, **options, callbacks=[*callbacks, watch]).fit(lit, datamodule=dm)
    return watch.lines


def test_it_says_what_is_trained_on_how_much(model_dir, pairs_file):
    dm = data(pairs_file, micro_batch_size=2, val=str(pairs_file))
    lines = summary_of(module(model_dir, "adasimpo"), dm, gradient_clip_val=1.0)
    weights = AutoModelForCausalLM.from_pretrained(model_dir).num_parameters()
    tokenizer = make_tokenizer()

    def tokens(row):
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": row["prompt"]}], add_generation_prompt=True)
        prompt = prompt["input_ids"] if hasattr(prompt, "keys") else prompt
        return len(prompt) + sum(len(row[side].split()) + 1 for side in ("chosen", "rejected"))

    total = sum(map(tokens, make_rows(37)))
    assert lines["model"] == f"LlamaForCausalLM, {weights / 1e3:.3g} k parameters, all trained, float64"
    assert lines["loss"].startswith("adasimpo: -logsigmoid(")
    assert "beta=2.0" in lines["loss"]
    assert "floor" not in lines["loss"]
    assert lines["reference"] == "none"
    assert lines["layout"] == "packed"
    assert lines["data"] == f"37 pairs, {total:,} tokens an epoch; 37 validation pairs"
    assert lines["steps"] == "15 optimizer steps"
    assert lines["global batch"] == "8 pairs = 1 rank x 4 accumulated x 2 a micro-batch"
    rate = "AdamW, lr 0.01 constant after a warm-up of 0%"
    assert lines["optimizer"] == f"{rate}, precision 32-true, gradient clipped at 1"


def test_adapters_are_told_from_the_model_and_a_mixture_shows_its_parts(model_dir, pairs_file):
    mixture = Mixture([build_loss("adadpo"), SFT()], [0.9, 0.1])
    lit = module(model_dir, mixture, lora=LoraOptions(r=2))
    lines = summary_of(lit, data(pairs_file, max_tokens=500), max_steps=1)
    trained = sum(p.numel() for p in lit.parameters() if p.requires_grad)
    total = sum(p.numel() for p in lit.parameters())
    assert f"({trained / total:.2%}) trained" in lines["model"]
    assert 0 < trained < total
    assert lines["reference"] == "adapter_off"
    assert "0.9 * AdaDPO(" in lines["loss"]
    assert "as many as fit in 500 tokens a micro-batch" in lines["global batch"]


def test_it_is_printed_once_before_the_first_step(model_dir, pairs_file, capsys):
    printed = []

    class Before(Callback):
        def on_train_batch_start(self, *args):
            printed.append(capsys.readouterr().out)

    summary_of(module(model_dir, "dpo"), data(pairs_file, micro_batch_size=8), [RunSummary(), Before()])
    shown = [text for text in printed if "global batch" in text]
    assert shown == printed[:1]
    assert len(printed) == 15
    assert "-logsigmoid(beta*h_w - beta*h_l)" in shown[0]


@pytest.mark.parametrize(("asked", "lightnings"), [([], False), (["--trainer.enable_model_summary=true"], True)])
def test_the_command_line_has_it_in_the_place_of_lightnings(model_dir, pairs_file, tmp_path, capsys, asked, lightnings):
    from adadpo_lightning.cli import main

    args = ["fit", "--model.loss=dpo", f"--model.policy.path={model_dir}", f"--data.train={pairs_file}"]
    args += ["--data.max_length=40", "--data.global_batch_size=4", "--trainer.accelerator=cpu", "--trainer.max_steps=1"]
    assert main([*args, f"--output_dir={tmp_path / 'run'}", *asked]) == 0
    printed = capsys.readouterr().out
    assert "global batch" in printed
    assert ("Total params" in printed) == lightnings


def test_the_command_line_leaves_it_out_where_no_summary_is_wanted(model_dir, pairs_file, tmp_path, capsys):
    from adadpo_lightning.cli import main

    args = ["fit", "--model.loss=dpo", f"--model.policy.path={model_dir}", f"--data.train={pairs_file}"]
    args += ["--data.max_length=40", "--data.global_batch_size=4", "--trainer.accelerator=cpu", "--trainer.max_steps=1"]
    assert main([*args, f"--output_dir={tmp_path / 'run'}", "--trainer.enable_model_summary=false"]) == 0
    assert "global batch" not in capsys.readouterr().out
