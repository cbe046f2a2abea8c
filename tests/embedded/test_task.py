"""What is written to disk."""

import json

import pytest

from adadpo_lightning.embedded import EmbeddedTask, grade, make_pairs, make_task
from adadpo_lightning.embedded.prompts import parse_prompt
from adadpo_lightning.errors import UserError
from adadpo_lightning.models.loading import PolicyConfig, load_model, load_tokenizer

SMALL = {"corpus_size": 50, "prompts": 16, "val_prompts": 8, "heldout_prompts": 12}


def _rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_model_directory_is_all_that_a_policy_needs(task):
    config = PolicyConfig(config=str(task.model))
    tokenizer = load_tokenizer(config)
    assert load_model(config, tokenizer).num_parameters() < 200_000


def test_the_corpus_is_of_training_prompts_alone(task):
    rows = _rows(task.warmup)
    assert len(rows) == 50
    assert {tuple(row) for row in rows} == {("prompt", "chosen")}
    assert {parse_prompt(row["prompt"]).split for row in rows} == {"train"}


def test_every_split_holds_its_own_prompts(task):
    for split, count in (("train", 16), ("val", 8), ("heldout", 12)):
        prompts = task.prompts(split)
        assert len(set(prompts)) == count
        assert {parse_prompt(prompt).split for prompt in prompts} == {split}


def test_the_seed_decides(task, tmp_path):
    same, other = make_task(tmp_path / "same", seed=0, **SMALL), make_task(tmp_path / "other", seed=1, **SMALL)
    names = [path.name for path in task.root.glob("*.jsonl")]
    assert len(names) == 4
    for name in names:
        assert (same.root / name).read_bytes() == (task.root / name).read_bytes()
        assert (other.root / name).read_bytes() != (task.root / name).read_bytes()
    # The world, and so the vocabulary, is one and the same.
    assert (other.model / "tokenizer.json").read_bytes() == (task.model / "tokenizer.json").read_bytes()


def test_pairs_are_graded_disjoint_and_repeatable(task, warmup_dir, tmp_path):
    statistics = make_pairs(warmup_dir, task.root, tmp_path / "a", seed=2)
    make_pairs(warmup_dir, task.root, tmp_path / "b", seed=2)
    train, val = _rows(tmp_path / "a" / "pairs.jsonl"), _rows(tmp_path / "a" / "pairs_val.jsonl")
    assert statistics.pairs == len(train) > 12
    assert 0 <= statistics.longer_chosen <= 1
    assert {row["prompt"] for row in train} <= set(task.prompts("train"))
    assert {row["prompt"] for row in val} <= set(task.prompts("val"))
    for row in train:
        assert row["chosen"] != row["rejected"]
        # A finished answer's gold reward follows from its text; one that was cut off lost one more point.
        assert grade(row["prompt"], row["chosen"]).gold - row["gold_chosen"] == pytest.approx(0, abs=1.001)
    for name in ("pairs.jsonl", "pairs_val.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_one_sample_is_no_choice(task, warmup_dir, tmp_path):
    with pytest.raises(UserError, match="expected at least 2 answers to choose from, got 1"):
        make_pairs(warmup_dir, task.root, tmp_path, samples=1)


def test_a_task_that_was_not_made(tmp_path):
    with pytest.raises(UserError, match=r"prompts_train.jsonl: no such file; make the task first"):
        EmbeddedTask(tmp_path).prompts("train")
