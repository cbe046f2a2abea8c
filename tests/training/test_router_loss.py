"""The load-balancing loss in whole runs: its share of each step, what is logged, resuming, and TRL's own."""

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from adadpo_lightning.callbacks import ExpertLoad
from adadpo_lightning.cli import main
from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import build_loss
from adadpo_lightning.metrics.experts import load_entropy, max_load
from adadpo_lightning.models.loading import PolicyConfig
from adadpo_lightning.training.module import PreferenceLitModule
from adadpo_lightning.training.optim import OptimizerConfig
from adadpo_lightning.training.optimizer_class import ClassOptimizerConfig
from adadpo_lightning.types import EncodedPair
from tests.robust.test_resume_exact import Interrupt
from tests.support.moe import make_moe_dir, moe_batch
from tests.support.runs import arguments, assert_same, curves, run
from tests.support.tiny import make_rows

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "use_distributed_sampler": False,
}


@pytest.fixture(scope="module")
def moe_dir(tmp_path_factory):
    return make_moe_dir(tmp_path_factory.mktemp("moe"))


def module(moe_dir, coefficient, loss="simpo", **policy):
    made = PreferenceLitModule(
        PolicyConfig(path=str(moe_dir), **policy),
        build_loss(loss),
        OptimizerConfig(lr=1e-2, eps=1e-5),
        router_aux_loss_coef=coefficient,
    )
    made.configure_model()
    return made


def test_a_micro_batch_adds_its_share_of_the_coefficient(moe_dir):
    """The loss of a step is its preference loss, and the mean of the micro-batches' own, by number of pairs."""
    without, lit = module(moe_dir, 0.0), module(moe_dir, 0.5)
    pairs = [EncodedPair([1, 7 + i], [8 + 2 * i, 2], [9, 10 + i, 11, 2], i) for i in range(3)]
    seen = []
    for part in (pairs[:2], pairs[2:]):
        batch = moe_batch(pairs=part)
        batch.step_pairs = 3
        plain, _ = without.step(batch)
        share, output = lit.step(batch)
        assert share.item() - plain.item() == pytest.approx(0.5 * output.aux_loss.item() * len(part) / 3, rel=1e-4)
        assert output.share.item() == share.item()
        seen.append(output.aux_loss.item())
        batch.filler = True
        assert lit.step(batch)[0].item() == 0
    assert len(set(seen)) == 2


@pytest.mark.slow
def test_the_gradient_of_a_step_is_the_sum_over_its_micro_batches(moe_dir, pairs_file):
    """Accumulated by Lightning, clipped by nothing, for one step of SGD."""
    data = PreferenceDataModule(train=str(pairs_file), global_batch_size=8, micro_batch_size=2, max_length=40)
    lit, alone = module(moe_dir, 0.5), module(moe_dir, 0.5)
    lit.optimizer_config = ClassOptimizerConfig("torch.optim.SGD", {"lr": 1.0})
    seen = []
    lit.on_train_batch_start = lambda batch, batch_idx: seen.append(batch)
    before = {name: p.detach().clone() for name, p in lit.named_parameters()}
    Trainer(**QUIET, max_steps=1).fit(lit, datamodule=data)
    assert len(seen) == 4
    total = sum(alone.step(batch)[0] for batch in seen)
    total.backward()
    moved = {name: before[name] - p.detach() for name, p in lit.named_parameters()}
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(moved[name], parameter.grad, rtol=1e-3, atol=2e-6)
    mean = sum(alone.step(batch)[1].aux_loss * len(batch) for batch in seen) / 8
    plain = sum(module(moe_dir, 0.0).step(batch)[0] for batch in seen)
    assert total.item() == pytest.approx(plain.item() + 0.5 * mean.item(), rel=1e-5)


def test_only_the_policys_forward_pass_records_its_routers(moe_dir):
    lit = module(moe_dir, 0.5, "dpo")
    reference = lit.live_reference.model
    calls = []
    reference.causal_lm.base_model.register_forward_pre_hook(
        lambda m, args, options: calls.append(options.get("output_router_logits", False)), with_kwargs=True
    )
    _, output = lit.step(moe_batch())
    assert calls == [False]
    assert reference.take_routing() is None
    assert output.aux_loss is not None


@pytest.mark.parametrize("coefficient", [pytest.param(0.0, marks=pytest.mark.slow), 0.1])
def test_what_is_logged(moe_dir, pairs_file, tmp_path, coefficient):
    options = [f"--model.router_aux_loss_coef={coefficient}", "--trainer.max_epochs=1", "--data.max_length=40"]
    assert run(arguments(moe_dir, pairs_file, tmp_path, *options, loss="simpo")) == 0
    logged = curves(tmp_path)
    names = {name for name, _ in logged}
    layers = {f"train/moe/layer_0{n}/{measure}" for n in range(3) for measure in ("max_load", "entropy")}
    assert layers | {"train/aux_loss", "val/aux_loss"} <= names
    assert all(1 < v <= 2 for (name, _), v in logged.items() if name.endswith("max_load"))
    assert all(0 < v < 1 for (name, _), v in logged.items() if name.endswith("moe/entropy"))
    assert all(v > 1.5 for (name, _), v in logged.items() if name.endswith("aux_loss"))


@pytest.mark.slow
def test_it_balances_the_load(moe_dir, pairs_file):
    """A large coefficient makes the load more even than it is without."""

    class Last(ExpertLoad):
        def _log(self, module):
            self.tokens = self._tokens
            super()._log(module)

    found = {}
    for coefficient in (0.0, 10.0):
        seed_everything(0)
        data = PreferenceDataModule(train=str(pairs_file), global_batch_size=8, micro_batch_size=4, max_length=40)
        last = Last()
        trainer = Trainer(**QUIET, max_epochs=4, callbacks=[last], log_every_n_steps=5)
        trainer.fit(module(moe_dir, coefficient), datamodule=data)
        tokens = last.tokens
        found[coefficient] = max_load(tokens).mean().item(), load_entropy(tokens).mean().item()
    assert found[10.0][0] < found[0.0][0] - 0.1, found
    assert found[10.0][1] > found[0.0][1] + 0.01, found


def test_load_counts_every_token_of_the_steps_since_the_last_log_line(moe_dir, pairs_file):
    seen, logged = [], []

    class Watch(ExpertLoad):
        def _log(self, module):
            logged.append(self._tokens)
            super()._log(module)

    lit = module(moe_dir, 0.1)
    lit.on_train_batch_start = lambda batch, batch_idx: seen.append(batch.input_ids.numel())
    data = PreferenceDataModule(train=str(pairs_file), global_batch_size=8, micro_batch_size=4, max_length=40)
    Trainer(**QUIET, max_epochs=1, log_every_n_steps=2, callbacks=[Watch()]).fit(lit, datamodule=data)
    assert [tokens.sum(1).tolist() for tokens in logged] == [[2 * sum(seen[i : i + 4])] * 3 for i in (0, 4)]


@pytest.mark.slow
def test_a_resumed_run_is_exact(moe_dir, pairs_file, tmp_path, monkeypatch):
    from adadpo_lightning.cli import trainer as command_line

    options = ["--model.router_aux_loss_coef=0.1"]
    assert run(arguments(moe_dir, pairs_file, tmp_path / "whole", *options, loss="adasimpo")) == 0
    build, added = command_line.build_trainer, [Interrupt(7)]
    monkeypatch.setattr(
        command_line, "build_trainer", lambda method, options, callbacks: build(method, options, [*added, *callbacks])
    )
    args = arguments(moe_dir, pairs_file, tmp_path / "stopped", *options, loss="adasimpo")
    run(args)
    added.clear()
    assert run([*args, "--auto_resume=true"]) == 0
    assert_same(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.slow
def test_another_coefficient_is_another_run(moe_dir, pairs_file, tmp_path, capsys):
    args = arguments(moe_dir, pairs_file, tmp_path, "--trainer.max_epochs=1", loss="simpo")
    assert run(args) == 0
    assert run([*args, "--ckpt_path=last", "--model.router_aux_loss_coef=0.1"]) == 2
    assert "model.router_aux_loss_coef: 0.0 -> 0.1" in capsys.readouterr().err
    loaded = PreferenceLitModule.load_from_checkpoint(tmp_path / "checkpoints/last.ckpt", router_aux_loss_coef=0.2)
    assert loaded.router_aux_loss_coef == 0.2


def test_a_model_without_routers_is_refused_before_training(model_dir, pairs_file, tmp_path, capsys):
    args = arguments(model_dir, pairs_file, tmp_path, "--model.router_aux_loss_coef=0.01", loss="simpo")
    assert main(args) == 2
    assert "model.router_aux_loss_coef: 0.01: 'llama' has no routers" in capsys.readouterr().err
    for value in (-0.1, float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"model.router_aux_loss_coef: expected a number from 0 up"):
            PreferenceLitModule(PolicyConfig(path=str(model_dir)), build_loss("simpo"), router_aux_loss_coef=value)


def test_loss_and_gradient_are_those_of_trl(moe_dir, tmp_path):
    """Of one micro-batch in the padded layout, in which each prompt is computed twice, as in TRL."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoTokenizer

    trainer = trl.DPOTrainer(
        str(moe_dir),
        args=trl.DPOConfig(
            **{"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": [], "max_length": 40},
            **{"per_device_train_batch_size": 4, "router_aux_loss_coef": 0.3, "gradient_checkpointing": False},
        ),
        # TRL joins prompt and answer without a space.
        train_dataset=Dataset.from_list(
            [{name: text if name == "prompt" else f" {text}" for name, text in row.items()} for row in make_rows(9)]
        ),
        processing_class=AutoTokenizer.from_pretrained(moe_dir),
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    wanted = trainer.compute_loss(trainer.model, inputs)
    wanted.backward()
    theirs = trainer._metrics["train"]["aux_loss"][-1]

    ids, kept, answer = (inputs[name] for name in ("input_ids", "attention_mask", "completion_mask"))
    rows = [
        (row[(k == 1) & (a == 0)].tolist(), row[(k == 1) & (a == 1)].tolist())
        for row, k, a in zip(ids, kept, answer, strict=True)
    ]
    half = len(rows) // 2
    pairs = [EncodedPair(rows[i][0], rows[i][1], rows[half + i][1], i) for i in range(half)]
    assert all(rows[i][0] and rows[i][0] == rows[half + i][0] for i in range(half))
    lit = module(moe_dir, 0.3, "dpo", layout="padded")
    share, output = lit.step(moe_batch("padded", pairs))
    share.backward()
    assert output.aux_loss.item() == pytest.approx(theirs, rel=1e-5)
    assert share.item() == pytest.approx(wanted.item(), rel=1e-5)
    gradients = dict(trainer.model.named_parameters())
    for name, parameter in lit.built_policy.model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-3, atol=1e-6)
    # Packed, each prompt counts once.
    packed = module(moe_dir, 0.3, "dpo").step(moe_batch("packed", pairs))[1]
    assert packed.aux_loss.item() == pytest.approx(theirs, rel=0.2)
    assert packed.aux_loss.item() != pytest.approx(theirs, rel=1e-4)
