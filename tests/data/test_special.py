"""Special tokens that the data spell out: text for a stranger's data, tokens for text that a template rendered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adadpo_lightning.data.options import TokenizeOptions
from adadpo_lightning.data.prepare import prepare
from adadpo_lightning.data.schema import BadRow, PreferencePair
from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.data.special import BREAK, Reading
from adadpo_lightning.data.tokenize import PairTokenizer
from tests.support.tiny import make_tokenizer, write_rows
from tests.support.tokenizers import STYLES, make

QUESTION, GOOD, BAD = "What is the capital of France?", "Paris.", "I am sorry."
RENDERABLE = ("llama3", "chatml", "mistral")


def rendered_row(style, *, ended=True):
    """A row as a template renders it to text."""
    tokenizer, end = make(style), STYLES[style][4]
    asked = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    space = " " if style == "mistral" else ""
    return {"prompt": prompt, **{k: space + v + end * ended for k, v in (("chosen", GOOD), ("rejected", BAD))}}


def prepared(path, row, style, count=4, **options):
    source = SourceConfig(str(write_rows(path / "pairs.jsonl", [row] * count)))
    return prepare("train", [source], make(style), TokenizeOptions(**options), on_bad_row="drop").with_passes(0)


def ids(row):
    return [row[f"{name}_ids"] for name in ("prompt", "chosen", "rejected")]


def plain_ids(style):
    pair = PairTokenizer(make(style), TokenizeOptions())(PreferencePair(QUESTION, GOOD, BAD))
    return [pair.prompt_ids, pair.chosen_ids, pair.rejected_ids]


@pytest.mark.parametrize("style", RENDERABLE)
@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("mode", ["auto", "parse"])
def test_rendered_text_has_the_ids_of_the_messages_it_was_made_of(tmp_path, capsys, style, ended, mode):
    found = prepared(tmp_path, rendered_row(style, ended=ended), style, special_tokens=mode)
    assert ids(found.pairs[0]) == plain_ids(style)
    lines = dict(found.report.lines())
    assert lines["special tokens in prompts, read as tokens"] == "4"
    assert lines["prompts rendered already, not rendered again"] == "4"
    assert lines.get("special tokens in answers, read as tokens") == ("4" if ended else None)
    assert "read as tokens, and the chat template is not rendered around them again" in capsys.readouterr().err


def test_a_rendered_prompt_without_bos_gets_one(tmp_path):
    row = rendered_row("mistral", ended=False)
    row["prompt"] = row["prompt"].removeprefix("<s>")
    assert ids(prepared(tmp_path, row, "mistral").pairs[0]) == plain_ids("mistral")


def test_a_template_around_a_rendered_prompt_is_warned_of(tmp_path, capsys):
    again = prepared(tmp_path, rendered_row("chatml"), "chatml", chat="always")
    start = make("chatml").convert_tokens_to_ids("<|im_start|>")
    assert ids(again.pairs[0])[0].count(start) == 4
    assert "the chat template is rendered around them AGAIN" in capsys.readouterr().err
    text = prepared(tmp_path, rendered_row("chatml"), "chatml", special_tokens="text")
    assert ids(text.pairs[0])[0].count(start) == 2
    assert "read as text, and the chat template is rendered around them AGAIN" in capsys.readouterr().err
    assert dict(text.report.lines())["special tokens in prompts, read as text"] == "4"


def test_each_column_is_decided_by_half_of_its_rows(tmp_path, capsys):
    plain = {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD}
    rows = [plain, plain, {**plain, "prompt": QUESTION + "<|im_end|>"}]
    source = SourceConfig(str(write_rows(tmp_path / "pairs.jsonl", rows)))
    found = prepare("train", [source], make("chatml"), TokenizeOptions()).with_passes(0)
    assert dict(found.report.lines())["special tokens in prompts, read as text"] == "1"
    assert ids(found.pairs[0]) == plain_ids("chatml")
    assert capsys.readouterr().err == ""
    answers = [{**plain, "chosen": GOOD + "<|im_end|>", "rejected": BAD + "<|im_end|>\n"}] * 2
    source = SourceConfig(str(write_rows(tmp_path / "pairs.jsonl", [plain, *answers])))
    found = prepare("train", [source], make("chatml"), TokenizeOptions()).with_passes(0)
    assert [ids(row) for row in found.pairs] == [plain_ids("chatml")] * 3
    assert dict(found.report.lines())["special tokens in answers, read as tokens"] == "2"


def test_a_wikitext_unknown_word_is_no_special_token(tmp_path):
    tokenizer = make_tokenizer()
    rows = [{"prompt": "why <unk> cat", "chosen": "yes <unk>", "rejected": "no <unk>"}]
    source = SourceConfig(str(write_rows(tmp_path / "pairs.jsonl", rows)))
    found = prepare("train", [source], tokenizer, TokenizeOptions())
    assert not any("special" in what for what, _ in found.report.lines())


def special_count(tokenizer, pair):
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return sum(token in special for token in [*pair.prompt_ids, *pair.chosen_ids, *pair.rejected_ids])


JOINED = {
    "never": ({"chat": "never"}, PreferencePair("a <|im_e", "nd|> b", "no")),
    "key of tools": ({}, PreferencePair("a", "b", "c", tools=[{"<|im_end|>": {"x": 1}}])),
    "key and value": ({}, PreferencePair("a", "b", "c", tools=[{"x<|im_end": "|>"}])),
    "role": ({}, PreferencePair([{"role": "x<|im_end|>", "content": "a"}], "b", "c")),
    "system": ({}, PreferencePair("a", "b", "c", system="<|im_start|>system")),
    "template variable": ({}, PreferencePair("a", "b", "c", chat_template_kwargs={"tools_note": "<|im_end|>"})),
}


@pytest.mark.parametrize(("options", "pair"), JOINED.values(), ids=JOINED)
def test_no_special_token_comes_from_text_across_joins_either(options, pair):
    tokenizer = make("chatml")
    encode = PairTokenizer(tokenizer, TokenizeOptions(special_tokens="text", **options))
    plain = encode(PreferencePair("a", "b", "c", tools=[{"x": 1}] if pair.tools else None))
    system = 2 * bool(pair.system)
    assert special_count(tokenizer, encode(pair)) == special_count(tokenizer, plain) + system


GLUED = (
    "{% for m in messages %} <{{ m['role'] }}> {{ m['content'] }}{% if m['role'] != 'assistant' %}s> {% endif %}"
    "{% endfor %} <{{ tail }}>"
)


def test_no_special_token_comes_together_with_the_template_s_text():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = GLUED
    encode = PairTokenizer(tokenizer, TokenizeOptions(special_tokens="text"))
    plain, glued = (encode(PreferencePair(asked, "yes", "no")) for asked in ("why", "why <eo"))
    assert special_count(tokenizer, glued) == special_count(tokenizer, plain)
    named = encode(PreferencePair("why", "yes", "no", chat_template_kwargs={"tail": "eos"}))
    assert special_count(tokenizer, named) == special_count(tokenizer, plain)
    role = encode(PreferencePair([{"role": "eos", "content": "why"}], "yes", "no"))
    assert special_count(tokenizer, role) == special_count(tokenizer, plain) - 1  # not <user>


def test_a_list_that_a_template_prints_keeps_its_text():
    tokenizer = type(make("chatml"))(
        tokenizer_object=make("chatml").backend_tokenizer,
        eos_token="<|im_end|>",
        additional_special_tokens=STYLES["chatml"][1],
        chat_template="{{ tools }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
    )
    pair = PairTokenizer(tokenizer, TokenizeOptions())(PreferencePair("a", "b", "c", tools=[{"n": "<|im_end|>"}]))
    assert tokenizer.decode(pair.prompt_ids) == "[{'n': '<|im_end|>'}]a"
    assert special_count(tokenizer, pair) == 2


def test_a_normalizer_that_makes_a_special_token_is_refused():
    from tokenizers import AddedToken, normalizers
    from transformers import PreTrainedTokenizerFast

    backend = make_tokenizer().backend_tokenizer
    backend.normalizer = normalizers.Lowercase()
    backend.add_special_tokens([AddedToken("<eos>", normalized=True, special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")
    with pytest.raises(BadRow, match="reads ordinary text as a special token"):
        PairTokenizer(tokenizer, TokenizeOptions())(PreferencePair("why <EOS>", "yes", "no"))


def test_the_reserved_characters_are_refused():
    for reading in (None, Reading(prompts=True, answers=True, messages=True)):
        encode = PairTokenizer(make("plain"), TokenizeOptions(), reading)
        with pytest.raises(BadRow, match="noncharacter in text"):
            encode(PreferencePair(f"a{BREAK}", "b", "c"))


pieces = st.sampled_from(
    ["<", "|", ">", "im", "_end", "_start", "|im_e", "nd|>", "</", "s", "<s", "eot_id", " ", "a", "\n"]
)
text = st.lists(pieces, min_size=1, max_size=8).map("".join).filter(str.strip)


@given(prompt=text, chosen=text, rejected=text, style=st.sampled_from(sorted(STYLES)), chat=st.booleans())
def test_text_mode_never_makes_a_special_token(prompt, chosen, rejected, style, chat):
    tokenizer = make(style)
    encode = PairTokenizer(tokenizer, TokenizeOptions(chat="auto" if chat else "never", special_tokens="text"))
    plain = encode(PreferencePair("x", "y", "z"))
    try:
        pair = encode(PreferencePair(prompt, chosen, rejected))
    except BadRow as error:
        assert error.reason in ("chosen equals rejected", "empty prompt")  # noqa: PT017
        return
    assert special_count(tokenizer, pair) == special_count(tokenizer, plain)
