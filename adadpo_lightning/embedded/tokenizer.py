"""A word-level tokenizer and the config of a small Llama, as ordinary Hugging Face objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adadpo_lightning.embedded.grammar import FILLERS
from adadpo_lightning.embedded.kinds import KINDS
from adadpo_lightning.embedded.prompts import OPENINGS
from adadpo_lightning.embedded.world import ENTITIES, NUMBERS, PROPERTY_OF

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerFast

SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "sep_token": "<sep>", "eos_token": "<eos>"}
UNKNOWN = "<unk>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}<sep> {{ message['content'] }}"
    "{{ eos_token }}{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<sep>{% endif %}"
)


def vocabulary() -> list[str]:
    """All words of the task without duplicates, in a fixed order."""
    sentences = [*OPENINGS, *FILLERS, *(kind.words for kind in KINDS), "."]
    words = [word for sentence in sentences for word in sentence.split()]
    return list(dict.fromkeys([*words, *ENTITIES, *NUMBERS, *PROPERTY_OF]))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; the chat template gives ``<bos> prompt <sep> answer <eos>``."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [*SPECIAL_TOKENS.values(), UNKNOWN, *vocabulary()]
    words = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token=UNKNOWN,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        **SPECIAL_TOKENS,
    )


def build_model_config(tokenizer: PreTrainedTokenizerFast, hidden: int = 64, layers: int = 2) -> LlamaConfig:
    """Config of a Llama that one CPU core trains in a minute.

    Args:
        tokenizer: Source of vocabulary size and special tokens.
        hidden: Width, a multiple of 16.
        layers: Number of layers.
    """
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 16,
        num_key_value_heads=hidden // 16,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        # The usual 0.02 suits widths of thousands; with it, a model this narrow needs twice the steps.
        initializer_range=0.08,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
