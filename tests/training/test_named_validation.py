"""Several validation sets with names: each has what one set has, exactly."""

import csv
import re
import shutil

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping

from adadpo_lightning.callbacks import RunCheckpoint
from adadpo_lightning.cli import main
from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.data.validation import check_monitor, validation_sources
from adadpo_lightning.errors import UserError
from adadpo_lightning.runs.figures import choose_charts, draw
from adadpo_lightning.runs.logs import read_runs
from adadpo_lightning.training.module import PreferenceLitModule
from tests.support.runs import PAIRS, arguments, assert_same, curves
from tests.support.tiny import make_rows, write_rows
from tests.training.test_module import QUIET, module


@pytest.fixture
def sets(tmp_path):
    """Two sets of different sizes, whose rows have the same numbers."""
    sizes = {"helpful": 7, "safety": 11}
    return {name: str(write_rows(tmp_path / f"{name}.jsonl", make_rows(n, seed=n))) for name, n in sizes.items()}


def fit(model_dir, pairs_file, val, loss="adadpo", reference="auto", folder=None, **options):
    data_options = {"micro_batch_size": 4, **options.pop("data", {})}
    dm = PreferenceDataModule(train=str(pairs_file), val=val, global_batch_size=8, max_length=40, **data_options)
    lit = module(model_dir, loss)
    given = (lit.policy_config, lit.loss, lit.optimizer_config, lit.scheduler_config)
    lit = PreferenceLitModule(*given, reference=reference, reference_cache=str(folder) if folder else None)
    seed_everything(0)
    trainer = Trainer(**{**QUIET, "enable_checkpointing": False, "max_steps": 3, "val_check_interval": 1, **options})
    trainer.fit(lit, datamodule=dm)
    return trainer


def validation(trainer):
    return {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}


@pytest.mark.parametrize(
    ("loss", "reference"), [("adadpo", "auto"), ("adadpo", "cached"), ("simpo", "auto")], ids=["live", "cached", "none"]
)
def test_each_set_has_the_metrics_that_it_has_alone(model_dir, pairs_file, sets, tmp_path, loss, reference):
    options = {"loss": loss, "reference": reference, "folder": tmp_path / "cache"}
    both = validation(fit(model_dir, pairs_file, sets, **options, data={"eval_batch_size": 3}))
    assert "val/loss" not in both
    expected = {}
    for name, path in sets.items():
        alone = validation(fit(model_dir, pairs_file, path, **options))
        assert {"val/loss", "val/rewards/accuracies", "val/displacement/chosen"} <= alone.keys()
        expected |= {tag.replace("val/", f"val/{name}/", 1): value for tag, value in alone.items()}
    assert both == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert both["val/helpful/loss"] != both["val/safety/loss"]


def test_one_named_set_has_its_name(model_dir, pairs_file, sets):
    found = validation(fit(model_dir, pairs_file, {"helpful": sets["helpful"]}, max_steps=1))
    assert found
    assert all(name.startswith("val/helpful/") for name in found)


def test_early_stopping_and_checkpoints_follow_any_set(model_dir, pairs_file, sets, tmp_path):
    stop = EarlyStopping(monitor="val/safety/loss", mode="max", patience=1, check_on_train_epoch_end=False)
    best = RunCheckpoint(dirpath=tmp_path, monitor="val/helpful/rewards/margins", mode="max", save_top_k=1)
    trainer = fit(
        model_dir,
        pairs_file,
        sets,
        callbacks=[stop, best],
        max_steps=20,
        max_epochs=5,
        enable_checkpointing=True,
        num_sanity_val_steps=0,
    )
    assert stop.stopped_epoch >= 0
    assert trainer.global_step < 20  # the loss falls, and the mode is max
    assert best.best_model_score is not None
    assert best.best_model_path


@pytest.mark.parametrize(
    ("val", "monitor", "message"),
    [
        (None, "val/harm/loss", r"'val/harm/loss' is not logged: .*val/helpful/\.\.\., val/safety/\.\.\."),
        (None, "val/loss", r"'val/loss' is not logged.*for example val/helpful/loss"),
        (None, "val/rewards/margins", r"for example val/helpful/rewards/margins"),
        (None, "val/helpful", r"for example val/helpful/loss"),
        ("helpful", "val/helpful/loss", r"the validation pairs have no name, or not 'helpful'"),
    ],
    ids=["other name", "no name", "no name, with a slash", "a set alone", "a name for one set"],
)
def test_a_monitor_of_no_set_is_refused_before_training(model_dir, pairs_file, sets, val, monitor, message):
    with pytest.raises(UserError, match=r"EarlyStopping.monitor") as error:
        fit(model_dir, pairs_file, sets[val] if val else sets, callbacks=[EarlyStopping(monitor=monitor)])
    assert error.match(message)


def test_what_belongs_to_no_set_can_be_monitored_beside_named_sets():
    for monitor in ("val/mine", "val/mine/score", "val/kl/policy", "val/generation/length", "val/a/loss", "train/loss"):
        check_monitor(monitor, ["val/a", "val/b"], "EarlyStopping.monitor")


def test_a_metric_of_ones_own_can_be_monitored_with_one_set(model_dir, pairs_file, sets):
    stop = EarlyStopping(monitor="val/mine/score", strict=False)
    assert fit(model_dir, pairs_file, sets["helpful"], callbacks=[stop], max_steps=1).global_step == 1


@pytest.mark.parametrize(
    ("val", "message"),
    [
        ({"rewards": "a.jsonl"}, "'rewards' cannot name a validation set"),
        ({"a/b": "a.jsonl"}, "'a/b' cannot name a validation set"),
        ({"path": "a.jsonl"}, "'path' is an option of a source"),
        ({"safety": None}, r"data.val.safety: expected a file"),
        ({}, "at least one named set"),
    ],
)
def test_names_that_cannot_be(val, message):
    with pytest.raises(UserError, match=message):
        validation_sources(val)


def test_sources_of_each_set():
    found = validation_sources({"a": ["x.jsonl", SourceConfig("y.jsonl", weight=2)], "b": SourceConfig("z.jsonl")})
    assert {name: [source.path for source in sources] for name, sources in found.items()} == {
        "val/a": ["x.jsonl", "y.jsonl"],
        "val/b": ["z.jsonl"],
    }


def test_the_command_line(model_dir, sets, tmp_path, capsys):
    pairs_file = write_rows(tmp_path / "pairs.jsonl", make_rows(PAIRS))
    named = f"--data.val={{helpful: {sets['helpful']}, safety: {{path: {sets['safety']}, weight: 1}}}}"
    out = tmp_path / "out"
    more = ["--trainer.enable_progress_bar=true", "--trainer.enable_model_summary=true"]
    more += ["--checkpoint.every_n_train_steps=3", "--checkpoint.save_top_k=-1"]
    assert main(arguments(model_dir, pairs_file, out, named, *more)) == 0
    said = capsys.readouterr().out
    assert "7 validation pairs (helpful); 11 validation pairs (safety)" in re.sub(r"[│\s]+", " ", said)
    assert "helpful_loss" in said
    with (out / "csv" / "version_0" / "metrics.csv").open() as file:
        header = next(csv.reader(file))
    assert {"val/helpful/loss", "val/safety/rewards/accuracies"} <= set(header)
    assert "val/loss" not in header
    (run,) = read_runs([str(out)])
    charts = choose_charts([run], ["margin", "val/safety/loss"])
    assert list(charts) == ["margin", "loss"]
    labels = [text.get_text() for text in draw([run], charts["margin"]).legends[0].get_texts()]
    assert {"validation helpful", "validation safety"} <= set(labels)
    # Resumed in the middle, the run goes on as it went, and validate gives its last numbers.
    checkpoint, half = out / "checkpoints" / "last.ckpt", shutil.copytree(out, tmp_path / "half")
    (half / "checkpoints" / "last.ckpt").unlink()
    middle = f"--ckpt_path={half / 'checkpoints' / 'step3.ckpt'}"
    assert main(arguments(model_dir, pairs_file, half, named, *more[2:], middle)) == 0
    assert_same(half, out)
    capsys.readouterr()
    again = ["validate", *arguments(model_dir, pairs_file, tmp_path / "val", named, f"--ckpt_path={checkpoint}")[1:]]
    assert main(again) == 0
    said = capsys.readouterr().out
    assert said.count("rewards/margins") == 1
    assert {step for _, step in curves(tmp_path / "val")} == {6}  # that of the checkpoint
    last = {name: value for (name, _), value in sorted(curves(out).items())}
    for name in ("loss", "rewards/margins"):
        expected = (f"{last[f'val/{stage}/{name}']:.6g}" for stage in sets)
        assert re.search(rf"│ {name} +│ +{' │ +'.join(map(re.escape, expected))} │", said)
    other = named.replace(sets["safety"], sets["helpful"])
    assert main(arguments(model_dir, pairs_file, out, other, f"--ckpt_path={checkpoint}")) == 2
    assert "val/safety" in capsys.readouterr().err
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 6
