"""Packed and padded forward against transformers' plain one, for every architecture that is served."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from adadpo_lightning.data.collate import collate
from adadpo_lightning.errors import UserError
from adadpo_lightning.models.attention import cpu as attention_cpu
from adadpo_lightning.models.attention.registry import SERVED
from adadpo_lightning.models.loading import PolicyConfig, load_model
from adadpo_lightning.models.policy import PolicyModel
from adadpo_lightning.types import EncodedPair

VOCABULARY = 97
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
ONE_WINDOW = {**SMALL, "sliding_window": 7}
ALTERNATING = {**SMALL, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
CONFIGS = {
    "cohere": {**SMALL, "logit_scale": 0.3},
    "cohere2": {**ALTERNATING, "logit_scale": 0.3},
    "exaone4": ALTERNATING,
    "gemma": SMALL,
    "gemma2": {**SMALL, "sliding_window": 6, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 3.0},
    "gemma3_text": {**ALTERNATING, "query_pre_attn_scalar": 8},
    "glm4": SMALL,
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "initializer_range": 0.3,
    },
    "gpt_neox": SMALL,
    "granite": {**SMALL, "logits_scaling": 4.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5},
    "helium": SMALL,
    "llama": SMALL,
    "ministral": ALTERNATING,
    "mistral": ONE_WINDOW,
    "mixtral": {**ONE_WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo2": SMALL,
    "olmo3": ALTERNATING,
    "opt": {**SMALL, "ffn_dim": 32, "word_embed_proj_dim": 32},
    "phi": SMALL,
    "phi3": ONE_WINDOW,
    "qwen2": SMALL,
    "qwen3": {**SMALL, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen3_moe": {**SMALL, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "seed_oss": SMALL,
    "smollm3": SMALL,
    "starcoder2": ONE_WINDOW,
}
# Their rotary embeddings or routers round to float32 whatever the model's dtype.
ROUNDING = {"cohere", "cohere2", "mixtral", "qwen3_moe"}
BACKENDS = ("segments", "tree")
# The tree backend's kernel can't cap logits.
SERVING = [(kind, backend) for kind in sorted(CONFIGS) for backend in BACKENDS if (kind, backend) != ("gemma2", "tree")]


@pytest.fixture(autouse=True, scope="module")
def _small_blocks():
    """So that texts of a few tokens have several blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_cpu, "BLOCK", 5)
        yield


def policy(kind, layout, backend="auto", dtype="float64"):
    config = PolicyConfig(
        config={"model_type": kind, **CONFIGS[kind]},
        tokenizer="unused",
        dtype=dtype,
        layout=layout,
        packed_attention=backend,
        head_chunk_size=16,
    )
    return PolicyModel(with_exact_norms(load_model(config)), config)


def with_exact_norms(model):
    """Transformers' norms round to float32 whatever the model's dtype, which hides errors below 1e-6."""
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith(("RMSNorm", "CohereLayerNorm", "Cohere2LayerNorm")):
            shift = 1.0 if "Gemma" in kind else 0.0
            eps = getattr(module, "variance_epsilon", None) or module.eps

            def forward(x, module=module, shift=shift, eps=eps, centre="Cohere" in kind):
                x = x - x.mean(-1, keepdim=True) if centre else x
                return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (shift + module.weight)

            module.forward = forward
    if "moe" in model.config.model_type or model.config.model_type == "mixtral":
        model.set_experts_implementation("eager")  # the grouped product has no float64
    return model


def make_pairs(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def ids(n):
        return torch.randint(1, VOCABULARY, (n,), generator=generator).tolist()

    return [EncodedPair(ids(p), ids(c), ids(r), row) for row, (p, c, r) in enumerate(lengths)]


def batch_of(pairs, layout):
    tokens = sum(len(p.chosen_ids) for p in pairs)
    return collate(pairs, layout=layout, pad_id=0, step_pairs=len(pairs), step_chosen_tokens=tokens)


def logps_and_grads(model, batch, module=None):
    module = module or model
    module.zero_grad()
    logps = model(batch)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(len(logps), generator=generator, dtype=logps.dtype)
    (logps * weights).sum().backward()
    return logps.detach(), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def exact_attention(module, query, key, value, attention_mask, scaling, softcap=None, **kwargs):
    """Attention as in the books. Transformers' own eager one rounds its softmax to float32, which hides errors."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    logits = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    weights = (logits + attention_mask).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


ALL_ATTENTION_FUNCTIONS.register("test_exact", exact_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register("test_exact", eager_mask)


def plain_logps(model, pairs):
    """One unpadded row an answer, full logits, in the flat order of a batch."""
    results = []
    for side in ("chosen_ids", "rejected_ids"):
        for pair in pairs:
            answer = getattr(pair, side)
            ids = torch.tensor([pair.prompt_ids + answer])
            logits = model(input_ids=ids).logits[0, len(pair.prompt_ids) - 1 : -1]
            results.append(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).squeeze(1))
    return torch.cat(results)


def expected_from_plain(kind, pairs, dtype="float64"):
    """Transformers' own forward: log-probabilities and gradients."""
    model = policy(kind, "padded", dtype=dtype).model
    model.set_attn_implementation("test_exact")
    logps, grads = logps_and_grads(lambda _: plain_logps(model, pairs), None, module=model)
    return logps, {f"model.{name}": grad for name, grad in grads.items()}


def assert_same(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual[0], expected[0], rtol=tolerance, atol=tolerance)
    assert actual[1].keys() == expected[1].keys()
    for name, grad in actual[1].items():
        torch.testing.assert_close(
            grad, expected[1][name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


LENGTHS = [(9, 5, 11), (1, 12, 1), (14, 1, 3), (3, 8, 8)]


def test_every_served_architecture_is_tested():
    assert set(CONFIGS) == SERVED


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_padded_equals_plain_transformers(kind):
    """Gemma 2 caps its attention logits, which only transformers' eager attention does, and that in float32."""
    pairs = make_pairs(LENGTHS)
    dtype, tolerance = ("float32", 1e-4) if kind == "gemma2" else ("float64", 1e-5 if kind in ROUNDING else 1e-9)
    actual = logps_and_grads(policy(kind, "padded", dtype=dtype), batch_of(pairs, "padded"))
    assert_same(actual, expected_from_plain(kind, pairs, dtype), tolerance)


@pytest.mark.parametrize(("kind", "backend"), SERVING)
def test_packed_equals_plain_transformers(kind, backend):
    """Log-probabilities and the gradient of every parameter, float64."""
    pairs = make_pairs(LENGTHS)
    actual = logps_and_grads(policy(kind, "packed", backend), batch_of(pairs, "packed"))
    assert_same(actual, expected_from_plain(kind, pairs), 1e-5 if kind in ROUNDING else 1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_equals_padded_in_float32(backend):
    """float32: the sums run in another order; 2e-5 on log-probabilities of a few nats."""
    pairs = make_pairs(LENGTHS)
    expected, _ = logps_and_grads(policy("llama", "padded", dtype="float32"), batch_of(pairs, "padded"))
    logps, _ = logps_and_grads(policy("llama", "packed", backend, dtype="float32"), batch_of(pairs, "packed"))
    torch.testing.assert_close(logps, expected, rtol=2e-5, atol=2e-5)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=5),
    kind=st.sampled_from(["llama", "mistral"]),
    backend=st.sampled_from(BACKENDS),
)
def test_packed_equals_padded_for_any_lengths(lengths, kind, backend):
    pairs = make_pairs(lengths)
    expected = logps_and_grads(policy(kind, "padded"), batch_of(pairs, "padded"))
    assert_same(logps_and_grads(policy(kind, "packed", backend), batch_of(pairs, "packed")), expected)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_answers_alone_for_sft(layout):
    """Without rejected answers the chosen ones' log-probabilities stay what they were."""
    pairs = make_pairs(LENGTHS)
    single = [EncodedPair(p.prompt_ids, p.chosen_ids, [], p.row_id) for p in pairs]
    model = policy("llama", layout)
    both, alone = model(batch_of(pairs, layout)), model(batch_of(single, layout))
    torch.testing.assert_close(alone, both[: len(alone)], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "backend"), [("llama", "segments"), ("llama", "tree"), ("gemma2", "segments")])
def test_canary(kind, backend):
    """Other chosen tokens change no log-probability of the rejected answer, nor of another pair's answers."""
    lengths = [(5, 6, 7), (4, 8, 3)]
    pairs = make_pairs(lengths)
    other = make_pairs(lengths, seed=1)[0].chosen_ids
    changed = [EncodedPair(pairs[0].prompt_ids, other, pairs[0].rejected_ids, 0), pairs[1]]
    model = policy(kind, "packed", backend)
    before, after = model(batch_of(pairs, "packed")), model(batch_of(changed, "packed"))
    assert not torch.allclose(before[:6], after[:6])
    assert torch.equal(before[6:], after[6:])


def test_gradient_checkpointing_changes_nothing():
    pairs = make_pairs(LENGTHS)
    plain = policy("llama", "packed")
    saving = policy("llama", "packed")
    saving.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    expected = logps_and_grads(plain, batch_of(pairs, "packed"))
    assert_same(logps_and_grads(saving, batch_of(pairs, "packed")), expected, 1e-12)


BLOOM = {"model_type": "bloom", "vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 1, "n_head": 4}


def test_unserved_architecture_warns_or_refuses(capsys):
    config = PolicyConfig(config=BLOOM, tokenizer="unused")
    model = PolicyModel(load_model(config), config)
    assert re.search(r"warning: .*'bloom'.*padded layout", capsys.readouterr().err)
    assert model.layout == "padded"
    forced = PolicyConfig(config=BLOOM, tokenizer="unused", layout="packed")
    with pytest.raises(UserError, match=r"model\.policy\.layout.*'bloom'"):
        PolicyModel(load_model(forced), forced)
