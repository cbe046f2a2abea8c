"""Pairs tokenized in batches have the ids of pairs tokenized one text at a time."""

import pickle
import threading
from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from adadpo_lightning.data.options import TokenizeOptions
from adadpo_lightning.data.pipeline import encode
from adadpo_lightning.data.schema import BadRow, PreferencePair
from adadpo_lightning.data.special import BREAK, JOIN, Reading
from adadpo_lightning.data.tokenize import PairTokenizer
from tests.data.test_families import FAMILIES, TOOLS
from tests.support.tokenizers import CHATML, SENTENCES, STYLES, make


class OneTextAtATime(PairTokenizer):
    """Calls the tokenizer for each piece of text by itself, and knows nothing of equal ones."""

    def ids(self, texts):
        found = []
        for text in texts:
            pieces = [piece for piece in text.split(BREAK) if piece]
            encoded = [self.tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in pieces]
            found.append([token for part in encoded for token in part])
        return found


def attempt(encoder, pair):
    try:
        return pair, encoder(pair)
    except BadRow as error:
        return error.reason, str(error)


def outcomes(results):
    return [(item.reason, str(item)) if isinstance(item, BadRow) else item for item in results]


SPECIAL = sorted({token for _, tokens, *_ in STYLES.values() for token in tokens})
PIECES = st.sampled_from(
    [*SPECIAL, "<|im_", "end|>", "</s", ">", "[INST]", JOIN, " Paris", "\n\n", "日", "\u200b", "e\u0301"]
)
TEXTS = st.lists(st.one_of(st.text("ab .\n<|>s/é😀", max_size=6), PIECES), min_size=1, max_size=4).map("".join)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXTS}),
    min_size=1,
    max_size=3,
)
ANSWERS = st.one_of(TEXTS, TEXTS.map(lambda text: {"role": "assistant", "content": text}))
PAIRS = st.builds(
    PreferencePair,
    prompt=st.one_of(TEXTS, MESSAGES),
    chosen=ANSWERS,
    rejected=st.one_of(st.none(), ANSWERS),
    system=st.one_of(st.none(), TEXTS),
    tools=st.sampled_from([None, TOOLS]),
    chat_template_kwargs=st.sampled_from([None, {"enable_thinking": False}]),
)
READINGS = st.builds(Reading, st.booleans(), st.booleans(), st.booleans(), st.booleans())


def other(kind):
    """Tokenizers whose rules depend on what stands before or after a text."""
    special = [
        AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
    ]
    special.append(AddedToken("<mask>", special=True, normalized=False, lstrip=True, rstrip=kind == "word pieces"))
    special.append(AddedToken("<|im_start|>a", special=False, normalized=False, single_word=kind == "single words"))
    special.append(AddedToken("ab.", special=False, normalized=True))
    made = Tokenizer(models.WordPiece(unk_token="<unk>") if kind == "word pieces" else models.BPE(unk_token="<unk>"))
    if kind == "word pieces":
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer
    elif kind == "prepend":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if kind == "always" else "first")
        trainer = trainers.BpeTrainer
    alphabet = list("ab .\n<|>s/é▁_imendtrPu:")
    options = {"vocab_size": 200, "initial_alphabet": alphabet, "show_progress": False}
    made.train_from_iterator(SENTENCES * 3, trainer(special_tokens=["<unk>", "<s>", "</s>"], **options))
    made.add_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=CHATML
    )


OTHERS = ("first", "always", "prepend", "word pieces", "single words")
make_other = cache(other)


@example(texts=["a <mask> b", "Paris  <mask>"], kind="first")
@example(texts=["a <mask> b", "Paris  <mask>"], kind="word pieces")
@example(texts=["a<|im_start|>ab", "<|im_start|>a b"], kind="single words")
@given(texts=st.lists(TEXTS, min_size=1, max_size=4), kind=st.sampled_from(OTHERS))
def test_ids_of_the_units_of_a_text_are_those_of_the_text(texts, kind):
    tokenizer = make_other(kind)
    texts = [text.replace(BREAK, "") for text in [*texts, texts[0] + "<|im_end|>" + texts[-1], "<mask> " + texts[0]]]
    options = TokenizeOptions(chat="never")
    assert PairTokenizer(tokenizer, options).ids(texts) == OneTextAtATime(tokenizer, options).ids(texts)


def test_a_text_is_split_before_its_special_tokens():
    units = PairTokenizer(make_other("first"), TokenizeOptions()).special.units
    assert units("<s>user a<|im_end|>\n<|im_start|>b <mask>c") == ["<s>user a", "<|im_end|>\n", "<|im_start|>b <mask>c"]
    # The longest added token is the one that is found.
    assert units("x<|im_start|>a") == ["x", "<|im_start|>a"]
    assert units(f"a{BREAK}b") == ["a", "b"]
    assert PairTokenizer(make_other("single words"), TokenizeOptions()).special.units("a</s>b") == ["a</s>b"]


@given(
    pairs=st.lists(PAIRS, max_size=7),
    family=st.sampled_from([*FAMILIES, "plain"]),
    reading=READINGS,
    chunk=st.integers(1, 4),
    options=st.sampled_from([{}, {"chat": "never"}, {"with_rejected": False}, {"max_length": 30}]),
)
def test_ids_do_not_depend_on_the_batch(pairs, family, reading, chunk, options):
    pairs = [*pairs, *pairs[:2]]
    tokenizer, options = make(family), TokenizeOptions(**options)
    expected = [attempt(OneTextAtATime(tokenizer, options, reading), pair) for pair in pairs]
    assert outcomes(encode(PairTokenizer(tokenizer, options, reading), iter(pairs), chunk)) == expected


class PublicOnly(PairTokenizer):
    """Renders by the tokenizer's public method alone."""

    _quick = None


def rendered(encoder, pair):
    try:
        return encoder.render(pair)
    except BadRow as error:
        return error.reason, str(error)


@given(
    pair=PAIRS,
    family=st.sampled_from(FAMILIES),
    reading=READINGS,
    kwargs=st.sampled_from([None, {"enable_thinking": False}, {"enable_thinking": True, "x": "why"}]),
)
def test_rendered_texts_are_those_of_the_public_method(pair, family, reading, kwargs):
    tokenizer, options = make(family), TokenizeOptions(chat_template_kwargs=kwargs)
    quick, public = (kind(tokenizer, options, reading) for kind in (PairTokenizer, PublicOnly))
    assert rendered(quick, pair) == rendered(public, pair)


def test_text_is_rendered_without_the_public_method_and_the_encoder_can_be_sent(monkeypatch):
    encoder = PairTokenizer(make("qwen3"), TokenizeOptions())
    monkeypatch.setattr("adadpo_lightning.data.template.render", lambda *args, **kwargs: pytest.fail("public"))
    encoder(PreferencePair("Hi", "a", "b"))
    assert pickle.dumps(encoder)  # a compiled template cannot be


def test_bad_rows_keep_their_place():
    good, bad = PreferencePair("Hi", "a", "b"), BadRow("no pair")
    found = list(encode(PairTokenizer(make("chatml"), TokenizeOptions()), [bad, good, bad, good, good], chunk=2))
    assert [isinstance(item, BadRow) for item in found] == [True, False, True, False, False]


def test_rows_are_read_while_the_tokenizer_works():
    """The rows of the second chunk are read before the first chunk's ids are there: the tokenizer waits for them."""
    second = threading.Event()

    class Waits(PairTokenizer):
        def ids(self, texts):
            assert second.wait(10)
            return super().ids(texts)

    def pairs():
        yield PreferencePair("Hi", "a", "b")
        second.set()
        yield PreferencePair("Hi", "a", "c")

    assert len(list(encode(Waits(make("chatml"), TokenizeOptions()), pairs(), chunk=1))) == 2


def test_an_error_of_the_tokenizer_is_not_lost():
    class Broken(PairTokenizer):
        def ids(self, texts):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        list(encode(Broken(make("chatml"), TokenizeOptions()), [PreferencePair("Hi", "a", "b")]))
