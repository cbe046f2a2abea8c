"""The Python API alone: as written in the README, with the bits of the command line, and from checkpoints back."""

import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from transformers import AutoModelForCausalLM, AutoTokenizer

from adadpo_lightning import (
    SFT,
    AdaDPO,
    LoraOptions,
    Mixture,
    OptimizerConfig,
    PolicyConfig,
    PreferenceDataModule,
    PreferenceLitModule,
    PreferenceLoss,
    SamplingOptions,
    SchedulerConfig,
    SimPO,
    UserError,
    build_loss,
)
from adadpo_lightning.callbacks import RunCheckpoint
from adadpo_lightning.generation.prompts import PromptTokenizer
from adadpo_lightning.training.rebuild import describe_loss, make_loss
from tests.robust.test_resume_exact import Interrupt
from tests.support.runs import MICRO, PAIRS, STEP, arguments, assert_same, run
from tests.support.tiny import make_rows, make_tokenizer, write_rows
from tests.training.test_module import QUIET

README = Path(__file__).parents[2] / "README.md"


def test_readme_code_runs_as_written(tmp_path, monkeypatch, model_dir, capsys):
    code = re.search(r"<!-- python-api -->\s*```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    Path("path/or").mkdir(parents=True)
    Path("path/or/hub-id").symlink_to(model_dir)
    write_rows(Path("pairs.jsonl"), make_rows(80))
    names = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tensor(")]
    assert len(printed) == 1
    metrics = names["trainer"].callback_metrics
    assert metrics.keys() >= {"val/loss", "val/rewards/margins", "val/rewards/accuracies"}
    assert AutoModelForCausalLM.from_pretrained("my-aligned-model").num_parameters() > 0


# Both paths.

KINDS = {
    "adadpo": ("adadpo", [], {}, {}),
    "dpo": ("dpo", [], {}, {}),
    "lora": (
        "adadpo",
        ["--model.policy.lora.r=2", "--model.policy.lora.target_modules=[q_proj,v_proj]"],
        {"lora": LoraOptions(r=2, target_modules=["q_proj", "v_proj"])},
        {},
    ),
    "cached": ("dpo", ["--model.reference=cached"], {}, {"reference": "cached"}),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", make_rows(PAIRS))


def by_python(model_dir, pairs, out, kind, *callbacks, ckpt_path=None):
    """The run of `tests.support.runs.arguments`, with Python objects."""
    loss, _, policy, options = KINDS[kind]
    seed_everything(0)
    module = PreferenceLitModule(
        PolicyConfig(str(model_dir), **policy),
        build_loss(loss),
        OptimizerConfig(lr=1e-2),
        reference_cache=str(out.parent / "cache"),
        **options,
    )
    data = PreferenceDataModule(
        train=str(pairs), val=str(pairs), global_batch_size=STEP, micro_batch_size=MICRO, max_length=40
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        log_every_n_steps=2,
        val_check_interval=0.5,
        gradient_clip_val=1.0,  # the command line's default
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
        logger=CSVLogger(out, name="csv"),
        callbacks=[RunCheckpoint(out / "checkpoints", save_last=True), *callbacks],
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, trainer


@pytest.mark.parametrize(
    "kind", ["adadpo", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("dpo", "lora", "cached"))]
)
def test_both_paths_give_the_same_bits_also_resumed_in_mid_epoch(tmp_path, model_dir, pairs, capsys, kind):
    loss, arguments_of_kind, *_ = KINDS[kind]
    cache = f"--model.reference_cache={tmp_path / 'cache'}"
    args = arguments(model_dir, pairs, tmp_path / "cli", *arguments_of_kind, cache, loss=loss)
    assert run(args) == 0
    # The 10th micro-batch is in the middle of the third optimizer step.
    with pytest.raises(SystemExit) as end:
        by_python(model_dir, pairs, tmp_path / "python", kind, Interrupt(9))
    assert end.value.code == 128 + signal.SIGTERM
    last = tmp_path / "python/checkpoints/last.ckpt"
    assert f'ckpt_path="{last}"' in capsys.readouterr().err
    by_python(model_dir, pairs, tmp_path / "python", kind, ckpt_path=last)
    assert_same(tmp_path / "python", tmp_path / "cli")


# Lightning's own arguments.


def small(model_dir, loss=None, **options):
    policy = PolicyConfig(str(model_dir), **options.pop("policy", {}))
    return PreferenceLitModule(
        policy, loss or AdaDPO(beta=0.2), OptimizerConfig(lr=1e-2), SchedulerConfig("constant", 0.0), **options
    )


def fit(module, pairs_file, tmp_path, *callbacks, **options):
    data = PreferenceDataModule(
        train=str(pairs_file), val_size=0.2, global_batch_size=8, micro_batch_size=4, max_length=40
    )
    quiet = {name: value for name, value in QUIET.items() if name != "use_distributed_sampler"}
    options = {"max_epochs": 1, "default_root_dir": tmp_path, **quiet, **options}
    trainer = Trainer(callbacks=[*callbacks], **options)
    trainer.fit(module, data)
    return trainer, data


def test_lightnings_checkpoint_callback_monitors_a_metric(model_dir, pairs_file, tmp_path):
    best = ModelCheckpoint(tmp_path / "best", monitor="val/loss")
    module = small(model_dir)
    trainer, _ = fit(module, pairs_file, tmp_path, best)
    assert os.path.exists(best.best_model_path)
    assert float(best.best_model_score) == float(trainer.callback_metrics["val/loss"])
    assert not (tmp_path / "checkpoints").exists()  # the user's callback replaces the default


@pytest.fixture(scope="module")
def trained(model_dir, pairs_file, tmp_path_factory):
    """One small run without and one with LoRA: (module, trainer, data, last checkpoint)."""
    done = {}
    for name, policy in (("full", {}), ("lora", {"lora": LoraOptions(r=2)})):
        out = tmp_path_factory.mktemp(name)
        module = small(model_dir, policy=policy)
        trainer, data = fit(module, pairs_file, out)
        done[name] = module, trainer, data, out / "checkpoints/last.ckpt"
    return done


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_checkpoint_rebuilds_its_module(trained, tmp_path, kind):
    module, _, data, last = trained[kind]
    loaded = PreferenceLitModule.load_from_checkpoint(last)
    assert loaded.loss == AdaDPO(beta=0.2)
    assert loaded.optimizer_config == OptimizerConfig(lr=1e-2)
    assert loaded.reference_mode == module.reference_mode
    for name, value in module.named_parameters():
        assert torch.equal(dict(loaded.named_parameters())[name], value), name
    # Validated from memory, and from the checkpoint by a new module: the same numbers.
    quiet = {**QUIET, "enable_checkpointing": False, "default_root_dir": tmp_path}
    expected = Trainer(**quiet).validate(module, data, verbose=False)
    assert Trainer(**quiet).validate(loaded, data, verbose=False) == expected
    fresh = small(module.policy_config.path, policy={"lora": module.policy_config.lora})
    assert Trainer(**quiet).validate(fresh, data, ckpt_path=last, verbose=False) == expected
    data.sources["predict"] = data.sources["train"]
    scored = Trainer(**quiet).predict(loaded, data)
    assert sum(len(batch["row_id"]) for batch in scored) == 37


def test_arguments_override_those_of_the_checkpoint(trained):
    *_, last = trained["full"]
    loaded = PreferenceLitModule.load_from_checkpoint(last, loss=SimPO(), optimizer=OptimizerConfig(lr=1.0))
    assert (loaded.loss, loaded.reference_mode, loaded.optimizer_config.lr) == (SimPO(), "none", 1.0)


def test_checkpoints_that_do_not_rebuild_say_why(trained, tmp_path):
    *_, last = trained["full"]
    content = torch.load(last, weights_only=True)  # nothing in it is executed
    content["adadpo_lightning"] |= {"version": "0.1.0", "loss": "AdaDPO(beta=0.2)"}
    del content["adadpo_lightning"]["module"]
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(UserError, match=r"wrote its loss as text alone: AdaDPO\(beta=0.2\)"):
        PreferenceLitModule.load_from_checkpoint(tmp_path / "old.ckpt")
    assert PreferenceLitModule.load_from_checkpoint(tmp_path / "old.ckpt", loss=AdaDPO(beta=0.2)).loss.beta == 0.2
    with pytest.raises(UserError, match="file not found"):
        PreferenceLitModule.load_from_checkpoint(tmp_path / "nowhere.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="not written by adadpo_lightning"):
        PreferenceLitModule.load_from_checkpoint(tmp_path / "other.ckpt")


def test_losses_are_described_and_made_again():
    for loss in (AdaDPO(beta=0.3, space="policy"), SFT(), Mixture([AdaDPO(), SFT()], [0.9, 0.1])):
        assert repr(make_loss(describe_loss(loss))) == repr(loss)
    with pytest.raises(UserError, match=r"the checkpoint's loss is os.system, which is not imported"):
        make_loss({"class_path": "os.system", "init_args": {"command": "true"}})

    @dataclass(frozen=True)
    class Odd(PreferenceLoss):
        function: object = print

        def __call__(self, x):
            raise NotImplementedError

    with pytest.raises(UserError, match="does not hold the arguments of"):
        make_loss(describe_loss(Odd()))


def test_prompts_are_rendered_as_those_of_the_training_pairs(model_dir, pairs_file, tmp_path, monkeypatch):
    module, asked = small(model_dir), []
    template = module.tokenizer.chat_template + "{{ mood }}"
    data = PreferenceDataModule(
        train=str(pairs_file), global_batch_size=8, max_length=40, chat_template_kwargs={"mood": "cat"}
    )
    data.tokenizer = make_tokenizer()
    data.tokenizer.chat_template = template
    trainer = Trainer(max_steps=1, default_root_dir=tmp_path, **{**QUIET, "use_distributed_sampler": True})
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    loaded = PreferenceLitModule.load_from_checkpoint(tmp_path / "one.ckpt")
    encode = PromptTokenizer.encode
    monkeypatch.setattr(PromptTokenizer, "encode", lambda *args: asked.append(encode(*args)) or asked[-1])
    greedy = SamplingOptions(max_new_tokens=2, temperature=0)
    assert module.generate(["why"], greedy) == loaded.generate(["why"], greedy)
    expected = data.tokenizer.apply_chat_template(
        [{"role": "user", "content": "why"}], add_generation_prompt=True, mood="cat", return_dict=False
    )
    assert asked == [expected, expected]
    assert data.tokenizer.convert_tokens_to_ids("cat") in expected


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_policy_generates_and_is_saved(trained, tmp_path, kind):
    module = trained[kind][0]
    greedy = SamplingOptions(max_new_tokens=8, temperature=0)
    answers = module.generate(["the cat", "a dog runs"], greedy)
    assert len(answers) == 2
    loaded = PreferenceLitModule.load_from_checkpoint(trained[kind][3])
    assert loaded.generate(["the cat", "a dog runs"], greedy) == answers
    with pytest.raises(UserError, match="at least one prompt"):
        module.generate([])
    before = {name: p.clone() for name, p in module.named_parameters()}
    module.save_pretrained(tmp_path / "out", merge=kind == "lora")
    assert all(torch.equal(before[name], p) for name, p in module.named_parameters())
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == module.tokenizer.chat_template
    # An exported policy is one again.
    again = small(tmp_path / "out")
    assert again.generate(["the cat", "a dog runs"], greedy) == answers
