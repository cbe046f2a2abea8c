"""Sampled answers: against plain transformers, exact divergences, TensorBoard's own renderer; training is untouched.

``torchrun -m tests.callbacks.test_generation FOLDER`` is what the two ranks run.
"""

import csv
import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from transformers import AutoModelForCausalLM

from adadpo_lightning.callbacks import GenerationCallback
from adadpo_lightning.callbacks.answer_table import COLUMNS, markdown_table, write_table
from adadpo_lightning.errors import UserError
from adadpo_lightning.metrics.on_policy import on_policy_kl
from adadpo_lightning.models.loading import LoraOptions
from adadpo_lightning.strategies import FSDP2
from adadpo_lightning.training.module import PreferenceLitModule
from tests.support.tiny import make_tokenizer
from tests.training.test_module import QUIET, data, module


class Keeping(GenerationCallback):
    """Keeps the answers of this rank."""

    def _answers(self, trainer, module):
        self.kept = super()._answers(trainer, module)
        return self.kept


def fit(lit, pairs_file, callback, out, micro=4, **options):
    seed_everything(0)
    options = {"max_steps": 5, "enable_checkpointing": False, "logger": False, "default_root_dir": out, **options}
    trainer = Trainer(**{**QUIET, **options}, callbacks=[] if callback is None else [callback])
    trainer.fit(lit, datamodule=data(pairs_file, micro_batch_size=micro, val=str(pairs_file)))
    return {k: float(v) for k, v in trainer.callback_metrics.items()}


def with_reference(model_dir, key, reference, cache, **policy):
    made = module(model_dir, key, **policy)
    parts = made.policy_config, made.loss, made.optimizer_config, made.scheduler_config
    return PreferenceLitModule(*parts, reference=reference, reference_cache=str(cache))


def plain(model_dir, lit=None):
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64).eval()
    if lit is not None:
        model.load_state_dict({n.removeprefix("policy.model."): p for n, p in lit.named_parameters()})
    return model


def logps_by_hand(model, prompt, answer):
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0].numpy()


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_metrics_are_those_of_the_sampled_ids(model_dir, pairs_file, tmp_path, layout):
    lit = module(model_dir, "dpo", layout=layout)
    callback = Keeping(prompts=9, max_new_tokens=12, batch_size=4, seed=3)
    seen = fit(lit, pairs_file, callback, tmp_path)
    policy, reference = plain(model_dir, lit), plain(model_dir)
    sums, lengths, fluency = [], [], []
    for answer in callback.kept:
        prompt = callback._encoded[answer.number]
        fluency.append(logps_by_hand(reference, prompt, answer.ids))
        d = logps_by_hand(policy, prompt, answer.ids) - fluency[-1]
        sums.append(np.sum(np.exp(-d) - 1 + d))
        lengths.append(len(answer.ids))
        assert 2 not in answer.ids[:-1]  # nothing after the end of turn
        assert answer.finished == (answer.ids[-1] == 2)
        assert answer.finished or len(answer.ids) == 12
    sums, lengths = np.array(sums), np.array(lengths)
    assert len(sums) == 9
    kl = sums.sum() / lengths.sum()
    assert kl > 1e-3
    assert seen["val/kl/policy"] == pytest.approx(kl, rel=1e-5)
    assert seen["val/generation/reference_logps_per_token"] == pytest.approx(np.concatenate(fluency).mean(), rel=1e-5)
    mean = lengths.mean()
    stderr = np.std((sums - kl * lengths) / mean, ddof=1) / 3  # residuals about a line through 0 have mean 0
    assert seen["val/kl/policy_stderr"] == pytest.approx(stderr, rel=1e-5)
    assert seen["val/generation/length"] == pytest.approx(mean)
    assert seen["val/generation/eos_rate"] == pytest.approx(np.mean([a.finished for a in callback.kept]))
    assert 0 < seen["val/generation/eos_rate"] < 1


def test_prompts_are_the_first_different_ones_of_the_validation_pairs(model_dir, pairs_file, tmp_path):
    callback = Keeping(prompts=5, max_new_tokens=2)
    fit(module(model_dir, "dpo"), pairs_file, callback, tmp_path, max_steps=1, val_check_interval=2)
    texts = list(dict.fromkeys(json.loads(line)["prompt"] for line in pairs_file.read_text().splitlines()))[:5]
    tokenizer = make_tokenizer()
    expected = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        for text in texts
    ]
    assert callback._encoded == expected
    listed = Keeping(prompts=texts, max_new_tokens=2)
    fit(module(model_dir, "dpo"), pairs_file, listed, tmp_path, max_steps=1, val_check_interval=2)
    assert listed._encoded == expected
    assert [a.ids for a in listed.kept] == [a.ids for a in callback.kept]


def test_greedy_answers_are_those_of_plain_transformers(model_dir, pairs_file, tmp_path):
    lit = module(model_dir, "dpo")
    callback = Keeping(prompts=6, max_new_tokens=10, temperature=0.0, batch_size=4)
    fit(lit, pairs_file, callback, tmp_path)
    model = plain(model_dir, lit)
    for answer in callback.kept:
        prompt = torch.tensor([callback._encoded[answer.number]])
        alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=10, do_sample=False)
        assert alone[0, prompt.shape[1] :].tolist() == answer.ids


def test_batching_changes_no_answer_and_the_seed_does(model_dir, pairs_file, tmp_path):
    answers = {}
    for name, options in {"one": {"batch_size": 1}, "many": {}, "other": {"seed": 1}}.items():
        callback = Keeping(prompts=7, max_new_tokens=10, **options)
        fit(module(model_dir, "dpo"), pairs_file, callback, tmp_path, max_steps=1, val_check_interval=2)
        answers[name] = [a.ids for a in callback.kept]
    assert answers["one"] == answers["many"] != answers["other"]


def test_the_estimate_is_the_divergence(model_dir, pairs_file, tmp_path):
    """One token after one prompt, drawn 400 times: KL in closed form lies within four standard errors."""
    lit = module(model_dir, "dpo")
    callback = Keeping(prompts=["a cat"] * 400, max_new_tokens=1, batch_size=100)
    seen = fit(lit, pairs_file, callback, tmp_path)
    prompt = torch.tensor([callback._encoded[0]])
    with torch.no_grad():
        p, q = (model(prompt).logits[0, -1].log_softmax(-1) for model in (plain(model_dir, lit), plain(model_dir)))
    exact = (p.exp() * (p - q)).sum().item()
    stderr = seen["val/kl/policy_stderr"]
    assert 0 < stderr < exact / 5
    assert abs(seen["val/kl/policy"] - exact) < 4 * stderr


def test_standard_error_is_that_of_a_bootstrap():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 60, 300)
    sums = lengths * rng.gamma(2.0, 0.05, 300)
    kl, stderr = on_policy_kl(torch.tensor(sums), torch.tensor(lengths))
    draws = rng.integers(0, 300, (4000, 300))
    resampled = sums[draws].sum(1) / lengths[draws].sum(1)
    assert kl == pytest.approx(sums.sum() / lengths.sum())
    assert stderr == pytest.approx(resampled.std(), rel=0.05)
    assert np.isnan(on_policy_kl(torch.tensor([1.0]), torch.tensor([2]))[1])


@pytest.mark.parametrize("policy", [{}, {"lora": LoraOptions(r=2, dropout=0.3)}], ids=["full", "lora"])
def test_training_is_the_same_to_the_bit(model_dir, pairs_file, tmp_path, policy):
    results = []
    for callback in (GenerationCallback(prompts=3, max_new_tokens=8), None):
        lit = module(model_dir, "adadpo", dtype="float32", **policy)
        seed_everything(0)
        lit.configure_model()
        model = lit.policy.causal_lm
        before = model.generation_config, model.config._attn_implementation
        seen = fit(lit, pairs_file, callback, tmp_path, val_check_interval=2)
        assert ("val/kl/policy" in seen) == (callback is not None)
        assert (model.generation_config, model.config._attn_implementation) == before
        results.append([*(p.detach().clone() for p in lit.parameters()), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_where_the_reference_comes_from(model_dir, pairs_file, tmp_path, caplog):
    """Cached, or none: said in one line, loaded if asked for, and free where adapters can be switched off."""

    def run(key, reference="auto", lora=False, **options):
        lit = with_reference(model_dir, key, reference, tmp_path / "reference", lora=LoraOptions(r=2) if lora else None)
        caplog.clear()
        with caplog.at_level("INFO"):
            seen = fit(lit, pairs_file, GenerationCallback(prompts=3, max_new_tokens=8, **options), tmp_path)
        said = [r.getMessage() for r in caplog.records if "no val/kl/policy" in r.getMessage()]
        assert len(said) == (0 if "val/kl/policy" in seen else 1)
        return seen.get("val/kl/policy"), said

    frozen, _ = run("dpo")
    assert frozen > 0
    missing, said = run("dpo", "cached")
    assert missing is None
    assert "reference: cached" in said[0]
    assert run("dpo", "cached", load_reference=True)[0] == pytest.approx(frozen, rel=1e-6)
    assert run("simpo")[0] is None
    assert run("simpo", load_reference=True)[0] > 0
    adapters, _ = run("dpo", lora=True)
    assert run("dpo", "cached", lora=True)[0] == pytest.approx(adapters, rel=1e-6)


def test_a_policy_that_is_its_reference_has_no_divergence(model_dir, pairs_file, tmp_path):
    trainer = Trainer(**QUIET, default_root_dir=tmp_path, callbacks=[GenerationCallback(max_new_tokens=6)])
    dm = data(pairs_file, val=str(pairs_file))
    seen = trainer.validate(module(model_dir, "dpo"), datamodule=dm, verbose=False)[0]
    assert seen["val/kl/policy"] == 0.0
    assert seen["val/kl/policy_stderr"] == 0.0
    assert seen["val/generation/length"] > 1


def test_sampling_that_is_not_the_policys_is_said(model_dir, pairs_file, tmp_path, caplog):
    with caplog.at_level("INFO"):
        callback = GenerationCallback(prompts=2, max_new_tokens=2, temperature=0.7)
        fit(module(model_dir, "dpo"), pairs_file, callback, tmp_path, max_steps=1)
    assert sum("does not estimate the divergence" in r.getMessage() for r in caplog.records) == 1


NASTY = [
    ["a|b", "*x* _y_ __z__ `c` # d", 3, True],
    ["<script>alert(1)</script> &amp; <br>", "two\nlines\r\n\r\n- item\n1. one", 4, False],
    ["[link](http://x.y) ![i](z)", "\\| \\\\ ~~s~~ | --- | a_b_c $x$ ключ 漢字", 5, True],
    ["    indented", "", 1, False],
]


def test_tensorboard_shows_texts_as_they_are():
    """Through the renderer that TensorBoard itself uses for its text page."""
    from tensorboard.plugin_util import markdown_to_safe_html

    page = markdown_to_safe_html(markdown_table(COLUMNS, NASTY))
    rows = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S) for row in re.findall(r"<tr>(.*?)</tr>", page, re.S)]
    assert rows[0] == COLUMNS
    for shown, row in zip(rows[1:], NASTY, strict=True):
        assert not re.search(r"<(?!br ?/?>)", "".join(shown))
        texts = [html.unescape(re.sub(r"<br ?/?>", "\n", cell)) for cell in shown]
        expected = [str(value).replace("\r\n", "\n") for value in row]
        assert [text.strip() for text in texts] == [text.strip() for text in expected]


def test_loggers_get_the_answers_in_their_own_way(model_dir, pairs_file, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoardLogger(tmp_path, name="tensorboard", version="")
    table = CSVLogger(tmp_path, name="csv")
    callback = GenerationCallback(prompts=3, max_new_tokens=5)
    fit(module(model_dir, "dpo"), pairs_file, callback, tmp_path, logger=[board, table], val_check_interval=3)
    lines = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text().splitlines()]
    with Path(table.log_dir, "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["val/generation/length"]]
    assert [line["step"] for line in lines] == [step for step in steps for _ in range(3)]
    assert list(lines[0]) == ["step", *COLUMNS]
    assert set(lines[0]["prompt"].split()) & {"<user>", "<bos>"} == set()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    written = events.Tensors("val/generations/text_summary")
    assert [event.step for event in written] == steps
    text = written[0].tensor_proto.string_val[0].decode()
    assert text == markdown_table(COLUMNS, [[line[c] for c in COLUMNS] for line in lines[:3]])


def test_a_logger_with_tables_gets_one_and_no_file_is_written(tmp_path):
    seen = []
    logger = SimpleNamespace(log_table=lambda key, **options: seen.append((key, options)))
    write_table(SimpleNamespace(loggers=[logger], default_root_dir=tmp_path), NASTY, 7)
    assert seen == [("val/generations", {"columns": COLUMNS, "data": NASTY, "step": 7})]
    assert not list(tmp_path.iterdir())


def test_what_cannot_work_is_said_before_training(model_dir, pairs_file, tmp_path):
    with pytest.raises(UserError, match="expected at least 1 prompt"):
        GenerationCallback(prompts=[])
    with pytest.raises(UserError, match="top_p"):
        GenerationCallback(top_p=0.0)
    lit = module(model_dir, "dpo")
    with pytest.raises(UserError, match=r"max_new_tokens: the longest prompt has .* beyond the model's 128 positions"):
        fit(lit, pairs_file, GenerationCallback(max_new_tokens=120), tmp_path)
    trainer = Trainer(**QUIET, callbacks=[GenerationCallback()])
    with pytest.raises(UserError, match="the run has no validation pairs"):
        trainer.fit(lit, datamodule=data(pairs_file, micro_batch_size=4))
    assert trainer.global_step == 0


# Two ranks. Five prompts: one rank has two and a stand-in; answers end at different lengths.

RUNS = {
    "ddp": ("ddp", {}, "auto"),
    "fsdp2": ("fsdp2", {}, "auto"),
    "fsdp2-lora": ("fsdp2", {"lora": LoraOptions(r=2)}, "cached"),
}


def run(folder, name, *, ranks, generate=True):
    kind, policy, reference = RUNS[name]
    seed_everything(0)
    lit = with_reference(folder / "model", "dpo", reference, folder / f"reference-{ranks}", **policy)
    callback = Keeping(prompts=5, max_new_tokens=40, batch_size=2)
    seen = fit(
        lit,
        folder / "pairs.jsonl",
        callback if generate else None,
        folder / f"out-{name}-{ranks}",
        micro=8 // ranks,
        devices=ranks,
        strategy="auto" if ranks == 1 else "ddp" if kind == "ddp" else FSDP2(reduce_dtype=None),
        inference_mode=kind == "ddp",
        val_check_interval=2,
    )
    kept = {a.number: a.ids for a in callback.kept} if generate else {}
    metrics = {k: v for k, v in seen.items() if "generation" in k or "policy" in k}
    weights = [getattr(p, "full_tensor", lambda p=p: p)().detach().clone() for p in lit.parameters()]
    return {"metrics": metrics, "answers": kept, "weights": weights}


def worker(folder):
    torch.set_num_threads(1)
    for name in RUNS:
        results = [run(folder, name, ranks=2, generate=generate) for generate in (True, False)]
        torch.save(results, folder / f"{name}-{os.environ['RANK']}.pt")


def check(folder, name):
    expected = run(folder, name, ranks=1)
    first, second = (torch.load(folder / f"{name}-{rank}.pt") for rank in range(2))
    assert sorted(first[0]["answers"]) == [0, 2, 4]
    assert sorted(second[0]["answers"]) == [1, 3]
    assert first[0]["answers"] | second[0]["answers"] == expected["answers"]
    steps = {number: len(ids) for number, ids in expected["answers"].items()}
    assert max(steps[0], steps[2]) != max(steps[1], steps[3])  # else the ranks would stay in step by chance
    assert expected["metrics"]["val/kl/policy"] > 0
    for with_answers, without in (first, second):
        assert with_answers["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)
        assert all(torch.equal(a, b) for a, b in zip(with_answers["weights"], without["weights"], strict=True))
    lines = (folder / f"out-{name}-2" / "generations.jsonl").read_text().splitlines()
    assert lines == (folder / f"out-{name}-1" / "generations.jsonl").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_equal_one_process(model_dir, pairs_file, tmp_path):
    """One test for all runs: starting two processes takes longer than they do."""
    (tmp_path / "model").symlink_to(model_dir)
    (tmp_path / "pairs.jsonl").symlink_to(pairs_file)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "USE_LIBUV": "0"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "tests.callbacks.test_generation", tmp_path]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    for name in RUNS:
        check(tmp_path, name)


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
