"""The quickstart, shortened, through the real command line."""

import math
from functools import partial

import pytest

from adadpo_lightning import embedded
from adadpo_lightning.cli import app
from adadpo_lightning.cli.commands.quickstart import quickstart
from adadpo_lightning.embedded import evaluation
from adadpo_lightning.embedded.quickstart import LOGGED, summarise
from adadpo_lightning.errors import UserError
from adadpo_lightning.shipped import find_config

SIZES = {"corpus_size": 40, "prompts": 40, "val_prompts": 6, "heldout_prompts": 6}


@pytest.fixture
def small(monkeypatch):
    """A task of a few prompts, and a warm-up of a few steps."""
    monkeypatch.setattr(embedded, "make_task", partial(embedded.make_task, **SIZES))
    monkeypatch.setattr(evaluation, "evaluate_embedded", partial(evaluation.evaluate_embedded, n_prompts=6))
    main = app.main

    def short_main(argv):
        steps = ["--trainer.max_steps=2"] if "warmup" in argv[1] else []
        return main([*argv, *steps, "--trainer.enable_progress_bar=false"])

    monkeypatch.setattr(app, "main", short_main)


@pytest.mark.usefixtures("small")
def test_from_end_to_end_with_the_same_numbers_again(tmp_path, capsys):
    first = quickstart(str(tmp_path / "a"), 1)
    shown = capsys.readouterr().out
    second = quickstart(str(tmp_path / "b"), 1)
    assert first == second
    assert set(LOGGED) < set(first)
    assert all(math.isfinite(value) for value in first.values())
    assert first["kl"] > 0
    for line in (
        f"--config={find_config('quickstart.yaml')}",
        "python -m adadpo_lightning fit ",
        "gold win rate against warm-up",
        "gradient balance ratio",
        f"tensorboard --logdir {tmp_path / 'a'}",
    ):
        assert line in shown
    assert list((tmp_path / "a" / "adadpo" / "checkpoints").glob("*.ckpt"))


@pytest.mark.usefixtures("small")
def test_a_command_that_fails_ends_it(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "main", lambda argv: 2)
    with pytest.raises(SystemExit, match="2"):
        quickstart(str(tmp_path / "out"))
    assert not (tmp_path / "out" / "pairs").exists()


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="exists and is not empty; remove it or choose another one"):
        quickstart(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_config_that_does_not_exist():
    assert find_config("quickstart.yaml").is_file()
    with pytest.raises(UserError, match=r"the shipped config nothing\.yaml is missing"):
        find_config("nothing.yaml")


def test_the_summary_says_what_it_measured():
    names = ("gold_win_rate", "judge_win_rate", "judge_win_rate_lc", "gold", "length", "kl")
    scores = {name + end: 0.6 for name in names for end in ("", "_se")} | {"warmup_gold": 1.2, "warmup_length": 19.0}
    lines = summarise(dict.fromkeys(LOGGED, 0.8) | {"val/displacement/chosen": -3.0} | scores)
    assert lines["gold win rate against warm-up"] == "60.00 % ± 60.00"
    assert lines["log-prob of chosen answers"] == "0.80 nats, drift -3.00 since warm-up"
