"""Averages of weights beside what else a run does: resumes, adapters, a longer run, a step that is rolled back."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging

from adadpo_lightning.callbacks import NonFiniteGuard, RunCheckpoint
from adadpo_lightning.models.loading import LoraOptions
from tests.support.lab import EPOCHS, STEPS, Here, Lab, assert_equal, weights

LORA = {"lora": LoraOptions(r=2)}


@pytest.fixture(scope="module")
def lab(model_dir, tmp_path_factory):
    return Lab(model_dir, tmp_path_factory.mktemp("lab"))


@pytest.fixture
def here(lab, tmp_path):
    return Here(lab, tmp_path)


def averaging():
    return EMAWeightAveraging(decay=0.7)


def saver(here):
    return RunCheckpoint(here.folder, filename="step{step}", auto_insert_metric_name=False, every_n_train_steps=1,
                         save_top_k=-1, save_last=True)  # fmt: skip


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("module", "steps"),
    [
        pytest.param(LORA, [4], id="lora"),
        pytest.param({}, range(1, EPOCHS * STEPS), id="full, any step", marks=SLOW),
        pytest.param(LORA, [1, 2, 3, 5], id="lora, any step", marks=SLOW),
    ],
)
def test_resumed_the_average_is_the_same(here, module, steps):
    options = {"enable_checkpointing": True, "module": module, "data": here.lab.held_out}
    whole = here.fit(callbacks=[averaging(), saver(here)], **options)
    for step in steps:
        again = here.fit(
            callbacks=[averaging()],
            ckpt_path=here.folder / f"step{step}.ckpt",
            default_root_dir=here.folder / f"again{step}",
            **options,
        )
        assert_equal(again.weights, whole.weights)
        assert_equal(again.seen.weights[-1], whole.seen.weights[-1])
        for name in ("val/loss", "val/rewards/margins"):
            assert again.trainer.callback_metrics[name] == whole.trainer.callback_metrics[name]


def test_frozen_weights_are_no_average_and_not_saved(here):
    """0.7 x + 0.3 x is x up to rounding only, in bfloat16 up to a percent."""
    module = {**LORA, "dtype": "bfloat16"}
    run = here.fit(callbacks=[averaging(), saver(here)], enable_checkpointing=True, module=module)
    fresh = here.lab.module(**module)
    fresh.configure_model()
    trained = {name for name, p in run.module.named_parameters() if p.requires_grad}
    before, after = weights(fresh), run.weights
    assert trained
    assert_equal({n: after[n] for n in after if n not in trained}, {n: before[n] for n in before if n not in trained})
    content = torch.load(here.folder / "last.ckpt", weights_only=True)
    assert content["state_dict"].keys() == content["current_model_state"].keys() == trained


@pytest.mark.parametrize(
    "callbacks", [pytest.param([], id="plain", marks=SLOW), pytest.param([averaging], id="averaged")]
)
@pytest.mark.parametrize(
    "bound", [{"max_steps": 4}, *(pytest.param(bound, marks=SLOW) for bound in ({"max_steps": 5}, {"max_epochs": 1}))]
)
def test_a_longer_run_continues_from_the_last_step(here, callbacks, bound):
    """Its learning rate does not depend on the length, so that raising it is allowed."""
    last = {"enable_checkpointing": True}
    save = RunCheckpoint(here.folder, save_last=True)
    here.fit(callbacks=[*(make() for make in callbacks), save], **last, **bound)
    whole = here.fit(callbacks=[make() for make in callbacks])
    again = here.fit(callbacks=[make() for make in callbacks], ckpt_path=here.folder / "last.ckpt", **last)
    assert whole.seen.rows[-len(again.seen.rows) :] == again.seen.rows
    assert_equal(again.seen.weights[-1], whole.seen.weights[-1])
    assert_equal(again.weights, whole.weights)


class Spoil(Callback):
    """Makes the gradient of one step infinite; records the weights with which each step begins."""

    def __init__(self, at):
        self.at, self.before = at, []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before.append(weights(pl_module))
        if trainer.global_step == self.at:
            next(p for p in pl_module.parameters() if p.grad is not None).grad.fill_(float("inf"))


def test_a_rollback_restores_the_weights_and_not_their_average(here):
    spoil = Spoil(3)
    callbacks = [spoil, averaging(), NonFiniteGuard("rollback"), RunCheckpoint(here.folder, every_n_train_steps=2)]
    here.fit(callbacks=callbacks, enable_checkpointing=True)
    assert_equal(spoil.before[4], spoil.before[2])


@SLOW
def test_validation_is_of_the_average(here):
    run = here.fit(callbacks=[averaging()], data=here.lab.held_out)
    found = here.lab.trainer(default_root_dir=here.folder).validate(
        run.module, here.lab.data(**here.lab.held_out), verbose=False
    )[0]
    assert found["val/loss"] == pytest.approx(float(run.trainer.callback_metrics["val/loss"]), rel=1e-6)
    assert found["val/loss"] != pytest.approx(float(here.lab.plain.trainer.callback_metrics["val/loss"]), rel=1e-4)
