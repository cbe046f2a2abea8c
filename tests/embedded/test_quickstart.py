"""The quickstart, shortened, through the real command line."""

import math
from functools import partial

import pytest

from adadpo_lightning import embedded
from adadpo_lightning.cli import main
from adadpo_lightning.embedded import evaluation as evaluation
from adadpo_lightning.embedded import quickstart
from adadpo_lightning.embedded.quickstart import LOGGED, run_quickstart
from adadpo_lightning.errors import UserError
from adadpo_lightning.shipped import find_config

SIZES = {"corpus_size": 40, "prompts": 40, "val_prompts": 6, "heldout_prompts": 6}


@pytest.fixture
def small(monkeypatch):
    """A task of a few prompts, and a warm-up of a few steps."""
    monkeypatch.setattr(embedded, "make_task", partial(embedded.make_task, **SIZES))
    monkeypatch.setattr(evaluation, "evaluate_embedded", partial(evaluation.evaluate_embedded, n_prompts=6))

    def short_main(argv):
        steps = ["--trainer.max_steps=2"] if "--trainer.max_steps" not in argv and "warmup" in argv[1] else []
        return main([*argv, *steps, "--trainer.enable_progress_bar=false"])

    return short_main


def test_from_end_to_end_with_the_same_numbers_again(small, tmp_path, capsys):
    first = run_quickstart(str(tmp_path / "a"), 1, small)
    shown = capsys.readouterr().out
    second = run_quickstart(str(tmp_path / "b"), 1, small)
    assert first == second
    assert set(LOGGED) < set(first)
    assert all(math.isfinite(value) for value in first.values())
    assert first["kl"] > 0
    for line in (
        "gold win rate against warm-up",
        "gradient balance ratio",
        f"tensorboard --logdir {tmp_path / 'a'}",
    ):
        assert line in shown
    assert list((tmp_path / "a" / "adadpo" / "checkpoints").glob("*.ckpt"))


def test_a_command_that_fails_ends_it(small, tmp_path):
    with pytest.raises(SystemExit, match="2"):
        run_quickstart(str(tmp_path / "out"), 0, lambda argv: 2)
    assert not (tmp_path / "out" / "pairs").exists()


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="exists and is not empty; remove it or choose another directory"):
        run_quickstart(str(tmp_path), 0, main)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_config_that_does_not_exist():
    assert find_config("quickstart.yaml").is_file()
    with pytest.raises(UserError, match=r"the shipped config nothing\.yaml is missing"):
        find_config("nothing.yaml")


def test_the_summary_says_what_it_measured():
    logged = {name: [0.0, 0.8] for name in LOGGED}
    names = ("gold_win_rate", "judge_win_rate", "judge_win_rate_lc", "gold", "length", "kl")
    scores = {name + end: 0.6 for name in names for end in ("", "_se")} | {"warmup_gold": 1.2, "warmup_length": 19.0}
    lines = quickstart.summarise(logged | {"val/displacement/chosen": [0.0, -3.0]}, scores)
    assert lines["gold win rate against warm-up"] == "60.00 % ± 60.00"
    assert lines["log-prob of chosen answers"] == "0.80 nats, drift -3.00 since warm-up"
