"""What TensorBoard is given, read back from its event files, and what other loggers are given."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from adadpo_lightning.callbacks import GradientNorm, PreferenceMetrics, TensorBoardDashboard, Throughput
from adadpo_lightning.callbacks.dashboard import dashboard
from adadpo_lightning.callbacks.tensorboard import _joined
from adadpo_lightning.cli.save_config import SaveRunConfig
from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import available_losses, build_loss
from tests.support.cli import parsed
from tests.training.test_module import QUIET, data, module


class Watch(Callback):
    """Notes every pair's coefficient and margin by optimizer step, and the gradient's norm before clipping."""

    def __init__(self):
        self.pairs, self.norms = {}, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        loss = outputs["step"].loss
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        self.pairs.setdefault(step, []).extend((loss.chosen_rewards - loss.rejected_rewards).tolist())

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        squares = [(p.grad.double() ** 2).sum() for p in pl_module.parameters() if p.grad is not None]
        self.norms[trainer.fit_loop.epoch_loop._batches_that_stepped] = float(sum(squares) ** 0.5)


def fit(model_dir, pairs_file, folder, key="adadpo", **options):
    loggers = [TensorBoardLogger(folder, name="tensorboard", version=""), CSVLogger(folder, name="csv")]
    watch = Watch()
    trainer = Trainer(
        **QUIET | {"logger": loggers},
        default_root_dir=folder,
        enable_checkpointing=False,
        log_every_n_steps=1,
        max_epochs=1,
        callbacks=[PreferenceMetrics(), GradientNorm(), Throughput(), TensorBoardDashboard(every_n_steps=2), watch],
        **options,
    )
    lit = module(model_dir, key)
    trainer.fit(lit, datamodule=data(pairs_file, micro_batch_size=2, val=str(pairs_file), eval_batch_size=5))
    return watch


def events(folder):
    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0})
    accumulator.Reload()
    return accumulator


@pytest.fixture(scope="module")
def run(model_dir, pairs_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorboard")
    watch = fit(model_dir, pairs_file, folder, gradient_clip_val=0.1)
    return folder, events(folder), watch


def layout(accumulator):
    (event,) = accumulator.Tensors("custom_scalars__config__")
    return Layout.FromString(event.tensor_proto.string_val[0])


def test_the_page_has_its_charts_and_every_chart_finds_curves(run):
    _, accumulator, _ = run
    page = layout(accumulator)
    assert [category.title for category in page.category] == [
        "Balance",
        "Rewards",
        "Likelihood",
        "KL",
        "Optimisation",
    ]
    tags = accumulator.Tags()["scalars"]
    # As the plugin matches: from the start of the tag.
    found = {
        chart.title: {tag for regex in chart.multiline.tag for tag in tags if re.match(regex, tag)}
        for category in page.category
        for chart in category.chart
    }
    assert all(found.values()), found
    assert found["Rewards of chosen and rejected"] == {
        f"{stage}/rewards/{side}" for stage in ("train", "val") for side in ("chosen", "rejected")
    }
    # Not the ratio in policy space too.
    assert found["Gradient ratio, chosen to rejected"] == {"train/grad_balance/ratio", "val/grad_balance/ratio"}
    assert found["Gradient norm before clipping"] == {"train/grad_norm/total"}


@pytest.mark.parametrize("key", available_losses())
def test_no_loss_has_a_category_that_it_cannot_fill(key):
    loss = build_loss(key)
    assert ("KL" in dashboard(loss)) == loss.needs_reference
    assert ("Balance" in dashboard(loss)) == loss.needs_rejected


def test_histograms_hold_each_pair_of_the_step(run):
    _, accumulator, watch = run
    drawn = {e.step: e.histogram_value for e in accumulator.Histograms("train/rewards/margins_per_pair")}
    assert sorted(drawn) == [0, 2, 4]
    for step, histogram in drawn.items():
        margins = np.array(watch.pairs[step])
        assert histogram.num == len(margins) == (8 if step < 4 else 5)
        assert histogram.sum == pytest.approx(margins.sum(), rel=1e-5, abs=1e-6)
        assert histogram.min == pytest.approx(margins.min(), rel=1e-5)
        assert histogram.max == pytest.approx(margins.max(), rel=1e-5)
    assert drawn[4].max > drawn[4].min
    (val,) = accumulator.Histograms("val/rewards/margins_per_pair")
    assert val.histogram_value.num == 37
    mean = accumulator.Scalars("val/rewards/margins")[-1].value
    assert val.histogram_value.sum / 37 == pytest.approx(mean, rel=1e-4)
    assert len(accumulator.Histograms("train/grad_balance/coefficient_per_pair")) == 3


def test_gradient_norm_is_that_before_clipping(run):
    _, accumulator, watch = run
    logged = {e.step: e.value for e in accumulator.Scalars("train/grad_norm/total")}
    assert logged == pytest.approx(watch.norms, rel=1e-5)
    assert max(logged.values()) > 0.1


def hyperparameters(accumulator):
    plugin = {
        tag: plugin_data_pb2.HParamsPluginData.FromString(content)
        for tag, content in accumulator.PluginTagToContent("hparams").items()
    }
    experiment = plugin[metadata.EXPERIMENT_TAG].experiment
    start = plugin[metadata.SESSION_START_INFO_TAG].session_start_info
    values = {k: v.number_value if v.HasField("number_value") else v.string_value for k, v in start.hparams.items()}
    return experiment, values


def test_hyperparameters_name_what_tells_runs_apart_and_metrics_that_exist(run, model_dir):
    _, accumulator, _ = run
    experiment, values = hyperparameters(accumulator)
    expected = {"loss": "adadpo", "beta": 0.1, "ceiling": 2.0, "lr": 1e-2, "reference": "frozen"}
    expected |= {"model": str(model_dir), "global_batch_size": 8, "optimizer_steps": 5}
    assert expected.items() <= values.items()
    assert "ceiling=2.0" in values["loss_options"]
    assert {info.name for info in experiment.hparam_infos} == set(values)
    first = {info.name for info in experiment.hparam_infos if info.differs}
    assert first == {"beta", "global_batch_size", "loss", "lr", *({"seed"} & set(values))}
    metrics = {info.name.tag for info in experiment.metric_infos}
    assert {"val/loss", "val/rewards/accuracies", "val/kl/chosen"} <= metrics
    assert metrics <= set(accumulator.Tags()["scalars"])


def test_without_validation_the_metrics_are_those_of_training_and_a_plain_loss_leaves_room_for_its_twin(
    model_dir, pairs_file, tmp_path
):
    fit(model_dir, pairs_file, tmp_path, key="simpo", limit_val_batches=0, max_steps=1)
    accumulator = events(tmp_path)
    experiment, values = hyperparameters(accumulator)
    assert "ceiling" in {info.name for info in experiment.hparam_infos}
    assert "ceiling" not in values
    metrics = {info.name.tag for info in experiment.metric_infos}
    assert metrics <= set(accumulator.Tags()["scalars"])
    assert "train/rewards/margins" in metrics
    assert "KL" not in [category.title for category in layout(accumulator).category]


def test_every_scalar_is_in_the_csv_log_under_the_same_name(run):
    folder, accumulator, _ = run
    header = (folder / "csv/version_0/metrics.csv").read_text().splitlines()[0].split(",")
    assert {tag for tag in accumulator.Tags()["scalars"] if "/" in tag} == {name for name in header if "/" in name}
    assert yaml.safe_load((folder / "csv/version_0/hparams.yaml").read_text())["loss"] == "adadpo"


def test_other_loggers_get_the_hyperparameters(model_dir, pairs_file):
    class Other(DummyLogger):
        def log_hyperparams(self, params):
            self.params = params

    logger = Other()
    options = {"max_steps": 1, "limit_val_batches": 0, "enable_checkpointing": False}
    trainer = Trainer(**QUIET | {"logger": logger}, **options, callbacks=[TensorBoardDashboard()])
    trainer.fit(module(model_dir, "ipo"), datamodule=data(pairs_file, micro_batch_size=8))
    assert logger.params["loss"] == "ipo"
    assert logger.params["tau"] == build_loss("ipo").tau


def test_the_config_is_shown_as_text(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="tensorboard", version="")
    trainer = Trainer(**QUIET | {"logger": logger}, default_root_dir=tmp_path)
    written = {"model": {"loss": "a"}}
    parser = SimpleNamespace(dump=yaml.safe_dump)
    SaveRunConfig(parser, written).on_train_start(trainer, None)
    logger.finalize("success")
    (event,) = events(tmp_path).Tensors("config/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert yaml.safe_load(text.removeprefix("```yaml\n").removesuffix("```")) == written
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == written


def test_a_step_between_histograms_keeps_nothing(monkeypatch):
    callback = TensorBoardDashboard(every_n_steps=2)
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=1), _should_accumulate=lambda: True)
    callback.on_train_batch_end(SimpleNamespace(fit_loop=loop), None, object(), object(), 0)
    assert not callback._seen


def test_a_rank_without_pairs_adds_nothing():
    parts = [{}, {"m": torch.tensor([1.0, 2.0])}, {"m": torch.tensor([3.0])}]
    assert _joined(parts)["m"].tolist() == [1.0, 2.0, 3.0]


def test_every_n_steps_below_one_is_refused():
    with pytest.raises(UserError, match=r"every_n_steps: expected at least 1, got 0"):
        TensorBoardDashboard(every_n_steps=0)


@pytest.mark.parametrize(
    ("logger", "options"),
    [("WandbLogger", {"project": "adadpo"}), ("MLFlowLogger", {"experiment_name": "adadpo"})],
)
def test_weights_and_biases_or_mlflow_are_a_matter_of_config(logger, options, tmp_path):
    config = tmp_path / "logger.yaml"
    named = {"class_path": f"lightning.pytorch.loggers.{logger}", "init_args": options}
    config.write_text(yaml.safe_dump({"trainer": {"logger": [named]}}))
    found, _ = parsed("fit", "--model.loss=SFT", "--model.policy.path=x", f"--config={config}")
    (chosen,) = found.trainer.logger
    assert chosen.class_path == named["class_path"]
    assert {name: chosen.init_args[name] for name in options} == options
    assert not {"wandb", "mlflow"} & set(sys.modules)
