"""Pairs tokenized in batches have the ids of pairs tokenized one text at a time."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adadpo_lightning.data.pipeline import encode
from adadpo_lightning.data.schema import BadRow, PreferencePair
from adadpo_lightning.data.special import BREAK, JOIN, Reading
from adadpo_lightning.data.tokenize import PairTokenizer, TokenizeOptions
from tests.data.test_families import FAMILIES, TOOLS
from tests.support.tokenizers import STYLES, make


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
