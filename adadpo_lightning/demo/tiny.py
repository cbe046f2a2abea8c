"""A model with random weights for a rehearsal of the demo: it says words at random, in a second."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>")
UNKNOWN = "<|unknown|>"
SAID = "the film food is was a wonderful great lovely good dull awful bad terrible slow and very with . ,"
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def make_tiny_model(target: Path, prompts: list[str], seed: int = 0) -> None:
    """Write a Llama of two layers and a tokenizer of whole words.

    Args:
        target: Directory to write.
        prompts: Texts whose words it knows, beside the few that an answer can be made of.
        seed: Seed of the weights.
    """
    from adadpo_lightning.checkpoints.export import export_model
    from adadpo_lightning.models.loading import PolicyConfig, load_model

    if (target / "config.json").is_file():
        return
    tokenizer = _tokenizer(prompts)
    config = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    export_model(load_model(PolicyConfig(config=config, init_seed=seed)), tokenizer, target)


def _tokenizer(prompts: list[str]) -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for text in (SAID, *prompts) for word in text.split()})
    numbers = {word: number for number, word in enumerate((*SPECIAL, UNKNOWN, *words))}
    split = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    split.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=split,
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        unk_token=UNKNOWN,
        additional_special_tokens=list(SPECIAL[1:]),
        chat_template=TEMPLATE,
    )
