"""The module in a real Trainer: one gradient for any split of the batch, step-0 rewards, checkpoints, resume."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from adadpo_lightning.callbacks import PreferenceMetrics
from adadpo_lightning.compat import skip_step_if
from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import SFT, Mixture, build_loss
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig
from adadpo_lightning.training.module import PreferenceLitModule
from adadpo_lightning.training.optim import OptimizerConfig, SchedulerConfig, build_optimizer
from tests.support.losses import loss_keys

QUIET = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "logger": False,
    "use_distributed_sampler": False,
}


def module(model_dir, loss, *, lr=1e-2, dtype="float64", **policy):
    return PreferenceLitModule(
        PolicyConfig(path=str(model_dir), dtype=dtype, **policy),
        loss if not isinstance(loss, str) else build_loss(loss),
        OptimizerConfig(lr=lr),
        SchedulerConfig(name="constant", warmup_ratio=0.0),
    )


def data(pairs_file, **options):
    return PreferenceDataModule(train=str(pairs_file), **{"global_batch_size": 8, "max_length": 40, **options})


def train(lit, dm, **options):
    seed_everything(0)
    trainer = Trainer(**{**QUIET, "enable_checkpointing": False, "max_epochs": 1, **options})
    trainer.fit(lit, datamodule=dm)
    return trainer


def weights(lit):
    return {name: p.detach().clone() for name, p in lit.named_parameters()}


@pytest.mark.parametrize("loss", [*loss_keys(), "mixture"])
def test_accumulation_does_not_change_training(model_dir, pairs_file, loss):
    """1 x 8, 8 x 1 and 4 x 2 accumulation: the same weights after an epoch whose last step is not full."""
    loss = Mixture([build_loss("adadpo"), SFT()], [0.9, 0.1]) if loss == "mixture" else build_loss(loss)
    results = []
    for micro in (8, 1, 2):
        lit = module(model_dir, loss)
        train(lit, data(pairs_file, micro_batch_size=micro))
        results.append(weights(lit))
    for other in results[1:]:
        for name, value in results[0].items():
            # AdamW divides by the root of tiny moments: 1e-10 in the gradient is 1e-8 here.
            torch.testing.assert_close(other[name], value, rtol=1e-7, atol=1e-8)


def test_rewards_at_step_zero_are_exactly_zero(model_dir, pairs_file):
    for policy in ({}, {"lora": LoraOptions(r=2)}):
        for dtype in ("float32", "bfloat16"):
            lit = module(model_dir, "adadpo", dtype=dtype, **policy)
            dm = data(pairs_file, micro_batch_size=8)
            train(lit, dm, max_steps=0)
            batch = next(iter(dm.train_dataloader()))
            _, output = lit.step(batch)
            assert torch.equal(output.loss.chosen_rewards, torch.zeros(len(batch)))
            assert torch.equal(output.loss.rejected_rewards, torch.zeros(len(batch)))
            assert torch.equal(output.loss.coefficient, torch.ones(len(batch)))
            assert torch.equal(output.kl, torch.zeros(2 * len(batch)))


def test_reference_stays_what_the_policy_was(model_dir, pairs_file):
    lit = module(model_dir, "dpo")
    dm = data(pairs_file, micro_batch_size=8)
    train(lit, dm)
    batch = next(iter(dm.train_dataloader()))
    fresh = module(model_dir, "dpo")
    fresh.configure_model()
    torch.testing.assert_close(lit._reference(batch), fresh(batch).detach(), rtol=0, atol=0)
    assert not torch.equal(lit(batch), fresh(batch))


def test_no_reference_is_loaded_where_none_is_needed(model_dir):
    lit = module(model_dir, "simpo")
    lit.configure_model()
    assert lit._reference is None


def test_a_loss_that_needs_a_reference_says_so(model_dir):
    with pytest.raises(UserError, match=r"model\.reference.*DPO needs a reference"):
        PreferenceLitModule(PolicyConfig(path=str(model_dir)), build_loss("dpo"), reference="none")
    with pytest.raises(UserError, match=r"adapter_off needs a policy with LoRA"):
        PreferenceLitModule(PolicyConfig(path=str(model_dir)), build_loss("dpo"), reference="adapter_off")


@pytest.mark.parametrize("save_at", [*(pytest.param(at, marks=pytest.mark.slow) for at in (1, 3, 7)), 5])
@pytest.mark.parametrize("policy", [{}, {"lora": LoraOptions(r=2)}], ids=["full", "lora"])
def test_resumed_run_equals_the_uninterrupted_one(model_dir, pairs_file, tmp_path, save_at, policy):
    """Two epochs of five steps, saved in the middle, at the end of the first (5) and in the second."""
    options = {"max_epochs": 2, "enable_checkpointing": True}
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = module(model_dir, "adadpo", dtype="float32", **policy)
    train(whole, data(pairs_file, micro_batch_size=2), callbacks=[saver], **options)

    resumed = module(model_dir, "adadpo", dtype="float32", **policy)
    seed_everything(1)
    trainer = Trainer(**QUIET, **options | {"callbacks": [ModelCheckpoint(tmp_path / "second")]})
    seen = []
    resumed.on_train_batch_start = lambda batch, batch_idx: seen.append(batch.row_ids.tolist())
    trainer.fit(resumed, datamodule=data(pairs_file, micro_batch_size=2), ckpt_path=tmp_path / f"step={save_at}.ckpt")

    assert trainer.global_step == 10
    for name, value in weights(whole).items():
        torch.testing.assert_close(dict(resumed.named_parameters())[name], value, rtol=0, atol=0)
    assert len(seen) == 2 * 19 - (4 * save_at if save_at < 5 else 19 + 4 * (save_at - 5))


def test_checkpoint_holds_no_reference_and_with_lora_only_adapters(model_dir, pairs_file, tmp_path):
    for policy, expected in (({}, "policy.model.model."), ({"lora": LoraOptions(r=2)}, "lora_")):
        lit = module(model_dir, "dpo", **policy)
        trainer = train(lit, data(pairs_file, micro_batch_size=8), max_steps=1)
        path = tmp_path / f"{expected}.ckpt"
        trainer.save_checkpoint(path)
        content = torch.load(path, weights_only=True)
        names = list(content["state_dict"])
        assert all(expected in name or "lm_head" in name for name in names)
        assert not any("reference" in name for name in names)
        assert content["adadpo_lightning"]["policy"]["path"] == str(model_dir)


def test_validation_metrics_do_not_depend_on_the_batch_size(model_dir, pairs_file):
    results = []
    for size in (1, 5, 37):
        lit = module(model_dir, "adacpo")
        dm = PreferenceDataModule(val=str(pairs_file), eval_batch_size=size, max_length=40)
        trainer = Trainer(**QUIET, enable_checkpointing=False, callbacks=[PreferenceMetrics()])
        results.append(trainer.validate(lit, datamodule=dm, verbose=False)[0])
    assert results[0].keys() >= {"val/loss", "val/nll_loss", "val/rewards/margins", "val/grad_balance/ratio"}
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-6)


def test_sft_trains_on_rows_without_a_rejected_answer(model_dir, tmp_path, pairs_file):
    from tests.support.tiny import make_rows, write_rows

    rows = [{"prompt": r["prompt"], "chosen": r["chosen"]} for r in make_rows(16)]
    path = write_rows(tmp_path / "single.jsonl", rows)
    lit = module(model_dir, "sft")
    train(lit, data(path, micro_batch_size=4))
    with pytest.raises(UserError, match=r"16 of 16 rows have no rejected answer"):
        train(module(model_dir, "dpo"), data(path, micro_batch_size=4))


def test_batch_sizes_that_contradict_are_an_error(model_dir, pairs_file):
    with pytest.raises(UserError, match=r"8 pairs per step cannot be split evenly over 1 ranks x 3 pairs"):
        train(module(model_dir, "simpo"), data(pairs_file, micro_batch_size=3))
    with pytest.raises(UserError, match=r"accumulate_grad_batches: 3 contradicts"):
        train(module(model_dir, "simpo"), data(pairs_file, micro_batch_size=2), accumulate_grad_batches=3)


def test_the_optimizer_on_the_cpu_is_one_kernel_with_the_same_steps():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 8, dtype=torch.float64) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    config = OptimizerConfig(lr=0.1, weight_decay=0.1)
    optimizers = [build_optimizer(layers[0], config), build_optimizer(layers[1], replace(config, fused=False))]
    assert [optimizer.defaults["fused"] for optimizer in optimizers] == [True, False]
    for _ in range(3):
        for layer, optimizer in zip(layers, optimizers, strict=True):
            layer(torch.ones(8, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(layers[0].weight, layers[1].weight, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("written", "read"), [(False, True), (True, False), (None, True)])
def test_a_checkpoint_does_not_bring_the_kernel_of_another_run(written, read):
    layer = torch.nn.Linear(4, 4)
    states = []
    for fused in (written, read):
        optimizer = build_optimizer(layer, OptimizerConfig(lr=0.1, fused=fused))
        for state in states:
            optimizer.load_state_dict(state)
        layer(torch.ones(4)).sum().backward()
        optimizer.step()
        states.append(optimizer.state_dict())
    assert {group["fused"] for group in optimizer.param_groups} == {read}
    assert {float(state["step"]) for state in optimizer.state.values()} == {2.0}
    if read:  # what the guard against steps that are not finite relies on
        before = layer.weight.detach().clone()
        skip_step_if(optimizer, torch.tensor(True))
        layer.weight.grad.fill_(float("nan"))
        optimizer.step()
        assert torch.equal(layer.weight, before)
