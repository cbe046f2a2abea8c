"""Win rates, and the evaluation against a warm-up model."""

import math

import numpy as np
import pytest

from adadpo_lightning.embedded.evaluation import evaluate_embedded, sample_pool
from adadpo_lightning.embedded.task import read_rows, write_rows
from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.length_controlled import length_controlled_win_rate
from adadpo_lightning.evaluation.statistics import mean_over_prompts, win_rate


def test_win_rate_counts_ties_half_even_where_sums_differ_in_the_last_bit():
    assert 0.1 + 0.2 != 0.3
    assert win_rate(np.array([0.1 + 0.2]), np.array([[0.3, 0.2, 0.5, 0.3]])).value == pytest.approx(0.5)


def test_the_standard_error_is_of_prompts_not_of_comparisons():
    per_prompt = np.random.default_rng(0).random(200)
    one, four = mean_over_prompts(per_prompt), mean_over_prompts(np.repeat(per_prompt[:, None], 4, 1))
    assert four == pytest.approx(one)
    assert one.se == pytest.approx(per_prompt.std(ddof=1) / math.sqrt(200))


def _preferences(rng, better, bias, prompts=4000, longer=5.0):
    lengths = rng.normal(longer, 8.0, (prompts, 4))
    return 1 / (1 + np.exp(-(better + bias * np.tanh(lengths / lengths.std())))), lengths


def test_length_control_takes_a_pure_length_bias_away():
    preferences, lengths = _preferences(np.random.default_rng(0), better=0.0, bias=1.5)
    assert preferences.mean() > 0.6
    assert length_controlled_win_rate(preferences, lengths).value == pytest.approx(0.5, abs=1e-6)


def test_length_control_finds_what_is_better_at_equal_length():
    preferences, lengths = _preferences(np.random.default_rng(0), better=0.7, bias=-1.0)
    found = length_controlled_win_rate(preferences, lengths)
    assert found.value == pytest.approx(1 / (1 + math.exp(-0.7)), abs=1e-6)


def test_without_length_differences_there_is_nothing_to_control():
    preferences = np.random.default_rng(0).random((50, 4))
    assert length_controlled_win_rate(preferences, np.zeros((50, 4))) == mean_over_prompts(preferences)


def test_the_length_controlled_standard_error_is_the_spread_over_draws():
    rng = np.random.default_rng(0)

    def draw():
        quality = rng.normal(0.5, 1.0, (300, 1))  # shared by the four comparisons of a prompt
        lengths = rng.normal(0.0, 8.0, (300, 4))
        return length_controlled_win_rate(1 / (1 + np.exp(-(quality + lengths / 16))), lengths)

    draws = [draw() for _ in range(200)]
    spread = np.std([estimate.value for estimate in draws])
    assert np.mean([estimate.se for estimate in draws]) == pytest.approx(spread, rel=0.2)


def test_a_model_against_itself(task, warmup_dir):
    scores = evaluate_embedded(warmup_dir, warmup_dir, task.root, n_prompts=12, seed=0)
    assert scores["kl"] == pytest.approx(0, abs=1e-6)
    for name in ("gold_win_rate", "judge_win_rate", "judge_win_rate_lc"):
        assert abs(scores[name] - 0.5) < 4 * scores[f"{name}_se"]
    assert all(math.isfinite(value) for value in scores.values())


def test_another_model_is_far_away_and_the_seed_decides(task, warmup_dir, other_dir):
    first, again, other = (
        evaluate_embedded(other_dir, warmup_dir, task.root, n_prompts=6, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert first["kl"] > 2 * first["kl_se"] > 0
    assert first["kl_per_token"] * (first["length"] + 1) == pytest.approx(first["kl"], rel=0.1)


def test_a_pool_serves_many_evaluations(task, warmup_dir, other_dir, tmp_path):
    pool = tmp_path / "pool.jsonl"
    sample_pool(warmup_dir, task.root, pool, n_prompts=10, seed=3)
    first = evaluate_embedded(warmup_dir, warmup_dir, task.root, n_prompts=10, pool=pool)
    second = evaluate_embedded(other_dir, warmup_dir, task.root, n_prompts=10, pool=pool)
    assert first["warmup_gold"] == second["warmup_gold"]
    with pytest.raises(UserError, match="has other prompts than these 9"):
        evaluate_embedded(other_dir, warmup_dir, task.root, n_prompts=9, pool=pool)


def test_a_length_controlled_rate_that_does_not_exist_is_left_out_and_said(
    task, warmup_dir, other_dir, tmp_path, capsys
):
    pool = tmp_path / "pool.jsonl"
    sample_pool(warmup_dir, task.root, pool, n_prompts=10)
    # The length alone tells who wins.
    rows = [{**row, "gold": [9.0, 9.0, -9.0, -9.0], "length": [0, 0, 500, 500]} for row in read_rows(pool)]
    write_rows(pool, rows)
    scores = evaluate_embedded(other_dir, warmup_dir, task.root, n_prompts=10, pool=pool)
    assert scores["gold_win_rate"] == 0.5
    assert {"judge_win_rate", "kl", "length"} <= scores.keys()
    assert "judge_win_rate_lc" not in scores
    assert "No length-controlled win rate: the length difference" in capsys.readouterr().err


def test_more_prompts_than_there_are(task, warmup_dir):
    with pytest.raises(UserError, match="expected 2 to 12, the number of held-out prompts, got 13"):
        evaluate_embedded(warmup_dir, warmup_dir, task.root, n_prompts=13)
