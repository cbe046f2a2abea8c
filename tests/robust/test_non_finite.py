"""A loss or gradient that is not finite: named, never applied, and what each policy does next."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from adadpo_lightning.callbacks import NonFiniteGuard
from adadpo_lightning.cli import trainer as command_line
from adadpo_lightning.errors import UserError
from tests.support.runs import PAIRS, arguments, curves, run, weights
from tests.support.tiny import make_rows, write_rows

LAYER = "model.model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", make_rows(PAIRS))


class Spoil(Callback):
    """Makes something not finite at chosen optimizer steps, and keeps the weights around each step."""

    def __init__(self, steps, what):
        self.steps, self.what, self.rows, self.before, self.after = steps, what, [], {}, {}
        self._hook = None

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        step = trainer.global_step
        self.before.setdefault(step, {n: p.detach().clone() for n, p in module.named_parameters()})
        if step not in self.steps:
            return
        self.rows += batch.row_ids.tolist()
        part = module.get_submodule(f"policy.{LAYER}")
        if self.what == "forward":
            self._hook = part.register_forward_hook(lambda *args: args[2] * float("nan"))
        else:
            self._hook = part.weight.register_hook(lambda gradient: gradient * float("inf"))

    def on_train_batch_end(self, trainer, module, *args):
        if self._hook is not None and self.what == "backward":
            self._hook.remove()
            self._hook = None
        self.after[trainer.global_step - 1] = {n: p.detach().clone() for n, p in module.named_parameters()}

    def on_before_zero_grad(self, *args):
        pass


class LiftHook(Callback):
    """Comes after the guard: the forward pass is whole again at the next micro-batch."""

    def __init__(self, spoil):
        self.spoil = spoil

    def on_train_batch_end(self, *args):
        if self.spoil._hook is not None:
            self.spoil._hook.remove()
            self.spoil._hook = None


@pytest.fixture
def spoiled(monkeypatch, tmp_path, model_dir, pairs):
    """Run with a guard of some policy while something is spoiled."""

    def _spoiled(steps, what, policy, *options):
        spoil, guard = Spoil(steps, what), NonFiniteGuard(policy)
        build = command_line.build_trainer

        def instantiate(method, options, callbacks):
            trainer = build(method, options, callbacks)
            kept = [c for c in trainer.callbacks if not isinstance(c, NonFiniteGuard)]
            trainer.callbacks = [spoil, guard, LiftHook(spoil), *kept]
            return trainer

        monkeypatch.setattr(command_line, "build_trainer", instantiate)
        args = arguments(
            model_dir, pairs, tmp_path, "--trainer.log_every_n_steps=1", "--model.scheduler.warmup_ratio=0", *options
        )
        return run(args), spoil, guard

    return _spoiled


@pytest.mark.parametrize("fused", ["false", "true"])
def test_raise_names_step_rows_and_layer_of_a_bad_gradient(spoiled, capsys, fused):
    status, spoil, _ = spoiled({2}, "backward", "raise", f"--model.optimizer.fused={fused}")
    said = capsys.readouterr().err
    assert status == 2
    assert "error: step 3: the gradient is not finite in 1 of " in said
    assert f"nearest to the loss in policy.{LAYER}.weight" in said
    assert f"the step's pairs are rows {', '.join(map(str, sorted(spoil.rows)))}" in said
    # The weights are those before the step.
    assert all(torch.equal(spoil.before[2][name], value) for name, value in spoil.after[2].items() if 2 in spoil.after)


def test_raise_names_rows_and_layer_of_a_bad_loss(spoiled, capsys):
    status, spoil, _ = spoiled({1}, "forward", "raise")
    said = capsys.readouterr().err
    assert status == 2
    assert "error: step 2: the loss is not finite for the pairs of rows " in said
    assert f"first seen in the output of {LAYER}" in said
    named = said.partition("pairs of rows ")[2].partition(", first seen")[0]
    assert sorted(map(int, named.split(", "))) == sorted(spoil.rows)


@pytest.mark.parametrize("fused", ["false", "true"])
def test_skip_leaves_the_step_out_and_counts_it(spoiled, tmp_path, fused):
    status, spoil, guard = spoiled({1, 3}, "backward", "skip", f"--model.optimizer.fused={fused}")
    assert status == 0
    assert guard.skipped == 2
    for step in range(6):
        same = all(torch.equal(spoil.before[step][n], v) for n, v in spoil.after[step].items())
        assert same == (step in (1, 3)), step
    found = {step: value for (name, step), value in curves(tmp_path).items() if name == "train/skipped_steps"}
    assert set(found.values()) == {1.0, 2.0}
    assert all(w.isfinite().all() for w in weights(tmp_path / "checkpoints/last.ckpt").values())


def test_too_many_bad_steps_in_a_row_end_the_run(spoiled, capsys):
    status, _, guard = spoiled(set(range(6)), "backward", "skip")
    assert status == 2
    assert guard.skipped == 6  # five may be left out, the sixth is too many
    assert "error: step 6: " in capsys.readouterr().err


def test_rollback_takes_weights_and_optimizer_of_the_last_checkpoint(spoiled, tmp_path):
    status, spoil, guard = spoiled({3}, "backward", "rollback", "--checkpoint.every_n_train_steps=2")
    assert status == 0
    assert guard.skipped == 1
    # Saved after step 2 (the second), spoiled in the fourth: the fifth begins where the third began.
    assert all(torch.equal(spoil.before[4][name], value) for name, value in spoil.before[2].items())
    assert not all(torch.equal(spoil.before[3][name], value) for name, value in spoil.before[2].items())
    rates = [value for (name, step), value in sorted(curves(tmp_path).items()) if name == "train/learning_rate"]
    assert len(set(rates)) == len(rates)  # the schedule goes on and is not rolled back


def test_options_are_checked():
    with pytest.raises(UserError, match=r"NonFiniteGuard\.policy: expected one of raise, skip, rollback, got 'x'"):
        NonFiniteGuard("x")
    with pytest.raises(UserError, match=r"NonFiniteGuard\.max_in_a_row: expected at least 1"):
        NonFiniteGuard(max_in_a_row=0)
