"""Make a small Llama from scratch for a file of preference pairs: a BPE tokenizer trained on its text, and a config.

    python scripts/make_small_model.py PAIRS.jsonl... --output runs/real/model

The directory then serves as ``model.policy.config`` and ``model.policy.tokenizer`` of a run (see
configs/experiment/real_pairs_*.yaml). Only text that is given is read; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

SPECIAL = ["<|pad|>", "<|bos|>", "<|user|>", "<|assistant|>", "<|system|>", "<|eot|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def texts(paths: list[Path]) -> Iterator[str]:
    """Every message of every chosen and rejected conversation."""
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                for side in ("chosen", "rejected"):
                    yield from (message["content"] for message in row[side])


def train_tokenizer(paths: list[Path], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template of one BOS and one end-of-turn token a message."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts(paths), trainer)
    named = {"bos_token": "<|bos|>", "eos_token": "<|eot|>", "pad_token": "<|pad|>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, chat_template=CHAT_TEMPLATE, **named)


def main() -> None:
    """Write the tokenizer and the config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    args = parser.parse_args()
    tokenizer = train_tokenizer(args.pairs, args.vocabulary)
    tokenizer.save_pretrained(args.output)
    LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 11 // 4,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 32,
        num_key_value_heads=args.hidden // 64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(args.output)
    print(f"{args.output}: {len(tokenizer)} tokens, {args.layers} layers of {args.hidden}")


if __name__ == "__main__":
    main()
