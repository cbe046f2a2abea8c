"""PolicyModel and its references: adapters, precision, step 0, generation, and architectures that it refuses."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from adadpo_lightning.data.collate import collate
from adadpo_lightning.errors import UserError
from adadpo_lightning.models.attention.registry import IMPLEMENTATION
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig, load_model
from adadpo_lightning.models.logprobs import LogitTransform
from adadpo_lightning.models.policy import PolicyModel, logit_transform
from adadpo_lightning.reference.live import AdapterOffReference, FrozenReference, build_reference
from adadpo_lightning.types import EncodedPair

TINY = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
PAIRS = [
    EncodedPair([1, 2, 3], [4, 5, 6, 7], [8, 9], 0),
    EncodedPair([10, 11], [12], [13, 14, 15, 16, 17], 1),
]
LAYOUTS = ["packed", "padded"]


def build(layout="packed", config=TINY, **options):
    settings = PolicyConfig(config=config, tokenizer="unused", layout=layout, head_chunk_size=4, **options)
    return PolicyModel(load_model(settings), settings), settings


def batch(layout="packed"):
    return collate(PAIRS, layout=layout, pad_id=0, step_pairs=2, step_chosen_tokens=5)


def shake(model, pattern=""):
    """Move trained weights by something that is not small."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad and pattern in name:
                p += torch.randn(p.shape, generator=generator) * 0.3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"dtype": "bfloat16"}])
def test_frozen_reference_is_the_policy_until_it_moves(layout, options):
    """Bit for bit: rewards at step 0 are exactly 0."""
    policy, config = build(layout, **options)
    reference = build_reference("frozen", policy, config)
    assert isinstance(reference, FrozenReference)
    before = policy(batch(layout)).detach()
    assert torch.equal(before, reference(batch(layout)))
    shake(policy)
    assert not torch.allclose(policy(batch(layout)).detach(), before)
    after = reference(batch(layout))
    assert torch.equal(before, after)
    assert not after.requires_grad
    assert not any(p.requires_grad for p in reference.model.parameters())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision", ["float32", "autocast"])
def test_adapter_off_is_the_base_model(layout, precision):
    policy, config = build(layout, lora=LoraOptions(r=2, alpha=4))
    base, _ = build(layout)
    reference = build_reference("adapter_off", policy, config)
    assert isinstance(reference, AdapterOffReference)

    def run(*models):
        # A new context each time: autocast remembers its copies of weights as long as one lasts.
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast"):
            return [model(batch(layout)) for model in models]

    assert torch.equal(*run(policy, reference))
    shake(policy, "lora_")
    assert torch.equal(*run(reference, base))
    assert not torch.allclose(*run(policy, base), atol=1e-3)


def test_no_reference():
    policy, config = build()
    assert build_reference("none", policy, config) is None


def test_only_adapters_are_trained():
    policy, _ = build(lora=LoraOptions(r=2))
    assert {name.split(".")[-3] for name, p in policy.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    policy(batch()).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in policy.parameters())


@pytest.mark.parametrize("chunk", [3, 100])
def test_adapter_on_the_head(chunk):
    """The head is then no plain matrix; log-probabilities and gradients equal those of full logits."""
    policy, _ = build("padded", lora=LoraOptions(r=2, target_modules=["lm_head", "q_proj"]), dtype="float64")
    shake(policy, "lora_")
    policy.head_chunk_size = chunk
    b = batch("padded")
    trained = [p for p in policy.parameters() if p.requires_grad]
    logps = policy(b)
    grads = torch.autograd.grad(logps.square().sum(), trained)
    logits = policy.model(input_ids=b.input_ids, attention_mask=b.attention_mask).logits
    expected = logits.flatten(0, 1)[b.predict].log_softmax(-1).gather(1, b.targets[:, None]).squeeze(1)
    torch.testing.assert_close(logps, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grads, torch.autograd.grad(expected.square().sum(), trained), rtol=1e-9, atol=1e-9)


SAVING = [{"gradient_checkpointing": True}, {"gradient_checkpointing": "selective"}, {"offload_activations": True}]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("options", SAVING, ids=["full", "selective", "offload"])
def test_saving_memory_changes_no_gradient(tied, options):
    plain, _ = build(config={**TINY, "tie_word_embeddings": tied})
    saving, _ = build(config={**TINY, "tie_word_embeddings": tied}, **options)
    grads = []
    for model in (plain, saving):
        (model(batch()) ** 2).sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert ("model.lm_head.weight" in grads[0]) == (not tied)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-6, atol=1e-6)


def test_selective_checkpointing_recomputes_a_part():
    work = {}
    for mode in (False, "selective", True):
        policy, _ = build(gradient_checkpointing=mode)
        with FlopCounterMode(display=False) as counter:
            policy(batch()).sum().backward()
        work[mode] = counter.get_total_flops()
    assert work[False] < work["selective"] < work[True]


def test_offloaded_activations_are_copies(monkeypatch):
    packed = []
    plain = torch.autograd.graph.save_on_cpu.__init__

    def counted(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        own, self.pack_hook = self.pack_hook, lambda x: packed.append(x.shape) or own(x)

    monkeypatch.setattr(torch.autograd.graph.save_on_cpu, "__init__", counted)
    policy, _ = build(offload_activations=True)
    policy(batch()).sum().backward()
    assert len(packed) > 10


def test_checkpointing_does_recompute():
    policy, _ = build(gradient_checkpointing=True)
    calls = []
    policy.causal_lm.model.layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    policy(batch()).sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_autocast_is_near_and_wide(layout):
    policy, _ = build(layout)
    exact = policy(batch(layout))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps = policy(batch(layout))
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, exact, rtol=0.1, atol=0.1)
    logps.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in policy.parameters())


def test_generation_with_plain_attention():
    policy, _ = build("packed")
    plain, _ = build("padded")
    prompt = torch.tensor([[1, 2, 3, 4]])
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with policy.plain_attention() as model:
        text = model.eval().generate(prompt, **settings)
    assert torch.equal(text, plain.model.eval().generate(prompt, **settings))
    assert policy.causal_lm.config._attn_implementation == IMPLEMENTATION
    with pytest.raises(RuntimeError, match="PolicyModel"):
        policy.model(prompt)


def test_untested_architecture_in_the_padded_layout(caplog):
    """GPT-J: warned about, held against its own forward, then served padded."""
    config = {"model_type": "gptj", "vocab_size": 50, "n_embd": 16, "n_head": 4, "n_layer": 1, "rotary_dim": 4}
    policy, _ = build("auto", config=config)
    assert "padded layout, which is slower" in caplog.text
    assert policy.layout == "padded"
    assert policy(batch("padded")).shape == (12,)


@pytest.mark.parametrize(
    ("kind", "extra", "problem"),
    [
        ("roberta", {"is_decoder": True}, "'roberta' differ from those of its own forward"),
        ("electra", {"is_decoder": True}, "'electra' cannot be run"),
    ],
)
def test_a_head_that_is_more_than_a_matrix_is_refused(kind, extra, problem):
    with pytest.raises(UserError, match=problem):
        build("padded", config={**TINY, "model_type": kind, **extra})


@pytest.mark.parametrize(
    ("kind", "values", "transform"),
    [
        ("llama", {}, LogitTransform()),
        ("cohere", {"logit_scale": 0.25}, LogitTransform(0.25)),
        ("granite", {"logits_scaling": 8.0}, LogitTransform(0.125)),
        ("hyperclovax", {"logits_scaling": 8.0}, LogitTransform(8.0)),
        ("mpt", {"logit_scale": 3.0}, LogitTransform()),
        ("gemma2", {"final_logit_softcapping": 30.0}, LogitTransform(1.0, 30.0)),
        ("recurrent_gemma", {"logits_soft_cap": 20.0}, LogitTransform(1.0, 20.0)),
    ],
)
def test_logit_transform(kind, values, transform):
    from transformers import AutoConfig

    assert logit_transform(AutoConfig.for_model(kind, **values)) == transform


@pytest.mark.parametrize("layout", LAYOUTS)
def test_entropies_are_those_of_full_logits_and_change_no_gradient(layout):
    plain, _ = build(layout, dtype="float64")
    policy, _ = build(layout, dtype="float64", token_entropy=True)
    b = batch(layout)
    grads = [torch.autograd.grad(p(b).square().sum(), list(p.parameters())) for p in (plain, policy)]
    assert all(torch.equal(a, c) for a, c in zip(*grads, strict=True))
    entropies = policy.take_statistics().entropies
    hidden = policy.hidden_states(b).flatten(0, 1)[b.predict]
    logps = policy.causal_lm.get_output_embeddings()(hidden).log_softmax(-1)
    torch.testing.assert_close(entropies, -(logps.exp() * logps).sum(-1), rtol=1e-9, atol=1e-9)
    assert policy.take_statistics().entropies is None
    assert plain.take_statistics().entropies is None
