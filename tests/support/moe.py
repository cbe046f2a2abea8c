"""Tiny mixtures of experts."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from adadpo_lightning.data.collate import collate
from adadpo_lightning.models.build import build_policy
from adadpo_lightning.models.loading import PolicyConfig
from adadpo_lightning.types import EncodedPair
from tests.support.tiny import make_tokenizer

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # so that routers differ between tokens
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MIXTRAL = {"model_type": "mixtral", **SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}
QWEN3_MOE = {
    **{"model_type": "qwen3_moe", **SIZES, "head_dim": 4, "moe_intermediate_size": 12},
    # The middle block is dense.
    **{"num_experts": 6, "num_experts_per_tok": 2, "mlp_only_layers": [1], "norm_topk_prob": True},
}
GPT_OSS = {
    **{"model_type": "gpt_oss", **SIZES, "head_dim": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
}
CONFIGS = {
    "mixtral": MIXTRAL,
    "qwen3_moe": QWEN3_MOE,
    "qwen2_moe": {**QWEN3_MOE, "model_type": "qwen2_moe", "shared_expert_intermediate_size": 12},
    "olmoe": {"model_type": "olmoe", **SIZES, "num_experts": 4, "num_experts_per_tok": 2},
    "flex_olmo": {"model_type": "flex_olmo", **SIZES, "num_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {"model_type": "granitemoe", **SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": GPT_OSS,
}
# Two pairs with a prompt each of their own, of uneven lengths.
PAIRS = (
    EncodedPair([1, 7, 3, 9], [4, 5, 2], [6, 11, 12, 2], 0),
    EncodedPair([1, 8], [22, 2], [3, 1, 8, 14, 5, 2], 1),
)


def moe_policy(name, **options):
    """A random policy of an architecture in `CONFIGS`."""
    return build_policy(PolicyConfig(config=dict(CONFIGS[name]), **options))


def moe_batch(layout="packed", pairs=PAIRS):
    """The pairs in one micro-batch, the whole of its step."""
    tokens = sum(len(pair.chosen_ids) for pair in pairs)
    return collate(pairs, layout=layout, pad_id=0, step_pairs=len(pairs), step_chosen_tokens=tokens)


def make_moe_dir(path, name="mixtral", seed=0):
    """A random mixture of experts with its tokenizer, as a Hugging Face directory."""
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIGS[name])).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path
