"""The recipe for the paper: its configs are valid, its commands parse, and its rehearsal is the same, smaller."""

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from adadpo_lightning.cli.commands.study import study_of
from adadpo_lightning.cli.parser import options
from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.judges import base as judges
from adadpo_lightning.generation.responses import Response
from adadpo_lightning.preferences.options import MakePairsOptions
from adadpo_lightning.study.commands import fit_arguments
from adadpo_lightning.study.grid import cells_of, jobs_of
from tests.support.cli import parsed
from tests.support.tiny import make_tokenizer

ROOT = Path(__file__).parent.parent
RECIPE = Path("configs/recipes/adadpo_llama3_8b_instruct")
PAGE = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8")


def commands():
    """Each command line of this package on the page."""
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.replace("$i", "0").rstrip("& "), comments=True)
            if "adadpo_lightning" in words:
                yield words[words.index("adadpo_lightning") + 1 :]


def loaded(name):
    """A program of the recipe as a module."""
    path = ROOT / RECIPE / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look up their module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    """Commands name configs from the root of the repository."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def study():
    return study_of(*parsed("study", "--config", RECIPE / "study.yaml"))


@pytest.fixture
def rehearsed():
    return study_of(*parsed("study", "--config", RECIPE / "study.yaml", "--config", RECIPE / "rehearsal/study.yaml"))


def test_each_command_of_the_page_parses():
    found = list(commands())
    assert {words[0] for words in found} == {"make-pairs", "study", "generate", "estimate", "inspect-data"}
    for words in found:
        parsed(*words)


def test_each_command_is_rehearsed_with_its_own_config():
    used = [word for words in commands() for word in words if word.startswith(str(RECIPE))]
    for path in sorted((ROOT / RECIPE).glob("*.yaml")):
        assert str(RECIPE / path.name) in used
        assert str(RECIPE / "rehearsal" / path.name) in used


def test_the_study_is_the_papers_grid_of_32_runs(study):
    assert len(jobs_of(study)) == 32
    cells = list(cells_of(study))
    assert {cell.loss for cell in cells} == {"dpo", "adadpo"}
    assert sorted({cell.lr for cell in cells}) == [3e-7, 5e-7, 6e-7, 1e-6]
    assert sorted({cell.beta for cell in cells}) == [0.005, 0.01, 0.05, 0.1]


def test_each_run_has_the_papers_setting(study, tmp_path):
    cell = next(cell for cell in cells_of(study) if cell.loss == "adadpo" and cell.beta == 0.05)
    config, _ = parsed(*fit_arguments(study, cell, cell.options, tmp_path / "run"))
    assert config.model.policy.path == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert (config.data.global_batch_size, config.data.max_length, config.trainer.max_epochs) == (128, 2048, 1)
    assert (config.model.scheduler.name, config.model.scheduler.warmup_ratio) == ("cosine", 0.1)
    loss = config.model.loss
    assert loss.class_path.rpartition(".")[2] == "AdaDPO"
    assert (loss.init_args.beta, loss.init_args.ceiling, loss.init_args.normalize) == (0.05, 2.0, "token")
    assert config.trainer.strategy.class_path.rpartition(".")[2] == "FSDP2"


def test_pairs_are_sampled_as_by_simpo():
    config, _ = parsed(
        "make-pairs", "--config", RECIPE / "pairs.yaml", "--prompts", "p.jsonl", "--output_dir", "runs/p"
    )
    made = MakePairsOptions(**options(config))
    assert (made.samples, made.temperature, made.top_p, made.max_new_tokens) == (5, 0.8, 0.95, 4096)
    assert (made.select, made.unfinished, made.judge) == ("best_worst", "keep", "armorm")


def test_the_rehearsal_is_the_same_study_smaller(study, rehearsed):
    assert len(jobs_of(rehearsed)) == 2
    assert rehearsed.arms == study.arms
    assert rehearsed.fit_configs == study.fit_configs
    assert (rehearsed.seeds, rehearsed.keep_models, rehearsed.paper) == (study.seeds, study.keep_models, {})
    assert rehearsed.evaluation.annotate[-6:] == study.evaluation.annotate[-6:]
    without_difficulty = {name: v for name, v in study.evaluation.evaluate.items() if name != "difficulty"}
    assert rehearsed.evaluation.evaluate == without_difficulty


def test_prompts_are_distinct_and_shared_out(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in "cabacd"), encoding="utf-8")
    loaded("prompts.py").main(str(file), "train_prefs", "3", str(tmp_path / "out"))
    parts = [(tmp_path / f"out/train_prefs-{i}.jsonl").read_text().splitlines() for i in range(3)]
    assert [[json.loads(line)["prompt"] for line in part] for part in parts] == [["a", "d"], ["b"], ["c"]]
    assert capsys.readouterr().out == "4 prompts in 3 files\n"


@pytest.fixture
def armorm(monkeypatch):
    """The judge, registered for one test."""
    monkeypatch.setattr(judges, "_judges", dict(judges._judges))
    monkeypatch.syspath_prepend(str(ROOT / RECIPE / "armorm"))
    yield loaded("armorm/armorm_judge.py").ArmoRM
    for name in ("armorm_scores", "armorm_judge"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_the_judge_runs_the_models_own_code(armorm, tmp_path, monkeypatch):
    from transformers import LlamaForSequenceClassification

    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, tokenizer = tmp_path / "model", make_tokenizer()
    loaded("rehearsal/stand_in.py").reward_model(tokenizer, folder)
    asked = [("the cat", "runs"), ("the cat", "eats fish"), ("why", "no")]
    judge = armorm(str(folder), sys.executable, dtype="float32", device="cpu")
    found = judge.scores([Response(prompt, answer, "a") for prompt, answer in asked])
    plain = LlamaForSequenceClassification.from_pretrained(folder)
    for score, (prompt, answer) in zip(found, asked, strict=True):
        ids = tokenizer(f"<bos> <user> {prompt} <eos> <assistant> {answer} <eos>", return_tensors="pt").input_ids
        with torch.no_grad():
            assert score == pytest.approx(10 * float(plain(ids).logits), rel=1e-4)
    assert len(set(found)) == 3


def test_an_interpreter_that_cannot_score_is_named(armorm):
    with pytest.raises(UserError, match="python: no-such-python"):
        armorm("model", "no-such-python").scores([Response("why", "no", "a")])
    with pytest.raises(UserError, match="ended without a score"):
        armorm("model", "true").scores([Response("why", "no", "a")])


def test_the_stand_in_annotates_where_alpaca_eval_does(tmp_path):
    outputs = tmp_path / "responses.json"
    outputs.write_text(json.dumps([{"instruction": "why", "output": "no", "generator": "mine"}]), encoding="utf-8")
    loaded("rehearsal/stand_in.py").annotate(str(outputs), "weighted_alpaca_eval_gpt4_turbo", str(tmp_path))
    (row,) = json.loads((tmp_path / "weighted_alpaca_eval_gpt4_turbo/annotations.json").read_text())
    assert row["generator_2"] == "mine"
    assert row["preference"] in (1.0, 2.0)
