"""The one list of default callbacks: what replaces what, and in which order they run."""

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichModelSummary, RichProgressBar

from adadpo_lightning.callbacks import (
    GracefulStop,
    LikelihoodDisplacement,
    PreferenceMetrics,
    ProgressLines,
    RunCheckpoint,
    RunSummary,
    WritePredictions,
)
from adadpo_lightning.callbacks.defaults import complete

ORDER = (
    "ConnectData NonFiniteGuard PreferenceMetrics ExpertLoad LikelihoodDisplacement GradientNorm "
    "Throughput Stragglers TensorBoardDashboard ValidationTable ProgressLines RunSummary GracefulStop RunCheckpoint"
).split()


def given(tmp_path, *callbacks, **options):
    return Trainer(
        accelerator="cpu", logger=False, default_root_dir=tmp_path, callbacks=[*callbacks], **options
    ).callbacks


def names(callbacks):
    return [type(callback).__name__ for callback in callbacks]


def test_lightnings_own_bar_summary_and_checkpoint_are_replaced_in_order(tmp_path):
    kept, added = complete(given(tmp_path))
    # Lightning's checkpoint callback became ours, in place; Lightning runs checkpoints last.
    assert names(kept) == ["RunCheckpoint"]
    assert names([*added, *kept]) == ORDER
    assert (kept[0].save_last, kept[0].filename) == (True, "step{step}")
    again = complete([*added, *kept])
    assert (names(again.kept), again.added) == (ORDER, [])


def test_what_is_switched_off_stays_off(tmp_path):
    off = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    kept, added = complete(given(tmp_path, **off))
    assert kept == []
    assert not any(isinstance(c, (ProgressLines, RunSummary, ModelCheckpoint)) for c in added)


def test_a_callback_of_the_user_replaces_its_default(tmp_path):
    class Mine(PreferenceMetrics):
        pass

    own = [Mine(), LikelihoodDisplacement(baseline=False), GracefulStop(), RichProgressBar(refresh_rate=3)]
    own += [RichModelSummary(max_depth=2), RunCheckpoint(tmp_path / "mine")]
    kept, added = complete(given(tmp_path, *own))
    assert kept == own
    # A summary with an option of its own is shown beside the run's.
    assert names(added) == [
        "ConnectData",
        "NonFiniteGuard",
        "ExpertLoad",
        "GradientNorm",
        "Throughput",
        "Stragglers",
        "TensorBoardDashboard",
        "ValidationTable",
        "RunSummary",
    ]


def test_lightnings_checkpoint_callback_keeps_its_options_and_saves_whole_steps(tmp_path):
    theirs = ModelCheckpoint(tmp_path / "best", monitor="val/loss", save_top_k=2)
    kept, added = complete(given(tmp_path, theirs))
    assert kept == [theirs]
    assert type(theirs) is RunCheckpoint
    assert (theirs.monitor, theirs.save_top_k, theirs.save_last) == ("val/loss", 2, None)
    assert not any(isinstance(c, ModelCheckpoint) for c in added)


def test_beside_a_checkpoint_class_of_the_user_the_default_makes_its_saves_whole(tmp_path):
    class Mine(ModelCheckpoint):
        pass

    kept, added = complete(given(tmp_path, Mine()))
    assert names(kept) == ["Mine"]
    assert names(added)[-1] == "RunCheckpoint"


@pytest.mark.parametrize("predict", [True, False])
def test_predictions_are_written_by_predict_alone(tmp_path, predict):
    assert any(isinstance(c, WritePredictions) for c in complete([Callback()], predict=predict).added) is predict
