"""The command line: shipped configs, composition, a run from fit to predict, and errors that a user can mend."""

import itertools
import json
import re

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from adadpo_lightning.cli import main
from adadpo_lightning.cli.parser import parse as parse_with
from adadpo_lightning.losses import available_losses, build_loss, loss_class
from tests.support.cli import CONFIGS, FIT_CONFIGS, parser_of
from tests.support.tiny import make_rows, write_rows

LOSSES = sorted(CONFIGS.glob("loss/*.yaml"))


@pytest.fixture(scope="module")
def parse():
    parser = parser_of("fit")
    return lambda *args: parse_with(parser, list(map(str, args)))


def config_args(*paths):
    return [f"--config={path}" for path in paths]


def test_every_loss_has_a_config_with_every_option_and_the_default_values(parse):
    assert {path.stem for path in LOSSES} == {*available_losses(), "adadpo_sft_mixture"}
    for key in available_losses():
        written = yaml.safe_load((CONFIGS / f"loss/{key}.yaml").read_text())["model"]["loss"]
        loss = build_loss(key)
        assert written["class_path"].endswith(f".{type(loss).__name__}")
        assert written.get("init_args", {}) == vars(loss)


@pytest.mark.parametrize("path", FIT_CONFIGS, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_every_shipped_config_parses(parse, path):
    """Overlays are laid over what they are made for."""
    extra = ["--model.policy.path=x"] if "policy" not in (yaml.safe_load(path.read_text()).get("model") or {}) else []
    if path.parent.name == "model" and path.stem == "lora":
        extra = ["--model.policy.path=x"]
    config = parse(*config_args(CONFIGS / "base.yaml", CONFIGS / "loss/adadpo.yaml", path), *extra)
    assert config.model.loss.class_path


def test_the_issue_of_composition(parse):
    files = ["base.yaml", "model/llama3-8b-instruct.yaml", "data/ultrafeedback.yaml", "loss/adasimpo.yaml"]
    config = parse(*config_args(*(CONFIGS / f for f in files)))
    assert config.model.loss.class_path.endswith("AdaSimPO")
    assert config.model.loss.init_args.beta == 2.0
    assert config.data.train.split == "train_prefs"


@pytest.mark.parametrize("neighbours", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_loss_named_later_forgets_the_options_of_the_one_before(parse, neighbours):
    """Each ordered pair of overlays equals the last alone; shared options such as beta would else carry over."""
    base = ["--model.policy.path=x"]
    alone = {path: parse(*config_args(path), *base).model.loss.as_dict() for path in LOSSES}
    # Every config spells out every option (above), so one pair for each already shows what all of them do.
    ring = zip(LOSSES, [*LOSSES[1:], LOSSES[0]], strict=True)
    for first, second in ring if neighbours else itertools.permutations(LOSSES, 2):
        both = parse(*config_args(first, second), *base).model.loss.as_dict()
        assert both == alone[second], f"{first.stem} then {second.stem}"


def test_a_loss_named_on_the_command_line_has_its_own_defaults(parse):
    """configs/loss/simpo.yaml has beta 2.0; DPO's default is 0.1. An option of the same loss stays."""
    args = [*config_args(CONFIGS / "loss/simpo.yaml"), "--model.policy.path=x"]
    assert parse(*args, "--model.loss=AdaDPO").model.loss.init_args.beta == 0.1
    assert parse(*args, "--model.loss=AdaDPO", "--model.loss.beta=0.05").model.loss.init_args.beta == 0.05
    config = parse(*args, "--model.loss.beta=3")
    assert config.model.loss.class_path.endswith("SimPO")
    assert config.model.loss.init_args.beta == 3
    assert config.model.loss.init_args.gamma_beta_ratio == 0.5


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_dir):
    """A finished run of the command line."""
    folder = tmp_path_factory.mktemp("run")
    pairs = write_rows(folder / "pairs.jsonl", make_rows(20))
    args = [
        f"--model.policy.path={model_dir}",
        f"--data.train={pairs}",
        f"--data.val={pairs}",
        f"--data.predict={pairs}",
        "--data.global_batch_size=4",
        "--data.max_length=40",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.log_every_n_steps=1",
        "--model.loss=adadpo",
        f"--output_dir={folder / 'out'}",
    ]
    assert main(["fit", *args, "--model.optimizer.lr=1e-2", "--checkpoint.every_n_train_steps=2"]) == 0
    return folder / "out", args


def test_fit_writes_config_checkpoints_and_curves(run):
    out, _ = run
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["model"]["loss"]["class_path"].endswith("AdaDPO")
    assert (out / "checkpoints/last.ckpt").is_file()
    assert list(out.glob("tensorboard/events*"))
    header, *rows = (out / "csv/version_0/metrics.csv").read_text().splitlines()
    names = header.split(",")
    for name in ("rewards/margins", "rewards/accuracies", "logps/chosen", "kl/chosen", "kl/margin", "loss"):
        assert {f"train/{name}", f"val/{name}"} <= set(names)
    assert {"train/grad_balance/ratio_policy", "train/grad_balance/clipped_fraction", "train/learning_rate"} <= set(
        names
    )
    steps = [dict(zip(names, row.split(","), strict=True)) for row in rows]
    ratios = [float(s["train/grad_balance/ratio"]) for s in steps if s["train/grad_balance/ratio"]]
    losses = [float(s["train/loss"]) for s in steps if s["train/loss"]]
    assert len(ratios) == 5
    assert ratios[0] == 1.0
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)


def test_best_checkpoints_by_a_metric_and_early_stopping(run, tmp_path):
    _, args = run
    options = [
        "--trainer.max_epochs=6",
        "--model.optimizer.lr=1e-2",
        "--checkpoint.monitor=val/rewards/margins",
        "--checkpoint.mode=max",
        "--checkpoint.save_top_k=2",
        # No loss falls by 1000: the first validation is the best, and the third ends the run.
        "--trainer.callbacks+=EarlyStopping",
        "--trainer.callbacks.monitor=val/loss",
        "--trainer.callbacks.min_delta=1000",
        "--trainer.callbacks.patience=2",
    ]
    assert main(["fit", *args, *options, f"--output_dir={tmp_path}"]) == 0
    kept = {path.name for path in (tmp_path / "checkpoints").glob("*.ckpt")}
    assert kept == {"step10.ckpt", "step15.ckpt", "last.ckpt"}  # five steps an epoch; the margin grows
    state = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert (state["epoch"], state["global_step"]) == (2, 15)
    saved = next(value for name, value in state["callbacks"].items() if name.startswith("RunCheckpoint"))
    assert saved["best_model_path"].endswith("step15.ckpt")


def test_fit_does_not_write_over_a_run(run, capsys):
    out, args = run
    before = (out / "config.yaml").read_bytes()
    assert main(["fit", *args]) == 2
    assert f"error: output_dir: {out} already holds a run; resume it" in capsys.readouterr().err
    assert (out / "config.yaml").read_bytes() == before


def test_validate_and_predict_a_checkpoint(run, capsys):
    out, args = run
    checkpoint = f"--ckpt_path={out / 'checkpoints/last.ckpt'}"
    assert main(["validate", *args, checkpoint]) == 0
    assert "val/rewards/accuracies" in capsys.readouterr().out
    assert main(["predict", *args, checkpoint]) == 0
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert sorted(row["row_id"] for row in rows) == list(range(20))
    assert all(row["margin"] == row["reward_chosen"] - row["reward_rejected"] for row in rows)
    assert any(row["margin"] != 0 for row in rows)


def test_export_gives_the_policy_of_the_checkpoint(run, tmp_path):
    out, _ = run
    assert main(["export", f"--checkpoint={out / 'checkpoints/last.ckpt'}", f"--output={tmp_path / 'hf'}"]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    weights = torch.load(out / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[f"policy.model.{name}"])


def test_losses_lists_the_registry(capsys):
    assert main(["losses"]) == 0
    printed = capsys.readouterr().out
    for key in available_losses():
        assert re.search(rf"\b{key}\b", printed)


@pytest.mark.parametrize("group", ["remedy", "side-wise"])
def test_losses_of_one_group(capsys, group):
    assert main(["losses", "--group", group]) == 0
    printed = capsys.readouterr().out
    for key in available_losses():
        assert bool(re.search(rf"│ {key} +│", printed)) == (loss_class(key).group == group)


def test_an_unknown_group_names_the_known_ones(capsys):
    assert main(["losses", "--group", "sidewise"]) == 2
    assert "did you mean 'side-wise'" in capsys.readouterr().err


BAD_ARGUMENTS = {
    "unknown command": (["fti"], "did you mean 'fit'"),
    "unknown loss": (["fit", "--model.loss=adapdo", "--model.policy.path=x"], r"adadpo \(AdaDPO\)"),
    "unknown option": (["fit", "--model.loss=dpo", "--model.policy.pth=x"], "model.policy.pth"),
    "beta of zero": (["fit", "--model.loss=dpo", "--model.loss.beta=0", "--model.policy.path=x"], "loss.beta.*above 0"),
    "negative rate": (["fit", "--model.loss=dpo", "--model.policy.path=x", "--model.optimizer.lr=-1"], "optimizer.lr"),
    "no model": (["fit", "--model.loss=dpo"], "model.policy"),
    "no reference": (
        ["fit", "--model.loss=dpo", "--model.policy.path=x", "--model.reference=none"],
        "model.reference: DPO needs a reference",
    ),
    "missing config": (["fit", "--config=nosuch.yaml"], "nosuch.yaml"),
    "missing checkpoint": (["export", "--checkpoint=nosuch.ckpt", "--output=x"], "of shards nosuch.ckpt found"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_end_with_one_clear_error(case, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args, message = BAD_ARGUMENTS[case]
    assert main([*args, f"--output_dir={tmp_path / 'out'}"] if args[0] == "fit" else args) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
