"""The tokenizer as the package's own data path sees it."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from adadpo_lightning.data.options import TokenizeOptions
from adadpo_lightning.data.schema import PreferencePair
from adadpo_lightning.data.tokenize import PairTokenizer
from adadpo_lightning.embedded.grammar import draw_style, write_response
from adadpo_lightning.embedded.prompts import draw_prompt
from adadpo_lightning.embedded.sampling import encode_prompts
from adadpo_lightning.embedded.tokenizer import SPECIAL_TOKENS, build_model_config, build_tokenizer, vocabulary


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """After a round trip through the disk."""
    path = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(path)
    return AutoTokenizer.from_pretrained(path)


def test_about_150_words_each_once():
    words = vocabulary()
    assert len(words) == len(set(words))
    assert 140 <= len(words) <= 180


def test_every_sentence_of_the_world_is_known_and_comes_back(tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(2000):
        prompt = draw_prompt(rng, "train")
        text = f"{prompt} {write_response(rng, prompt, *draw_style(rng))}"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert len(ids) == len(text.split())
        assert tokenizer.decode(ids) == text


def test_the_data_path_gives_one_bos_one_separator_and_one_terminator(tokenizer):
    pair = PreferencePair(
        prompt="now what is 3 plus 4", chosen="3 plus 4 is 7 .", rejected="3 plus 4 is 8 . 8 is even ."
    )
    found = PairTokenizer(tokenizer, TokenizeOptions())(pair)
    assert tokenizer.convert_ids_to_tokens(found.prompt_ids) == "<bos> now what is 3 plus 4 <sep>".split()
    # The answers share their first four words; these stay answer and do not move into the prompt.
    assert tokenizer.convert_ids_to_tokens(found.chosen_ids) == "3 plus 4 is 7 . <eos>".split()
    assert tokenizer.convert_ids_to_tokens(found.rejected_ids) == "3 plus 4 is 8 . 8 is even . <eos>".split()
    assert not found.boundary_moved
    assert encode_prompts(tokenizer, ["now what is 3 plus 4"]) == [found.prompt_ids]


def test_the_model_fits_the_tokenizer(tokenizer):
    config = build_model_config(tokenizer)
    assert (config.hidden_size, config.num_hidden_layers, config.tie_word_embeddings) == (64, 2, True)
    assert config.vocab_size == len(tokenizer) == len(vocabulary()) + 5
    assert [getattr(tokenizer, name) for name in SPECIAL_TOKENS] == list(SPECIAL_TOKENS.values())
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 3)
