"""Every mode of the reference: rewards are exactly 0 at step 0 where they must be, live, cached and resumed."""

import math

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from adadpo_lightning.checkpoints.export import export_checkpoint, export_policy
from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import build_loss
from adadpo_lightning.models.adapters import is_reference
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig, load_model
from adadpo_lightning.reference.modes import starts_at_zero
from adadpo_lightning.reference.sync import SyncOptions
from adadpo_lightning.training.module import PreferenceLitModule
from adadpo_lightning.training.optim import OptimizerConfig, SchedulerConfig
from tests.support.tiny import make_adapter_dir, make_model_dir
from tests.training.test_module import QUIET


@pytest.fixture(scope="module")
def adapter_dir(model_dir, tmp_path_factory):
    """An adapter that changes what the model says."""
    return make_adapter_dir(model_dir, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def other_dir(model_dir, tmp_path_factory):
    """Another model of the same tokenizer."""
    folder = tmp_path_factory.mktemp("other") / "model"
    return make_model_dir(folder, seed=7)


def train(model_dir, pairs_file, tmp_path, lora=None, checkpoint=None, callbacks=(), precision="32-true", **options):
    """Two epochs; returns the module, the chosen rewards of each micro-batch, and the trainer."""
    module = PreferenceLitModule(
        PolicyConfig(path=str(model_dir), lora=lora),
        build_loss("dpo"),
        OptimizerConfig(lr=1e-2),
        SchedulerConfig(name="constant", warmup_ratio=0.0),
        reference_cache=str(tmp_path / "cache"),
        **options,
    )
    rewards, step = [], module.step

    def watched(batch):
        share, output = step(batch)
        rewards.append(output.loss.chosen_rewards)
        return share, output

    module.step = watched
    data = PreferenceDataModule(train=str(pairs_file), global_batch_size=8, micro_batch_size=4, max_length=40)
    seed_everything(0)
    saves = bool(callbacks)
    trainer = Trainer(**QUIET, max_epochs=2, callbacks=list(callbacks), enable_checkpointing=saves, precision=precision)
    trainer.fit(module, data, ckpt_path=checkpoint)
    return module, rewards, trainer


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


STARTING = [("full", m) for m in ("auto", "frozen", "synced", "cached")]
STARTING += [("new", m) for m in ("auto", "frozen", "adapter_off", "adapter", "synced", "cached")]
STARTING += [("trained", m) for m in ("auto", "frozen", "adapter", "synced", "cached")]


@pytest.mark.parametrize(("policy", "mode"), STARTING)
def test_rewards_are_zero_at_step_zero(model_dir, pairs_file, adapter_dir, tmp_path, policy, mode):
    lora = {"full": None, "new": LoraOptions(r=2), "trained": LoraOptions(adapter=str(adapter_dir))}[policy]
    sync = SyncOptions(alpha=1.0) if lora is not None else None
    module, rewards, _ = train(model_dir, pairs_file, tmp_path, lora, reference=mode, sync=sync)
    assert starts_at_zero(module.reference_mode, module.policy_config)
    assert torch.equal(rewards[0], torch.zeros_like(rewards[0]))
    assert any(not torch.equal(r, torch.zeros_like(r)) for r in rewards)  # and it does train


@pytest.mark.parametrize("mode", ["frozen", "synced", "cached"])
def test_a_run_in_float64_has_a_reference_in_float64(model_dir, pairs_file, tmp_path, mode):
    _, rewards, _ = train(model_dir, pairs_file, tmp_path, reference=mode, precision="64-true")
    assert rewards[0].dtype == torch.float64
    assert torch.equal(rewards[0], torch.zeros_like(rewards[0]))


def test_a_trained_adapter_gets_itself_as_reference_and_the_base_only_when_asked(
    model_dir, pairs_file, adapter_dir, tmp_path, capsys
):
    lora = LoraOptions(adapter=str(adapter_dir))
    _, rewards, _ = train(model_dir, pairs_file, tmp_path, lora, reference="adapter_off")
    assert "the base model without its trained adapter, not the initial policy" in capsys.readouterr().err
    assert rewards[0].abs().max() > 1e-3
    frozen, _, _ = train(model_dir, pairs_file, tmp_path, lora, reference="frozen")
    adapter, _, _ = train(model_dir, pairs_file, tmp_path, lora, reference="adapter")
    cached, _, _ = train(model_dir, pairs_file, tmp_path, lora, reference="cached")
    assert adapter.reference_mode == "adapter"
    trained = {name for name, p in frozen.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in adapter.named_parameters() if p.requires_grad}
    for name in trained:
        assert torch.equal(weights(frozen)[name], weights(adapter)[name]), name
        assert torch.equal(weights(frozen)[name], weights(cached)[name]), name


def test_two_trained_adapters_have_two_caches(model_dir, pairs_file, adapter_dir, tmp_path):
    train(model_dir, pairs_file, tmp_path, LoraOptions(adapter=str(adapter_dir)), reference="cached")
    train(model_dir, pairs_file, tmp_path, LoraOptions(r=2), reference="cached")
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 2


@pytest.mark.parametrize("mode", ["auto", "path", "cached"])
def test_a_path_is_another_model(model_dir, other_dir, pairs_file, tmp_path, capsys, mode):
    module, rewards, _ = train(model_dir, pairs_file, tmp_path, reference=mode, reference_path=str(other_dir))
    assert "not the initial policy: rewards at step 0 are not 0" in capsys.readouterr().err
    assert module.reference_mode in ("path", "cached")
    assert rewards[0].abs().max() > 1e-3
    _, itself, _ = train(model_dir, pairs_file, tmp_path, reference=mode, reference_path=str(model_dir))
    assert torch.equal(itself[0], torch.zeros_like(itself[0]))


def test_a_path_of_another_vocabulary_is_refused(model_dir, pairs_file, tmp_path):
    from transformers import AutoTokenizer

    other = make_model_dir(tmp_path / "odd", seed=7)
    tokenizer = AutoTokenizer.from_pretrained(other)
    text = (other / "tokenizer.json").read_text()
    words = [token for token, number in tokenizer.get_vocab().items() if number > 8][:2]
    for a, b in ((words[0], "\0"), (words[1], words[0]), ("\0", words[1])):
        text = text.replace(f'"{a}":', f'"{b}":')
    (other / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"model.reference_path: expected the vocabulary of the policy's tokenizer"):
        train(model_dir, pairs_file, tmp_path, reference_path=str(other))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "path"}, "model.reference_path: expected a directory or hub id, got null"),
        ({"reference": "frozen", "reference_path": "x"}, "model.reference is frozen, which does not use it"),
        ({"reference": "adapter"}, "adapter needs a policy with LoRA"),
    ],
)
def test_contradictions_are_refused(model_dir, options, message):
    with pytest.raises(UserError, match=message):
        PreferenceLitModule(PolicyConfig(path=str(model_dir)), build_loss("dpo"), **options)


def test_adapters_are_not_mixed(model_dir):
    policy = PolicyConfig(path=str(model_dir), lora=LoraOptions(r=2))
    with pytest.raises(UserError, match=r"model.sync.alpha: a policy with LoRA can only be copied"):
        PreferenceLitModule(policy, build_loss("dpo"), reference="synced")
    for bad in ({"alpha": 0.0}, {"alpha": 1.5}, {"alpha": math.nan}, {"every_n_steps": 0}):
        with pytest.raises(UserError, match=r"model\.sync"):
            SyncOptions(**bad)


def test_the_synced_reference_follows_the_formula(model_dir, pairs_file, tmp_path):
    """By hand: ref <- alpha policy + (1 - alpha) ref after every second optimizer step, and not in between."""
    from lightning.pytorch import Callback

    class Watch(Callback):
        expected = None
        moved = 0

        def on_train_start(self, trainer, module):
            self.expected = [p.detach().clone() for p in module.built_policy.parameters()]

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and trainer.global_step % 2 == 0:
                policy = module.built_policy.parameters()
                self.expected = [0.3 * p.detach() + 0.7 * r for p, r in zip(policy, self.expected, strict=True)]
                self.moved += 1
            for want, got in zip(self.expected, module.synced_reference.parameters(), strict=True):
                torch.testing.assert_close(got.detach(), want)

    watch = Watch()
    train(
        model_dir,
        pairs_file,
        tmp_path,
        reference="synced",
        sync=SyncOptions(alpha=0.3, every_n_steps=2),
        callbacks=[watch, ModelCheckpoint(tmp_path, save_last=True)],
    )
    assert watch.moved >= 2


@pytest.mark.parametrize("policy", ["full", "trained"])
@pytest.mark.parametrize("stop", [2, 3])
def test_a_resumed_synced_run_equals_the_uninterrupted_one(model_dir, pairs_file, adapter_dir, tmp_path, policy, stop):
    lora = None if policy == "full" else LoraOptions(adapter=str(adapter_dir))
    sync = SyncOptions(alpha=0.5 if lora is None else 1.0, every_n_steps=2)
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    options = {"reference": "synced", "sync": sync, "callbacks": [save]}
    whole, _, _ = train(model_dir, pairs_file, tmp_path, lora, **options)
    checkpoint = tmp_path / f"step={stop}.ckpt"
    resumed, _, _ = train(model_dir, pairs_file, tmp_path / "again", lora, checkpoint, **options)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_exports_hold_the_trained_adapter_alone(model_dir, pairs_file, adapter_dir, tmp_path):
    save = ModelCheckpoint(tmp_path, "last", save_top_k=1)
    lora = LoraOptions(adapter=str(adapter_dir))
    module, _, _ = train(model_dir, pairs_file, tmp_path, lora, callbacks=[save])
    export_policy(module.built_policy, module.tokenizer, tmp_path / "live", merge=False, write=True)
    export_checkpoint(str(save.best_model_path), str(tmp_path / "saved"))
    assert not (tmp_path / "live" / "reference").exists()
    state = torch.load(save.best_model_path, weights_only=True)["state_dict"]
    assert state
    assert not any(map(is_reference, state))
    again = [
        load_model(PolicyConfig(str(model_dir), lora=LoraOptions(adapter=str(tmp_path / d)))) for d in ("live", "saved")
    ]
    for name, value in module.built_policy.model.named_parameters():
        if value.requires_grad:
            for model in again:
                assert torch.equal(dict(model.named_parameters())[name], value), name
