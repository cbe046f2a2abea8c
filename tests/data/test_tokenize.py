import pytest
from hypothesis import given
from hypothesis import strategies as st

from adadpo_lightning.data.options import TokenizeOptions
from adadpo_lightning.data.schema import IDENTICAL, BadRow, PreferencePair
from adadpo_lightning.data.tokenize import PairTokenizer
from adadpo_lightning.data.truncate import PROMPT_TOO_LONG, TOO_LONG
from adadpo_lightning.errors import UserError
from tests.support.tokenizers import STYLES, make

PAIR = PreferencePair("What is the capital of France?", "Paris.", "I am sorry, I can not do that.")


def encode(style, pair=PAIR, *, adds_bos=True, **options):
    return PairTokenizer(make(style, adds_bos=adds_bos), TokenizeOptions(**options))(pair)


EXPECTED = {
    "llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat is the capital of France?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "Paris.<|eot_id|>",
    ),
    "chatml": (
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
        "Paris.<|im_end|>",
    ),
    "smollm2": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
        "Paris.<|im_end|>",
    ),
    "qwen3": (
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
        "<think>\n\n</think>\n\nParis.<|im_end|>",
    ),
    "gemma": (
        "<bos><start_of_turn>user\nWhat is the capital of France?<end_of_turn>\n<start_of_turn>model\n",
        "Paris.<end_of_turn>",
    ),
    "mistral": ("<s>[INST] What is the capital of France? [/INST]", " Paris.</s>"),
    "unended": ("user: What is the capital of France?\nassistant:", " Paris.\n</s>"),
    "plain": ("<s>What is the capital of France?", "Paris.</s>"),
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("adds_bos", [True, False])
def test_one_bos_one_terminator_and_the_boundary(style, adds_bos):
    if style == "plain" and not adds_bos:
        pytest.skip("no BOS is asked for there")
    tokenizer, (_, _, bos, _, end) = make(style, adds_bos=adds_bos), STYLES[style]
    pair = encode(style, adds_bos=adds_bos)
    decoded = [tokenizer.decode(ids) for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)]
    prompt, chosen = EXPECTED[style]
    assert decoded == [prompt, chosen, chosen.replace("Paris.", PAIR.rejected)]
    for ids in (pair.chosen_ids, pair.rejected_ids):
        whole = pair.prompt_ids + ids
        assert ids.count(tokenizer.convert_tokens_to_ids(end)) == 1
        assert ids[-1] == tokenizer.convert_tokens_to_ids(end)
        if bos is not None and style not in ("unended", "smollm2"):
            assert whole.count(tokenizer.convert_tokens_to_ids(bos)) == 1
            assert whole[0] == tokenizer.convert_tokens_to_ids(bos)


def test_template_with_generation_prompt_is_what_generation_will_see():
    for style in ("llama3", "chatml", "mistral"):
        tokenizer, pair = make(style), encode(style)
        messages = [{"role": "user", "content": PAIR.prompt}]
        seen = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert list(seen) == pair.prompt_ids
        assert not pair.boundary_moved


def test_a_token_merged_over_the_boundary_belongs_to_the_answers():
    """ "unended" ends the prompt with a space, which the tokenizer merges with the answer's first word."""
    tokenizer, pair = make("unended"), encode("unended")
    assert pair.boundary_moved
    assert tokenizer.decode(pair.prompt_ids + pair.chosen_ids).startswith(
        "user: What is the capital of France?\nassistant: Paris."
    )
    assert tokenizer.decode(pair.prompt_ids + pair.rejected_ids).endswith(
        "assistant: I am sorry, I can not do that.\n</s>"
    )


def test_the_terminator_is_not_doubled_where_the_data_bring_one():
    """An answer that ends with the text of the terminator: the text stays text, the terminator comes once."""
    tokenizer = make("chatml")
    pair = encode("chatml", PreferencePair("Hi", "Paris.<|im_end|>", "no <|im_start|> at all"))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert pair.chosen_ids.count(end) == 1
    assert tokenizer.decode(pair.chosen_ids[:-1]) == "Paris.<|im_end|>"
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") not in pair.rejected_ids


@pytest.mark.parametrize("style", STYLES)
def test_special_tokens_in_the_data_are_text(style):
    tokenizer, special = make(style), STYLES[style][1]
    text = "a " + " ".join(special) + " b"
    plain = encode(style, PreferencePair("Hi", "yes", "no"))
    pair = encode(style, PreferencePair("Hi" + text, "yes" + text, "no" + text))
    ids = set(tokenizer.convert_tokens_to_ids(special))

    def count(pair):
        return [sum(i in ids for i in part) for part in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)]

    assert count(pair) == count(plain)
    assert text in tokenizer.decode(pair.prompt_ids)
    assert text in tokenizer.decode(pair.chosen_ids)


def test_system_and_tools_reach_the_template():
    tokenizer = make("chatml")
    pair = encode("chatml", PreferencePair("Hi", "a", "b", system="Be kind", tools=[{"name": "add<|im_end|>"}]))
    text = tokenizer.decode(pair.prompt_ids)
    assert text.startswith('<|im_start|>system\nTools: [{"name": "add<|im_end|>"}]<|im_end|>\n')
    assert "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHi<|im_end|>" in text
    assert pair.prompt_ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 3


def test_chat_modes():
    tokenizer = make("mistral")
    joined = encode("mistral", chat="never")
    assert tokenizer.decode(joined.prompt_ids + joined.chosen_ids) == f"<s>{PAIR.prompt}{PAIR.chosen}</s>"
    assert encode("mistral", chat="always") == encode("mistral")
    with pytest.raises(UserError, match=r"data\.chat: 'always' needs a chat template"):
        encode("plain", chat="always")
    messages = PreferencePair([{"role": "user", "content": "Hi"}], {"role": "assistant", "content": "a"})
    for style, chat in (("plain", "auto"), ("mistral", "never")):
        with pytest.raises(BadRow, match="needs a chat template"):
            encode(style, messages, chat=chat)
    with pytest.raises(BadRow, match=r"chat template refused: Only user and assistant"):
        encode("mistral", PreferencePair("Hi", "a", "b", system="Be kind"))


def test_one_answer():
    alone, both = encode("llama3", PreferencePair(PAIR.prompt, PAIR.chosen)), encode("llama3")
    assert (alone.prompt_ids, alone.chosen_ids, alone.rejected_ids) == (both.prompt_ids, both.chosen_ids, [])
    assert encode("llama3", with_rejected=False) == alone


def test_tokenizer_without_eos():
    tokenizer = make("plain")
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(UserError, match="tokenizer: has no EOS token"):
        PairTokenizer(bare, TokenizeOptions())


# The plain pair has 8 prompt tokens (BOS included), 5 chosen and 23 rejected ones in the tokenizer's own words below.
def sizes(**options):
    pair = encode("plain", **options)
    return len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids), pair.cut


@pytest.fixture(scope="module")
def whole():
    return encode("plain")


@pytest.fixture(scope="module")
def lengths(whole):
    return len(whole.prompt_ids), len(whole.chosen_ids), len(whole.rejected_ids)


def test_truncation_leaves_alone_what_fits(lengths):
    prompt, chosen, rejected = lengths
    for truncation in ("drop", "keep_start", "keep_end"):
        assert sizes(max_length=prompt + rejected, truncation=truncation) == (prompt, chosen, rejected, "")


def test_truncation_drop(lengths):
    prompt, _, rejected = lengths
    for options in ({"max_length": prompt + rejected - 1}, {"max_prompt_length": prompt - 1}):
        with pytest.raises(BadRow) as caught:
            encode("plain", truncation="drop", **options)
        assert caught.value.reason == TOO_LONG


def test_truncation_keep_start(whole, lengths):
    prompt, chosen, _ = lengths
    cut = encode("plain", max_length=prompt + chosen, truncation="keep_start")
    assert (cut.prompt_ids, cut.chosen_ids) == (whole.prompt_ids, whole.chosen_ids)
    assert cut.rejected_ids == whole.rejected_ids[:chosen]
    assert cut.cut == "answer cut"
    # One token of the answers is always left; below that the row is a bad one.
    assert sizes(max_length=prompt + 1, truncation="keep_start") == (prompt, 1, 1, "answer cut")
    for options in ({"max_length": prompt}, {"max_prompt_length": prompt - 1}):
        with pytest.raises(BadRow) as caught:
            encode("plain", truncation="keep_start", **options)
        assert caught.value.reason == PROMPT_TOO_LONG


def test_truncation_keep_end(whole, lengths):
    prompt, _, rejected = lengths
    cut = encode("plain", max_length=rejected + 3, truncation="keep_end")
    assert cut.prompt_ids == [whole.prompt_ids[0], *whole.prompt_ids[-2:]]
    assert (cut.chosen_ids, cut.rejected_ids, cut.cut) == (whole.chosen_ids, whole.rejected_ids, "prompt cut")
    assert sizes(max_prompt_length=prompt - 2, truncation="keep_end")[0] == prompt - 2
    # A BOS alone is no prompt.
    with pytest.raises(BadRow) as caught:
        encode("plain", max_length=rejected + 1, truncation="keep_end")
    assert caught.value.reason == TOO_LONG


def test_answers_that_differ_only_where_they_are_cut_off():
    pair = PreferencePair("Hi", "the same beginning, then this", "the same beginning, then that")
    with pytest.raises(BadRow) as caught:
        encode("plain", pair, max_length=8)
    assert caught.value.reason == IDENTICAL
    # And those that the template makes the same.
    with pytest.raises(BadRow) as caught:
        encode("llama3", PreferencePair("Hi", "yes", "yes "))
    assert caught.value.reason == IDENTICAL


def test_options_are_checked():
    for options, message in (
        ({"max_length": 1}, "max_length: expected at least 2, got 1"),
        ({"max_length": 8, "max_prompt_length": 8}, "max_prompt_length: expected 1 to max_length - 1 = 7, got 8"),
        ({"truncation": "keep"}, "truncation: expected one of drop, keep_start, keep_end, got 'keep'"),
        ({"chat": "yes"}, "chat: expected one of auto, always, never, got 'yes'"),
    ):
        with pytest.raises(UserError, match=message):
            TokenizeOptions(**options)


# Those that keep an answer's text as it is, or trim it.
PLAIN_STYLES = ("chatml", "llama3", "mistral", "plain", "unended")
text = st.text("ab .,\n<|>s/é日😀", min_size=1, max_size=20).filter(str.strip)


@given(prompt=text, chosen=text, rejected=text, style=st.sampled_from(PLAIN_STYLES), max_length=st.integers(4, 60))
def test_every_pair_keeps_its_promises(prompt, chosen, rejected, style, max_length):
    """Whole sequences are those of the text; nothing is scored twice, lost, empty, too long or without a terminator."""
    tokenizer, end = make(style), STYLES[style][4]
    if chosen == rejected or (style == "llama3" and chosen.strip() == rejected.strip()):
        with pytest.raises(BadRow, match=IDENTICAL):
            encode(style, PreferencePair(prompt, chosen, rejected))
        return
    pair = encode(style, PreferencePair(prompt, chosen, rejected))
    assert pair.prompt_ids
    assert pair.chosen_ids != pair.rejected_ids
    for ids in (pair.chosen_ids, pair.rejected_ids):
        assert ids[-1] == tokenizer.convert_tokens_to_ids(end)
        assert ids.count(ids[-1]) == 1
    strip = str.strip if style == "llama3" else str
    whole = tokenizer.decode(pair.prompt_ids + pair.chosen_ids, clean_up_tokenization_spaces=False)
    start = EXPECTED[style][0].replace("What is the capital of France?", strip(prompt))
    assert whole == start + EXPECTED[style][1].replace("Paris.", strip(chosen))
    for truncation in ("keep_start", "keep_end", "drop"):
        try:
            cut = encode(style, PreferencePair(prompt, chosen, rejected), max_length=max_length, truncation=truncation)
        except BadRow:
            assert len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)) > max_length
            continue
        assert len(cut.prompt_ids) + max(len(cut.chosen_ids), len(cut.rejected_ids)) <= max_length
        assert cut.prompt_ids
        assert cut.chosen_ids == pair.chosen_ids[: len(cut.chosen_ids)]
        assert cut.rejected_ids == pair.rejected_ids[: len(cut.rejected_ids)]
        assert cut.chosen_ids
        assert cut.rejected_ids
