"""What users of Lightning combine with a run: the table of ``docs/trainer.md``, row by row."""

import re
from inspect import signature
from pathlib import Path

import pytest
from lightning.pytorch import callbacks as lightning
from lightning.pytorch import profilers

from tests.support import trainer_callbacks as given
from tests.support import trainer_options as options
from tests.support.lab import Here, Lab

DOCS = Path(__file__).parents[2] / "docs/trainer.md"
CHECKS = {
    "accumulate_grad_batches": options.accumulation,
    "barebones": options.barebones,
    "check_val_every_n_epoch": options.every_other_epoch,
    "detect_anomaly": options.detect_anomaly,
    "deterministic": options.deterministic,
    "fast_dev_run": options.fast_dev_run,
    "gradient_clip_val, norm": options.clipping_by_norm,
    "gradient_clip_val, value": options.clipping_by_value,
    "inference_mode": options.inference_mode,
    "limit_train_batches": options.limit_train_batches,
    "limit_val_batches": options.limit_val_batches,
    "limit_test_batches, limit_predict_batches": options.limit_test_and_predict,
    "logger: several at once": options.several_loggers,
    "logger: WandbLogger, offline": options.wandb_offline,
    "logger: MLFlowLogger, local files": options.mlflow_files,
    "max_time": options.max_time,
    "num_sanity_val_steps": options.sanity_steps,
    "overfit_batches": options.overfit_batches,
    "profiler: simple": options.profiler(profilers.SimpleProfiler, "optimizer_step"),
    "profiler: advanced": options.profiler(profilers.AdvancedProfiler, "training_step"),
    "profiler: pytorch": options.profiler(profilers.PyTorchProfiler, "aten::"),
    "reload_dataloaders_every_n_epochs": options.reload_dataloaders,
    "use_distributed_sampler": options.distributed_sampler,
    "val_check_interval": options.validation_interval,
    "DeviceStatsMonitor": given.device_stats,
    "EarlyStopping": given.early_stopping,
    "LearningRateMonitor": given.rate_monitor,
    "OnExceptionCheckpoint": given.on_exception,
    "Timer": options.timer_callback,
    "WeightAveraging": given.averaged,
    "EMAWeightAveraging": given.exponential,
    "BackboneFinetuning": given.refused(lightning.BackboneFinetuning, "freezes .* would freeze nothing; .*lora"),
    "BatchSizeFinder": given.refused(lightning.BatchSizeFinder, "changes the batch size .*; .*doctor"),
    "GradientAccumulationScheduler": given.refused(
        lambda: lightning.GradientAccumulationScheduler({0: 2}), "contradicts the step plan"
    ),
    "LearningRateFinder": given.refused(lightning.LearningRateFinder, "raises the rate .*; .*study"),
    "ModelPruning": given.refused(
        lambda: lightning.ModelPruning("l1_unstructured", amount=0.5), "looks for weights before they are loaded"
    ),
    "StochasticWeightAveraging": given.refused(
        lambda: lightning.StochasticWeightAveraging(1e-3), "copies the module before .*; .*EMAWeightAveraging"
    ),
    "Tuner": given.tuner,
}
SLOW = {
    "check_val_every_n_epoch",
    "detect_anomaly",
    "gradient_clip_val, value",
    "logger: WandbLogger, offline",
    "logger: MLFlowLogger, local files",
    "profiler: simple",
    "profiler: advanced",
    "profiler: pytorch",
    "DeviceStatsMonitor",
    "Timer",
}


@pytest.fixture(scope="module")
def lab(model_dir, tmp_path_factory):
    return Lab(model_dir, tmp_path_factory.mktemp("lab"))


@pytest.fixture
def here(lab, tmp_path):
    return Here(lab, tmp_path)


@pytest.mark.parametrize(
    "feature", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CHECKS]
)
def test_a_feature(feature, here, monkeypatch):
    check = CHECKS[feature]
    check(here, monkeypatch) if "monkeypatch" in signature(check).parameters else check(here)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "cases"),
    [
        (given.early_stopping, given.MONITORS[2:]),
        (given.on_exception, given.DISASTERS[2:]),
        (options.validation_interval, options.INTERVALS[2:]),
    ],
)
def test_further_cases(check, cases, here):
    check(here, cases)


def test_the_docs_have_a_row_for_each_and_no_other():
    rows = re.findall(r"^\| `(.+)` \| (.+) \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert [feature for feature, _ in rows] == list(CHECKS)
    refused = {feature for feature, result in rows if result.startswith("refused")}
    assert refused == {name for name, check in CHECKS.items() if check.__name__ in ("check_refusal", "tuner")}
