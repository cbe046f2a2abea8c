"""Optimizers by their class: what a config says, who gets which parameters, exact resumes, and what is refused."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from transformers import TrainingArguments, get_scheduler

from adadpo_lightning.checkpoints.parts import read_checkpoint
from adadpo_lightning.cli.parser import instantiate, parse
from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import build_loss
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig
from adadpo_lightning.training.module import PreferenceLitModule
from adadpo_lightning.training.optim import (
    OptimizerConfig,
    SchedulerConfig,
    as_config,
    build_optimizer,
    build_scheduler,
)
from adadpo_lightning.training.optimizer_class import ClassOptimizerConfig
from tests.support.cli import parser_of
from tests.support.runs import arguments, run
from tests.support.tiny import make_model_dir
from tests.training.test_module import QUIET, data, train, weights

SGD = ClassOptimizerConfig("torch.optim.SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1})
CASES = {
    "adamw": ClassOptimizerConfig("torch.optim.AdamW", {"lr": 1e-2, "weight_decay": 0.1}),
    "sgd": SGD,
    "rmsprop": ClassOptimizerConfig("torch.optim.RMSprop", {"lr": 1e-3}),
    "adafactor": ClassOptimizerConfig("torch.optim.Adafactor", {"lr": 1e-2}),
    "muon": ClassOptimizerConfig("adadpo_lightning.MuonWithAdamW", {"lr": 1e-2, "weight_decay": 0.1}),
}


@pytest.fixture(scope="module")
def fit_parser():
    return parser_of("fit")


@pytest.fixture
def written(fit_parser, tmp_path):
    """The record that a module makes of options on top of a config in the old form."""
    old = tmp_path / "old.yaml"
    old.write_text("model:\n  optimizer:\n    lr: 4.0e-7\n    weight_decay: 0.2\n    betas: [0.8, 0.9]\n")

    def _written(*options):
        args = [f"--config={old}", "--model.loss=DPO", "--model.policy.path=x", "--data.train=y", *options]
        return instantiate(fit_parser, parse(fit_parser, args)).model.optimizer_config

    return _written


@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize(("ratio", "steps"), [(0.1, 25), (0.1, 128), (0.03, 61), (0.5, 7), (0.07, 100), (0.0, 9)])
def test_the_learning_rate_is_that_of_transformers_at_every_step(name, ratio, steps, tmp_path):
    theirs = TrainingArguments(output_dir=str(tmp_path), warmup_steps=ratio, use_cpu=True)

    def rates(build):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
        scheduler = build(optimizer)
        found = []
        for _ in range(steps):
            found += scheduler.get_last_lr()
            optimizer.step()
            scheduler.step()
        return found

    expected = rates(lambda o: get_scheduler(name, o, theirs.get_warmup_steps(steps), steps))
    assert rates(lambda o: build_scheduler(o, SchedulerConfig(name, ratio), steps)) == expected


def module(model_dir, optimizer, **policy):
    return PreferenceLitModule(
        PolicyConfig(path=str(model_dir), **policy),
        build_loss("adadpo"),
        optimizer,
        SchedulerConfig(name="cosine", warmup_steps=2),
    )


def test_configs_in_the_old_form_are_read_and_a_class_starts_from_its_own_defaults(written, tmp_path):
    assert written() == OptimizerConfig(lr=4e-7, weight_decay=0.2, betas=(0.8, 0.9))
    assert written("--model.optimizer.lr=1e-3") == OptimizerConfig(lr=1e-3, weight_decay=0.2, betas=(0.8, 0.9))
    assert written("--model.optimizer=null") == OptimizerConfig()
    file = tmp_path / "sgd.yaml"
    file.write_text("model:\n  optimizer:\n    class_path: torch.optim.SGD\n    init_args: {lr: 0.1, momentum: 0.9}\n")
    made = written(f"--config={file}", "--model.optimizer.weight_decay=0.1", "--model.optimizer.lr=3e-3")
    assert made == ClassOptimizerConfig("torch.optim.SGD", {"lr": 3e-3, "momentum": 0.9, "weight_decay": 0.1})
    made = written("--model.optimizer=torch.optim.AdamW")
    assert (made.class_path, made.lr, made.weight_decay) == ("torch.optim.AdamW", 1e-3, 1e-2)  # torch's, not 4e-7


def test_python_takes_a_partial():
    config = as_config(partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1))
    assert config == SGD
    assert config.init_args["nesterov"] is False  # every default is recorded
    assert as_config(None) == OptimizerConfig()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassOptimizerConfig("torch.optim.LBFGS"), r"LBFGS needs a closure"),
        (lambda: ClassOptimizerConfig("torch.optim.SparseAdam"), r"needs sparse gradients"),
        (lambda: ClassOptimizerConfig("torch.optim.AdamX"), r"cannot import torch\.optim\.AdamX"),
        (lambda: ClassOptimizerConfig("SGD"), r"cannot import SGD"),
        (lambda: ClassOptimizerConfig("torch.nn.Linear"), r"no torch\.optim\.Optimizer"),
        (lambda: ClassOptimizerConfig("torch.optim.SGD", {"lr": -1.0}), r"torch\.optim\.SGD: Invalid learning rate"),
        (lambda: ClassOptimizerConfig("torch.optim.SGD", {"betas": 1}), r"unexpected keyword argument 'betas'"),
        (lambda: ClassOptimizerConfig("torch.optim.SGD", {"lr": torch.tensor(1.0)}), r"cannot record Tensor"),
        (lambda: ClassOptimizerConfig("adadpo_lightning.MuonWithAdamW", {"momentum": -1.0}), r"momentum should be"),
        (lambda: as_config(lambda params: torch.optim.SGD(params)), r"cannot record"),
    ],
)
def test_what_cannot_train_is_refused_before_a_model_is_loaded(make, message):
    with pytest.raises(UserError, match=message):
        make()


class Net(nn.Module):
    """What a language model has: ends, a hidden matrix, a norm and a bias."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.hidden = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 6, bias=False)

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, x):
        return self.lm_head(self.norm(self.hidden(self.embed(x)))).square().sum()


def nets(count):
    torch.manual_seed(0)
    made = [Net() for _ in range(count)]
    for net in made[1:]:
        net.load_state_dict(made[0].state_dict())
    return made


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_norms_and_biases_never_decay(config):
    net = Net()
    config = ClassOptimizerConfig(config.class_path, {**config.init_args, "weight_decay": 0.5})
    optimizer = build_optimizer(net, config)
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: decay[p] for name, p in net.named_parameters()}
    exempt = {"hidden.bias", "norm.weight", "norm.bias"}
    assert names == {name: 0.0 if name in exempt else 0.5 for name in names}


def test_muon_updates_the_hidden_matrix_and_adamw_the_rest():
    """As torch's two optimizers do, each on its own parameters; also after a state dict was loaded."""
    net, other = nets(2)
    arguments = {"lr": 1e-2, "weight_decay": 0.1, "adamw_lr": 1e-3}
    made = build_optimizer(net, ClassOptimizerConfig("adadpo_lightning.MuonWithAdamW", arguments))
    muon = torch.optim.Muon([other.hidden.weight], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    decays, others = [other.embed.weight, other.lm_head.weight], [other.hidden.bias, *other.norm.parameters()]
    adamw = torch.optim.AdamW(
        [{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-3
    )
    for step in range(4):
        for one, optimizers in ((net, [made]), (other, [muon, adamw])):
            one(torch.tensor([1, 2, 5])).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
        if step == 1:
            saved = made.state_dict()
            made = build_optimizer(net, ClassOptimizerConfig("adadpo_lightning.MuonWithAdamW", arguments))
            made.load_state_dict(saved)


def test_muon_alone_is_for_adapters(model_dir):
    muon = ClassOptimizerConfig("torch.optim.Muon", {"lr": 1e-2})
    with pytest.raises(UserError, match=r"hidden matrices alone, and 5 other .*embed.*MuonWithAdamW"):
        build_optimizer(Net(), muon)
    lit = module(model_dir, muon, lora=LoraOptions(r=2))
    lit.configure_model()
    optimizer = build_optimizer(lit.policy, muon)
    assert {p.ndim for group in optimizer.param_groups for p in group["params"]} == {2}


@pytest.mark.slow
def test_adamw_by_its_class_is_the_default(model_dir, pairs_file):
    found = []
    by_class = ClassOptimizerConfig("torch.optim.AdamW", {"lr": 1e-2, "weight_decay": 0.1, "fused": True})
    for optimizer in (OptimizerConfig(lr=1e-2, weight_decay=0.1), by_class):
        lit = module(model_dir, optimizer)
        train(lit, data(pairs_file), max_steps=3)
        found.append(weights(lit))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(
    "name", [name if name == "muon" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_a_resumed_run_equals_the_uninterrupted_one(model_dir, pairs_file, tmp_path, name):
    check_resume(model_dir, pairs_file, tmp_path, CASES[name])


@pytest.mark.slow
def test_eight_bit_moments_resume_exactly(pairs_file, tmp_path):
    """Of a model whose matrices have the 4,096 entries from which on torchao stores 8 bits."""
    pytest.importorskip("torchao")
    model = make_model_dir(tmp_path / "model", hidden=64)

    def train_in(out, *options):
        optimizer = ("--model.optimizer.class_path=torchao.optim.AdamW8bit", "--model.optimizer.init_args.lr=1e-3")
        saving = ("--checkpoint.every_n_train_steps=4", "--checkpoint.save_top_k=-1")
        given = arguments(model, pairs_file, out, *optimizer, *saving, *options)
        assert run([option for option in given if not option.startswith("--model.optimizer.lr")]) == 0
        return read_checkpoint(out / "checkpoints/last.ckpt")

    whole = train_in(tmp_path / "whole")
    resumed = train_in(tmp_path / "resumed", f"--ckpt_path={tmp_path}/whole/checkpoints/step4.ckpt")
    states = whole["optimizer_states"][0]["state"].values()
    assert any(type(moment) is not torch.Tensor for state in states for moment in state.values())
    assert whole["global_step"] == resumed["global_step"] > 4
    assert not [
        name for name, value in whole["state_dict"].items() if not torch.equal(resumed["state_dict"][name], value)
    ]


def check_resume(model_dir, pairs_file, tmp_path, optimizer):
    options = {"max_epochs": 1, "enable_checkpointing": True}
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    whole = module(model_dir, optimizer)
    rates = train(whole, data(pairs_file), callbacks=[saver], **options).optimizers[0].param_groups
    resumed = module(model_dir, optimizer)
    seed_everything(1)
    trainer = Trainer(**QUIET, **options | {"callbacks": [ModelCheckpoint(tmp_path / "second")]})
    trainer.fit(resumed, datamodule=data(pairs_file), ckpt_path=tmp_path / "step=2.ckpt")
    assert trainer.global_step == 5
    own = dict(resumed.named_parameters())
    assert not [name for name, value in weights(whole).items() if not torch.equal(own[name], value)]
    for group, expected in zip(trainer.optimizers[0].param_groups, rates, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {k: v for k, v in expected.items() if k != "params"}
    other = module(model_dir, OptimizerConfig())
    with pytest.raises(UserError, match=r"model\.optimizer\.class_path"):
        Trainer(**QUIET, **options).fit(other, datamodule=data(pairs_file), ckpt_path=tmp_path / "step=2.ckpt")
    loaded = PreferenceLitModule.load_from_checkpoint(tmp_path / "step=2.ckpt")
    assert loaded.optimizer_config == optimizer
    return trainer.optimizers[0].state


def test_a_changed_number_that_is_allowed_takes_effect(model_dir, pairs_file, tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    train(module(model_dir, SGD), data(pairs_file), callbacks=[saver], max_steps=2, enable_checkpointing=True)
    changed = module(model_dir, ClassOptimizerConfig("torch.optim.SGD", {**SGD.init_args, "lr": 0.5, "momentum": 0.5}))
    changed.run_record.allow_changed = True
    trainer = Trainer(**QUIET, max_steps=3, enable_checkpointing=False)
    trainer.fit(changed, datamodule=data(pairs_file), ckpt_path=tmp_path / "step=2.ckpt")
    groups = trainer.optimizers[0].param_groups
    assert {(g["momentum"], g["initial_lr"]) for g in groups} == {(0.5, 0.5)}
    assert sorted(g["weight_decay"] for g in groups) == [0.0, 0.1]
