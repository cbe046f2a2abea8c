"""A resumed run sees the very micro-batches that the uninterrupted one would have seen."""

import warnings

import pytest
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.data.position import check_position
from adadpo_lightning.errors import UserError
from tests.support.tiny import make_rows

# 37 pairs in steps of 8 make 4 full steps of 4 micro-batches and a last one of 3: 19 micro-batches an epoch.
PAIRS, STEP, MICRO, BATCHES, STEPS = 37, 8, 2, 19, 5


@pytest.fixture
def data(write):
    path = write(make_rows(PAIRS))

    def _data(**options):
        return PreferenceDataModule(
            train=path, val=path, **{"global_batch_size": STEP, "micro_batch_size": MICRO, "max_length": 64, **options}
        )

    return _data


def run(data, module, trainer, ckpt=None):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        trainer.fit(module, data, ckpt_path=ckpt)
    return module.seen


@pytest.mark.parametrize(
    "length", [{"max_epochs": 3}, {"max_steps": 3 * STEPS, "max_epochs": -1}], ids=["epochs", "steps"]
)
@pytest.mark.parametrize("limit_val", [0, 1], ids=["no_val", "val"])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_resumed_run_sees_what_the_uninterrupted_one_sees(
    data, recorder, make_trainer, tmp_path, length, limit_val, workers
):
    if workers and limit_val:
        pytest.skip("once with workers is enough")
    options = {**length, "limit_val_batches": limit_val, "num_sanity_val_steps": 0, "enable_checkpointing": True}
    checkpoints = [
        ModelCheckpoint(tmp_path / "steps", "{step}", every_n_train_steps=1, save_top_k=-1),
        ModelCheckpoint(tmp_path / "epochs", "{epoch}", save_on_train_epoch_end=True, save_top_k=-1),
    ]
    whole = run(data(num_workers=workers), recorder(), make_trainer(callbacks=checkpoints, **options))
    assert len(whole) == 3 * BATCHES
    assert all(
        sorted(r for e, _, rows in whole if e == epoch for r in rows) == list(range(PAIRS)) for epoch in range(3)
    )
    assert [rows for e, _, rows in whole if e == 0] != [rows for e, _, rows in whole if e == 1]

    saved = {path: int(path.stem.split("=")[1]) for path in (tmp_path / "steps").iterdir()}
    # In the middle of an epoch, at the end of one before and after the trainer has counted it, and just after it.
    chosen = [path for path, step in saved.items() if step in (2, STEPS, STEPS + 1)]
    chosen += [tmp_path / "epochs" / "epoch=0.ckpt", tmp_path / "epochs" / "epoch=1.ckpt"]
    assert len(chosen) == 5
    for checkpoint in chosen:
        resumed = run(data(num_workers=workers), recorder(), make_trainer(**options), checkpoint)
        assert resumed == whole[-len(resumed) :], checkpoint
        step = saved.get(checkpoint) or (int(checkpoint.stem.split("=")[1]) + 1) * STEPS
        assert resumed[0][1] == step


def test_resuming_with_other_batches_in_the_middle_of_an_epoch_is_an_error(data, recorder, make_trainer, tmp_path):
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    options = {"max_epochs": 2, "limit_val_batches": 0, "enable_checkpointing": True}
    run(data(), recorder(), make_trainer(callbacks=[saver], **options))
    with pytest.raises(UserError, match=r"ckpt_path: .*accumulate_grad_batches 4 -> 2\)"):
        run(data(micro_batch_size=4), recorder(), make_trainer(**options), tmp_path / "step=2.ckpt")
    with pytest.raises(UserError, match=r"ckpt_path: .*\(lengths .* -> .*\)"):
        run(data(max_length=20), recorder(), make_trainer(**options), tmp_path / "step=2.ckpt")
    # Between epochs nothing is lost.
    assert run(data(micro_batch_size=4), recorder(), make_trainer(**options), tmp_path / f"step={STEPS}.ckpt")


def test_each_epoch_sees_each_pair_once_and_overfitting_the_same_ones(data, recorder, make_trainer):
    options = {"max_epochs": 2, "limit_val_batches": 0}
    seen = run(data(), recorder(), make_trainer(overfit_batches=4, **options))
    assert [rows for epoch, _, rows in seen if epoch == 0] == [rows for epoch, _, rows in seen if epoch == 1]
    seen = run(data(shuffle=False, drop_last=True), recorder(), make_trainer(**options))
    for epoch in range(2):
        assert sorted(row for e, _, rows in seen if e == epoch for row in rows) == list(range(PAIRS // STEP * STEP))


def test_loader_says_where_it_stands(data, recorder, make_trainer):
    places = []

    class Ask(Callback):
        def on_train_batch_end(self, trainer, *args):
            places.append(trainer.train_dataloader.state_dict())

    dm = data()
    run(dm, recorder(), make_trainer(max_epochs=2, limit_val_batches=0, callbacks=[Ask()]))
    assert places == [{"epoch": e, "micro_batch": b + 1} for e in range(2) for b in range(BATCHES)]
    # After a run someone may look at the data: from its start.
    assert len(list(dm.train_dataloader())) == len(dm.train_dataloader()) == BATCHES


def test_a_position_beyond_the_epoch_is_refused():
    """Lightning would end such an epoch at once, with nothing trained."""
    plan = range(5)
    check_position(5, plan)
    with pytest.raises(UserError, match="is 6 micro-batches into an epoch of 5"):
        check_position(6, plan)
