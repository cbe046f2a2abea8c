"""Options that are passed on to peft: training equals a loop in plain torch over a model that peft alone adapted."""

import shutil
from dataclasses import fields, replace

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import logsigmoid
from transformers import AutoConfig, AutoModelForCausalLM

from adadpo_lightning.checkpoints.export import export_checkpoint, export_model
from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.errors import UserError
from adadpo_lightning.estimate.memory import RunShape, measured
from adadpo_lightning.losses import build_loss
from adadpo_lightning.models import peft_options
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig, load_model
from adadpo_lightning.training.module import PreferenceLitModule
from adadpo_lightning.training.optim import OptimizerConfig, SchedulerConfig
from tests.support.tiny import make_model_dir, make_rows, write_rows
from tests.training.test_module import QUIET

BETA, LR, EPS, STEPS, R, ALPHA = 0.3, 1e-2, 1e-5, 4, 2, 8
IDS = torch.tensor([[1, 3, 8, 9, 12, 20, 4, 11]])
# Options of peft's LoraConfig, and the model that they are for.
CASES = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "head": {"modules_to_save": ["lm_head"]},
    "patterns": {"rank_pattern": {"q_proj": 4, "layers.0.mlp.up_proj": 1}, "alpha_pattern": {r".*\.v_proj": 3}},
    "all": {"use_rslora": True, "use_dora": True, "modules_to_save": ["lm_head"], "rank_pattern": {"q_proj": 4}},
    "copies": {"modules_to_save": ["embed_tokens", "norm"]},
    "bias": {"lora_bias": True},
    "tokens": {"trainable_token_indices": [3, 5]},
    "gaussian": {"init_lora_weights": "gaussian", "exclude_modules": ["k_proj"]},
    "tied head": {"modules_to_save": ["lm_head"]},
    "tied embedding": {"modules_to_save": ["embed_tokens"]},
    "tied both": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tied tokens": {"trainable_token_indices": [3, 5]},
}
FAST = ("all",)
EACH = pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in FAST else pytest.mark.slow) for c in CASES])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose embedding is its head, one that has a head of its own, and a few pairs."""
    folder = tmp_path_factory.mktemp("peft")
    make_model_dir(folder / "plain")
    shutil.copytree(folder / "plain", folder / "tied")
    config = AutoConfig.from_pretrained(folder / "plain")
    config.tie_word_embeddings = True
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "tied")
    write_rows(folder / "pairs.jsonl", make_rows(6))
    return folder


def model_of(folder, case):
    return str(folder / ("tied" if case.startswith("tied") else "plain"))


def lora(case):
    return LoraOptions(r=R, alpha=ALPHA, peft=CASES[case])


def module_of(folder, case, dtype="float64", **options):
    return PreferenceLitModule(
        PolicyConfig(path=model_of(folder, case), dtype=dtype, lora=lora(case)),
        build_loss("dpo", beta=BETA),
        OptimizerConfig(lr=LR, eps=EPS),
        SchedulerConfig(name="constant", warmup_ratio=0.0),
        reference_cache=str(folder / "cache"),
        **options,
    )


class Rewards(Callback):
    """Rewards of each micro-batch."""

    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        loss = outputs["step"].loss
        self.found.append(torch.cat([loss.chosen_rewards, loss.rejected_rewards]))


def fit(folder, module, steps=STEPS, callbacks=(), checkpoint=None, **options):
    """All pairs in each step, in three micro-batches."""
    data = PreferenceDataModule(
        train=str(folder / "pairs.jsonl"), global_batch_size=6, micro_batch_size=2, max_length=40
    )
    rewards = Rewards()
    quiet = {**QUIET, **options, "enable_checkpointing": bool(callbacks)}
    seed_everything(0)
    Trainer(**quiet, max_epochs=steps, callbacks=[rewards, *callbacks]).fit(module, data, ckpt_path=checkpoint)
    return data, rewards.found


def trained(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def adapted(folder, case, dtype=torch.float64):
    """What peft makes of the base model; nothing of this package is involved."""
    base = AutoModelForCausalLM.from_pretrained(model_of(folder, case), dtype=dtype)
    config = LoraConfig(r=R, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM", **CASES[case])
    return get_peft_model(base, config)


def logp(model, prompt, answer):
    ids = torch.tensor([prompt + answer])
    logits = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logits.gather(1, torch.tensor(answer)[:, None]).sum()


@EACH
def test_training_equals_peft_in_plain_torch(folder, case):
    module = module_of(folder, case)
    module.configure_model()
    start = trained(module.policy.model)
    data, rewards = fit(folder, module)
    assert all(torch.equal(r, torch.zeros_like(r)) for r in rewards[:3])  # of the first step: exactly 0
    assert any(r.abs().max() > 1e-2 for r in rewards[3:])

    model, reference = adapted(folder, case), AutoModelForCausalLM.from_pretrained(model_of(folder, case)).double()
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert own.keys() == start.keys()
    with torch.no_grad():
        for name, p in own.items():
            if "lora_A" not in name:  # all others do not depend on chance
                torch.testing.assert_close(p, start[name].to(p.dtype), msg=name)
            p.copy_(start[name])
    optimizer = torch.optim.AdamW(own.values(), lr=LR, betas=(0.9, 0.999), eps=EPS, weight_decay=0.0)
    pairs = [(r["prompt_ids"], r["chosen_ids"], r["rejected_ids"]) for r in data.prepared["train"].pairs.to_list()]
    with torch.no_grad():
        bases = [logp(reference, p, c) - logp(reference, p, r) for p, c, r in pairs]
    for _ in range(STEPS):
        optimizer.zero_grad()
        for (p, c, r), base in zip(pairs, bases, strict=True):
            (-logsigmoid(BETA * (logp(model, p, c) - logp(model, p, r) - base)) / len(pairs)).backward()
        optimizer.step()
    for name, value in trained(module.policy.model).items():
        torch.testing.assert_close(value, own[name].detach(), rtol=0, atol=1e-6, msg=name)
    moved = {name.split(".default")[0].rpartition(".")[2] for name, p in own.items() if not torch.equal(p, start[name])}
    assert moved >= {"lora_A", "lora_B"}


@EACH
def test_adapter_off_is_the_base_model_after_training(folder, case):
    module = module_of(folder, case, dtype="float32")
    module.configure_model()
    base = AutoModelForCausalLM.from_pretrained(model_of(folder, case))
    shake(module.policy.model)
    with torch.no_grad(), module.policy.plain_attention() as model:
        assert not torch.allclose(model(IDS).logits, base(IDS).logits, atol=0.1)
        with module.policy.adapter_off():
            assert torch.equal(model(IDS).logits, base(IDS).logits)


def shake(model):
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))


@pytest.mark.parametrize("case", ["all", pytest.param("tied both", marks=pytest.mark.slow)])
@pytest.mark.parametrize("reference", ["cached", pytest.param("synced", marks=pytest.mark.slow)])
def test_other_references(folder, case, reference):
    from adadpo_lightning.reference.sync import SyncOptions

    live, other = (
        module_of(folder, case, reference=mode, sync=SyncOptions(alpha=1, every_n_steps=100))
        for mode in ("adapter_off", reference)
    )
    (_, expected), (_, found) = fit(folder, live), fit(folder, other)
    assert torch.equal(found[0], torch.zeros_like(found[0]))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_synced_reference_copies_magnitudes_and_modules(folder):
    from adadpo_lightning.reference.sync import SyncOptions

    module = module_of(folder, "all", reference="synced", sync=SyncOptions(alpha=1, every_n_steps=2))
    _, rewards = fit(folder, module)
    assert rewards[3].abs().max() > 0
    for at in (0, 6):  # a step's first micro-batch: that of steps 0 and 2, where the reference is the policy
        assert torch.equal(rewards[at], torch.zeros_like(rewards[at]))


@EACH
def test_exports_have_the_logits(folder, tmp_path, case):
    """Merged and unmerged, read by peft and by transformers, with those options in place as peft alone has them."""
    config = PolicyConfig(path=model_of(folder, case), lora=lora(case))
    model = load_model(config).eval()
    shake(model)
    with torch.no_grad():
        expected = model(IDS).logits
        export_model(model, Tokenizer(), tmp_path / "adapter")
        base = AutoModelForCausalLM.from_pretrained(config.path)
        assert torch.equal(PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(IDS).logits, expected)
        again = load_model(replace(config, lora=LoraOptions(adapter=str(tmp_path / "adapter")))).eval()
        assert torch.equal(again(IDS).logits, expected)
        if not CASES[case].get("use_dora"):
            assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")(IDS).logits, expected)
            base = AutoModelForCausalLM.from_pretrained(config.path)
            base.load_adapter(str(tmp_path / "adapter"))
            assert torch.equal(base(IDS).logits, expected)
        if case == "bias":
            with pytest.raises(UserError, match=r"lora_bias.*without --merge"):
                export_model(model, Tokenizer(), tmp_path / "merged", merge=True)
            return
        export_model(model, Tokenizer(), tmp_path / "merged", merge=True)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(merged(IDS).logits, expected, rtol=0, atol=2e-5)


class Tokenizer:
    def save_pretrained(self, path):
        pass


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_of_a_tied_matrix_is_merged_into_one_side(folder, tmp_path, target):
    model = load_model(PolicyConfig(path=str(folder / "tied"), lora=LoraOptions(r=2, target_modules=[target]))).eval()
    shake(model)
    with torch.no_grad():
        expected = model(IDS).logits
        export_model(model, Tokenizer(), tmp_path / "merged", merge=True)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(merged(IDS).logits, expected, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_transformers_itself_reads_dora_wrongly(folder, tmp_path, capfd):
    """If this fails, peft's `build_peft_weight_mapping` has been fixed: drop the warning of `export_model`."""
    model = adapted(folder, "dora", torch.float32).eval()
    shake(model)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(IDS).logits
        assert not torch.allclose(AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits, expected, atol=0.1)


@pytest.mark.parametrize("case", ["all", *(pytest.param(c, marks=pytest.mark.slow) for c in ("tied both", "tokens"))])
def test_resumed_run_equals_an_uninterrupted_one(folder, tmp_path, case):
    whole = module_of(folder, case, dtype="float32")
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    fit(folder, whole, callbacks=[keep])
    again = module_of(folder, case, dtype="float32")
    fit(folder, again, callbacks=[ModelCheckpoint(tmp_path / "again")], checkpoint=tmp_path / "step=2.ckpt")
    expected, found = trained(whole.policy.model), trained(again.policy.model)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    stored = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["state_dict"]
    assert {name.removeprefix("policy.model.") for name in stored} == expected.keys()
    export_checkpoint(str(tmp_path / "step=4.ckpt"), str(tmp_path / "out"), merge=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad(), whole.policy.plain_attention() as model:
        torch.testing.assert_close(merged(IDS).logits, model(IDS).logits, rtol=0, atol=2e-5)
    loaded = PreferenceLitModule.load_from_checkpoint(tmp_path / "step=4.ckpt")
    assert all(torch.equal(loaded.get_parameter(f"policy.model.{name}"), value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        ("bfloat16", "32-true"),
        *(pytest.param(d, "bf16-mixed", marks=pytest.mark.slow) for d in ("float32", "bfloat16")),
    ],
)
def test_first_rewards_are_0_in_bfloat16(folder, dtype, precision):
    """Peft rounds DoRA's magnitudes to the base model's bfloat16, and computes their norms in float32."""
    _, rewards = fit(folder, module_of(folder, "all", dtype=dtype), steps=1, precision=precision)
    assert all(torch.equal(r, torch.zeros_like(r)) for r in rewards)


@pytest.mark.slow
def test_orthogonal_matrices_are_0_up_to_rounding(folder, monkeypatch):
    monkeypatch.setitem(CASES, "orthogonal", {"init_lora_weights": "orthogonal"})
    _, rewards = fit(folder, module_of(folder, "orthogonal", dtype="float32"), steps=1)
    assert all(r.abs().max() < 1e-5 for r in rewards)


def test_dora_of_layers_that_are_stored_transposed():
    gpt2 = {"model_type": "gpt2", "vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    plain = PolicyConfig(config={**gpt2, "bos_token_id": 1, "eos_token_id": 2}, tokenizer="unused")
    options = LoraOptions(r=2, target_modules=["c_attn", "wte"], peft={"use_dora": True, "fan_in_fan_out": True})
    with torch.no_grad():
        model = load_model(replace(plain, lora=options)).eval()
        assert torch.equal(model(IDS).logits, load_model(plain).eval()(IDS).logits)


@pytest.mark.slow
def test_estimate_counts_what_is_added(folder):
    lengths = [(8, 8, 8)]
    for case in CASES:
        config = PolicyConfig(path=model_of(folder, case), lora=lora(case))
        sizes, model = measured(RunShape(config, lengths)), adapted(folder, case, torch.float32)
        assert sizes.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad), case
        assert sizes.parameters == sum(p.numel() for p in model.parameters()), case
    none, head, full = (
        measured(RunShape(PolicyConfig(path=str(folder / "plain"), lora=options), lengths)).head
        for options in (lora("dora"), lora("head"), None)
    )
    assert none < head == full  # the gradient of the head's matrix


def test_every_option_of_peft_is_classified():
    """A new option of LoraConfig has to be put into one of the tables, and tried if it is accepted."""
    parts = [set(peft_options.ACCEPTED), set(peft_options.OWN), set(peft_options.REFUSED)]
    assert set.union(*parts) == {field.name for field in fields(LoraConfig)}
    assert sum(map(len, parts)) == len(set.union(*parts))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"use_dorra": True},
            r"peft\.use_dorra: .*no such option; did you mean 'use_dora'\? available: .*use_rslora",
        ),
        ({"r": 4}, r"peft\.r: is not set here; set model\.policy\.lora\.r"),
        ({"task_type": "SEQ_CLS"}, r"always CAUSAL_LM"),
        ({"bias": "all"}, r"peft\.bias: 'all' trains biases of the base model"),
        ({"init_lora_weights": "pissa_niter_16"}, r"changes the base model's weights"),
        ({"init_lora_weights": False}, r"starts from a random update"),
        ({"init_lora_weights": "nonsense"}, r"expected true, gaussian or orthogonal, got 'nonsense'"),
        ({"layer_replication": [[0, 2]]}, r"makes another model"),
        ({"use_dora": "yes"}, r"use_dora: expected true or false, got 'yes'"),
        ({"modules_to_save": "lm_head"}, r"expected a list of module names, got 'lm_head'"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern: expected a mapping"),
    ],
)
def test_refused_before_anything_is_loaded(options, message):
    with pytest.raises(UserError, match=message):
        LoraOptions(peft=options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modules_to_save": ["nothing"]}, r"modules_to_save: 'nothing' is the name of no module"),
        ({"rank_pattern": {"q_proj": 2, "nothing": 3}}, r"rank_pattern: 'nothing'"),
        ({"alpha_pattern": {"layers.9.q_proj": 3}}, r"alpha_pattern: 'layers\.9\.q_proj'"),
        ({"exclude_modules": "noth.*"}, r"exclude_modules: 'noth\.\*'"),
        ({"layers_to_transform": [0]}, r"lora\.peft: .*layers_to_transform.*cannot be used"),
    ],
)
def test_refused_for_this_model(folder, options, message):
    with pytest.raises(UserError, match=message):
        load_model(PolicyConfig(path=str(folder / "plain"), lora=LoraOptions(r=2, peft=options)))


def test_refused_beside_a_trained_adapter():
    with pytest.raises(UserError, match=r"lora\.peft: is for a new adapter"):
        LoraOptions(adapter="somewhere", peft={"use_dora": True})


@pytest.mark.parametrize("options", [{"bias": "lora_only"}, {"init_lora_weights": "pissa"}])
def test_a_trained_adapter_that_changes_the_base_is_refused(folder, tmp_path, options):
    base = AutoModelForCausalLM.from_pretrained(folder / "plain")
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], **options)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"lora\.adapter: .* has {next(iter(options))} .*, which"):
        load_model(PolicyConfig(path=str(folder / "plain"), lora=LoraOptions(adapter=str(tmp_path))))
