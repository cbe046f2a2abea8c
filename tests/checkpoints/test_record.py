"""A resume is the same run or an error that names what differs; what is allowed to differ takes effect."""

import json
import shutil
from inspect import signature

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from adadpo_lightning.checkpoints.record import KEY
from adadpo_lightning.checkpoints.settings import TRAINER, option, settings, treatments
from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.fingerprint import differences
from adadpo_lightning.losses import available_losses, build_loss, loss_class
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig
from adadpo_lightning.reference.sync import SyncOptions
from adadpo_lightning.training.module import PreferenceLitModule
from adadpo_lightning.training.optim import OptimizerConfig, SchedulerConfig
from tests.support.runs import PAIRS, arguments, curves, run
from tests.support.tiny import make_model_dir, make_rows, write_rows

LORA = ["--model.policy.lora.r=2", "--model.policy.lora.target_modules=[q_proj,v_proj]"]


@pytest.fixture(scope="module")
def started(tmp_path_factory, model_dir):
    """Make a run of one epoch (three steps), once for each set of options; its model and pairs are its own copies."""
    made = {}

    def _started(*options):
        if options not in made:
            folder = tmp_path_factory.mktemp("run")
            shutil.copytree(model_dir, folder / "model")
            pairs = write_rows(folder / "pairs.jsonl", make_rows(PAIRS))
            args = arguments(folder / "model", pairs, folder / "out", "--trainer.max_epochs=1", *options)
            assert run(args) == 0
            made[options] = folder
        return made[options]

    return _started


@pytest.fixture
def resumed(started, tmp_path, capsys):
    """Copy a run with its model and data, change something, resume it, and give the status and what it said."""

    def _resumed(change, *more, options=()):
        folder = shutil.copytree(started(*options), tmp_path / "run")
        change(folder)
        args = arguments(folder / "model", folder / "pairs.jsonl", folder / "out", "--trainer.max_epochs=1", *options)
        status = run([*args, "--ckpt_path=last", *more])
        return status, capsys.readouterr().err

    return _resumed


def nothing(folder):
    """A moved run with moved data and weights."""


def turned_answers(folder):
    """The same lengths, other ids: each rejected answer backwards."""
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    for row in rows:
        row["rejected"] = " ".join(reversed(row["rejected"].split()))
    write_rows(folder / "pairs.jsonl", rows)


def more_rows(folder):
    write_rows(folder / "pairs.jsonl", make_rows(PAIRS + 9))


def swapped_ids(folder):
    text = (folder / "model/tokenizer.json").read_text()
    tokenizer = json.loads(text)
    words = tokenizer["model"]["vocab"]
    words["cat"], words["dog"] = words["dog"], words["cat"]
    (folder / "model/tokenizer.json").write_text(json.dumps(tokenizer))


def other_weights(folder):
    shutil.rmtree(folder / "model")
    make_model_dir(folder / "model", seed=1)


def other_rope(folder):
    config = json.loads((folder / "model/config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 77.0
    (folder / "model/config.json").write_text(json.dumps(config))


def test_a_moved_run_resumes(resumed):
    status, said = resumed(nothing)
    assert status == 0
    assert "Resuming from " in said


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (turned_answers, "data.train.token_ids: "),
        (more_rows, f"data.train.pairs: {PAIRS} -> {PAIRS + 9}"),
        (swapped_ids, "tokenizer.vocabulary: "),
        (other_weights, "model.policy.path.weights.model.safetensors: "),
        (other_rope, "model.policy.path.config.rope_parameters.rope_theta: 10000.0 -> 77.0"),
    ],
)
def test_a_resume_with_other_inputs_names_them(resumed, change, named):
    status, said = resumed(change)
    assert status == 2
    assert named in said
    assert "--allow_changed_config true" in said


def test_base_weights_matter_only_to_who_reads_them(resumed):
    """SimPO has no reference, and the checkpoint holds the policy's weights."""
    status, _ = resumed(other_weights, options=("--model.loss=simpo",))
    assert status == 0


def test_validation_of_an_adapter_over_another_base_is_an_error(started, tmp_path, capsys):
    folder = shutil.copytree(started(*LORA), tmp_path / "run")
    args = arguments(folder / "model", folder / "pairs.jsonl", tmp_path / "val", *LORA)
    command = ["validate", *args[1:], f"--ckpt_path={folder}/out/checkpoints/last.ckpt"]
    assert run(command) == 0
    other_weights(folder)
    assert run(command) == 2
    assert "model.policy.path.weights.model.safetensors: " in capsys.readouterr().err


def test_a_checkpoint_of_another_directory_is_compared_by_what_it_says_itself(started, tmp_path, capsys):
    folder = started()
    args = arguments(folder / "model", folder / "pairs.jsonl", tmp_path, "--trainer.max_epochs=1")
    status = run([*args, f"--ckpt_path={folder}/out/checkpoints/last.ckpt", "--model.loss.beta=0.4"])
    assert status == 2
    assert "model.loss.init_args.beta: 0.1 -> 0.4" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_allowed_takes_effect_is_listed_and_recorded(resumed, tmp_path):
    changed = ["--model.optimizer.lr=3e-2", "--model.optimizer.weight_decay=0.5", "--model.optimizer.betas=[0.5,0.6]"]
    longer = ["--trainer.max_epochs=2", "--model.scheduler.name=constant", "--model.scheduler.warmup_ratio=0"]
    status, said = resumed(nothing, *changed, *longer, "--allow_changed_config=true")
    assert status == 0
    for line in ("model.optimizer.lr: 0.01 -> 0.03", "model.scheduler.name: cosine -> constant"):
        assert line in said
    out = tmp_path / "run/out"
    rates = [value for (name, step), value in curves(out).items() if name == "train/learning_rate" and step > 3]
    assert rates == pytest.approx([0.03] * len(rates))
    assert rates
    saved = torch.load(out / "checkpoints/last.ckpt", weights_only=True)
    groups = saved["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert {tuple(group["betas"]) for group in groups} == {(0.5, 0.6)}
    assert saved[KEY]["fingerprint"]["options"]["model"]["optimizer"]["lr"] == 0.03
    now, before = (yaml.safe_load((out / name).read_text()) for name in ("config.yaml", "config.history/001.yaml"))
    assert [made["model"]["optimizer"]["init_args"]["lr"] for made in (before, now)] == [0.01, 0.03]


def test_a_checkpoint_without_a_fingerprint_resumes_and_says_that_it_cannot_be_checked(resumed):
    def older(folder):
        path = folder / "out/checkpoints/last.ckpt"
        content = torch.load(path, weights_only=True)
        content[KEY] = {name: content[KEY][name] for name in ("policy", "loss", "reference")} | {"version": "0.1.0"}
        torch.save(content, path)
        (folder / "out/checkpoints/step3.ckpt").unlink()

    status, said = resumed(older)
    assert status == 0
    assert "written by version 0.1.0, has no fingerprint of data, weights and options. It cannot be checked" in said


def test_a_checkpoint_of_a_later_format_is_refused(resumed):
    def later(folder):
        for path in (folder / "out/checkpoints").iterdir():
            content = torch.load(path, weights_only=True)
            content[KEY] |= {"format": 99, "version": "9.0"}
            torch.save(content, path)

    status, said = resumed(later)
    assert status == 2
    assert "the checkpoint has format 99, written by version 9.0" in said


# The classes whose options a config holds, and what a resume does with each option.
IGNORED = {
    "reference_cache",
    "attn_implementation layout packed_attention head_chunk_size token_entropy",
    "gradient_checkpointing offload_activations compile",
    "test predict micro_batch_size max_tokens eval_batch_size eval_max_tokens num_workers num_proc",
}
BY_CONTENT = {"reference_path path gguf_file revision config tokenizer adapter train val chat_template"}
COMPARED = {
    "policy loss optimizer scheduler reference sync alpha every_n_steps router_aux_loss_coef",
    "init_seed dtype lora trust_remote_code r alpha dropout target_modules peft quantize",
    "lr weight_decay betas eps fused name warmup_ratio warmup_steps",
    "val_size chat max_length max_prompt_length truncation on_bad_row global_batch_size seed shuffle drop_last",
    "lists special_tokens chat_template_kwargs score group",
}


def test_micro_batches_and_layout_are_compared_where_routers_have_a_loss():
    def of(coefficient, layout="packed", **batching):
        module = PreferenceLitModule(
            PolicyConfig("model", layout=layout), build_loss("dpo"), router_aux_loss_coef=coefficient
        )
        return settings(Trainer(max_epochs=1, logger=False), module, PreferenceDataModule(**batching))

    for other in ({"layout": "padded"}, {"micro_batch_size": 3}, {"max_tokens": 64}):
        assert of(0.0, **other) == of(0.0)
        (name,) = other
        (said,) = differences(of(0.1), of(0.1, **other))
        assert f".{name}: " in said


def test_every_config_key_is_classified():
    """A new option has to be put into one of the sets above, with the metadata that says so."""
    expected = {
        name: kind
        for kind, lines in (("ignored", IGNORED), ("by_content", BY_CONTENT), ("compared", COMPARED))
        for name in " ".join(lines).split()
    }
    policy = PolicyConfig("model", lora=LoraOptions())
    module = PreferenceLitModule(policy, build_loss("dpo"))
    made = (module, PreferenceDataModule(), policy, LoraOptions(), OptimizerConfig(), SchedulerConfig(), SyncOptions())
    assert {name: kind for one in made for name, kind in treatments(type(one))} == expected
    for one in made:
        assert all(option(one, name) for name, kind in treatments(type(one)) if kind == "compared")
    for key in available_losses():
        assert {kind for _, kind in treatments(loss_class(key))} <= {"compared"}
    assert set(TRAINER) <= set(signature(Trainer).parameters)
