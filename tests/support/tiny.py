"""Small things that tests are made of: a tokenizer, a model directory, pairs."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = (
    "the a cat dog bird fish runs sits eats sleeps red blue small big on in under house tree why how what yes no"
).split()
SPECIAL = ["<pad>", "<bos>", "<eos>", "<user>", "<assistant>", "<system>", "<unk>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} <{{ m['role'] }}> {{ m['content'] }} {{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %} <assistant> {% endif %}"
)


def make_tokenizer():
    vocabulary = {token: i for i, token in enumerate(SPECIAL + WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>", "<system>"],
        chat_template=TEMPLATE,
    )


def make_model_dir(path: Path, *, hidden: int = 16, layers: int = 2, seed: int = 0) -> Path:
    """A random Llama with its tokenizer, as a Hugging Face directory."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def make_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(seed)

    def text(low, high):
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    return [
        {"prompt": text(1, 8), "chosen": text(1, 9) + " yes", "rejected": text(1, 12) + " no"} for _ in range(count)
    ]


def make_lists(count: int, scores=(4, 1, 3, 2), seed: int = 0) -> list[dict]:
    """Ranked lists, whose answers all differ."""
    rng = random.Random(seed)

    def text(low, high):
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    return [
        {"prompt": text(3, 8), "responses": [f"{text(2, 9)} {word}" for word in WORDS[: len(scores)]], "scores": scores}
        for _ in range(count)
    ]


def write_rows(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_adapter_dir(model_dir: Path, path: Path, **options) -> Path:
    """A LoRA adapter that changes what a model says, as a trained one does."""
    from adadpo_lightning.models.loading import LoraOptions, PolicyConfig, load_model

    model = load_model(PolicyConfig(path=str(model_dir), lora=LoraOptions(r=2, **options)))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    model.save_pretrained(path)
    return path
