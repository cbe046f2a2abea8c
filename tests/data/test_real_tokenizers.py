"""The table of `test_families.py` over tokenizers and templates of real models, which packages of registries ship."""

import pytest

from adadpo_lightning.compat import template_renderer
from adadpo_lightning.data.formats import read_pair
from adadpo_lightning.data.options import TokenizeOptions
from adadpo_lightning.data.schema import BadRow
from adadpo_lightning.data.template import writer
from adadpo_lightning.data.tokenize import PairTokenizer
from tests.data.test_families import ANSWERS, ASKED, CONVERSATIONS, SYSTEM, TOOLS, ours, trl_ids, without_blanks
from tests.support.real_model import Unavailable
from tests.support.real_tokenizers import FAMILIES, load

pytestmark = pytest.mark.real_model
pytest.importorskip("trl")


def said(text, **fields):
    return {"role": "assistant", "content": text, **fields}


CALL = said("", tool_calls=[{"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}])
THOUGHTS = [
    said(f"<think>\n{thought}\n</think>\n\n{answer}") for thought, answer in (("Hm.", "Paris."), ("Oh.", "No."))
]
NO_THOUGHT = {"chat_template_kwargs": {"enable_thinking": False}}
CASES = {
    **{name: (row, ANSWERS) for name, row in CONVERSATIONS.items() if name != "tool result"},
    "system turn, thinking off": ({"prompt": [SYSTEM, ASKED], **NO_THOUGHT}, ANSWERS),
    "tool result": ({"prompt": [ASKED, CALL, {"role": "tool", "content": "5"}], "tools": TOOLS}, ANSWERS),
    "a call as answer": ({"prompt": [ASKED], "tools": TOOLS}, [CALL, ANSWERS[1]]),
    "thoughts": ({"prompt": [ASKED]}, THOUGHTS),
    "thoughts, thinking off": ({"prompt": [ASKED], **NO_THOUGHT}, THOUGHTS),
    "a thought against none": ({"prompt": [ASKED]}, [THOUGHTS[0], ANSWERS[1]]),
    "earlier thoughts": ({"prompt": [ASKED, THOUGHTS[0], ASKED]}, THOUGHTS),
    "thoughts in a field": ({"prompt": [ASKED]}, [said(text, reasoning_content="Hm.") for text in ("Paris.", "No.")]),
    "one token": ({"prompt": [ASKED]}, [said("5"), said("4")]),
    "blanks": ({"prompt": [{"role": "user", "content": "  Why?  \n"}]}, [said("  Paris.\n\n"), said("\nNo.  ")]),
    "not ASCII": ({"prompt": [{"role": "user", "content": "日本語 é 🏳️‍🌈"}]}, [said("🏳️‍🌈 naïve"), said("ñ")]),
}
WITHOUT_CALLS = ("smollm2", "gemma3", "llama3")
LEFT_OUT = {
    **{("tool result", family): "refuses tool turns" for family in ("gemma3",)},
    **{("a call as answer", family): "writes no calls, so the row is refused" for family in WITHOUT_CALLS},
    **{(name, "deepseek"): "takes arguments as text" for name in ("tool result", "a call as answer")},
}
TABLE = [(name, family) for family in FAMILIES for name in CASES if (name, family) not in LEFT_OUT]


@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_rendered_as_by_the_public_method(family):
    try:
        tokenizer = load(family)
    except Unavailable as reason:
        pytest.skip(str(reason))
    render = template_renderer(tokenizer, {})
    assert render is not None
    cases = [case for name, case in CASES.items() if (name, family) not in LEFT_OUT]
    taken = []
    write = writer(tokenizer, None, {}, lambda *args: taken.append(args) or render(*args))
    for messages in ([*row["prompt"], answer] for row, answers in cases for answer in answers):
        assert write(messages, False) == tokenizer.apply_chat_template(messages, tokenize=False)
        prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        assert write(messages[:-1], True) == prompt
    assert len(taken) >= 20


@pytest.mark.parametrize("family", WITHOUT_CALLS)
def test_a_call_that_the_template_does_not_write_is_refused(family):
    try:
        tokenizer = load(family)
    except Unavailable as reason:
        pytest.skip(str(reason))
    conversation, answers = CASES["a call as answer"]
    with pytest.raises(BadRow, match="tool calls not rendered"):
        ours(tokenizer, {**conversation, "chosen": answers[:1], "rejected": answers[1:]})


@pytest.mark.parametrize(("name", "family"), TABLE, ids=[f"{family}, {name}" for name, family in TABLE])
def test_ids_are_those_of_the_template_and_of_trl(name, family):
    try:
        tokenizer = load(family)
    except Unavailable as reason:
        pytest.skip(str(reason))
    conversation, answers = CASES[name]
    row = {**conversation, "chosen": answers[:1], "rejected": answers[1:]}
    prompt, *got = ours(tokenizer, row)
    kwargs = {"tools": row.get("tools"), **row.get("chat_template_kwargs", {}), "return_dict": False}
    for ids, answer in zip(got, answers, strict=True):
        whole = tokenizer.apply_chat_template([*conversation["prompt"], answer], **kwargs)
        assert prompt + ids == without_blanks(tokenizer, list(whole))
        assert ids.count(tokenizer.eos_token_id) == 1
        assert ids[-1] == tokenizer.eos_token_id
    theirs = trl_ids(tokenizer, row)
    assert [prompt, *got] == [theirs[0], *(without_blanks(tokenizer, ids) for ids in theirs[1:])]


@pytest.mark.parametrize(
    ("family", "answers", "found"),
    [
        ("deepseek", THOUGHTS, (True, False)),  # it drops thoughts
        ("deepseek", ANSWERS, (False, False)),
        ("qwen3", ANSWERS, (False, True)),  # it writes an empty one before each answer
        ("qwen3", THOUGHTS, (False, False)),
        ("smollm2", THOUGHTS, (False, False)),
        ("llama3", ANSWERS, (False, False)),
        ("gemma3", ANSWERS, (False, False)),
    ],
)
def test_what_the_template_changes_is_known(family, answers, found):
    try:
        tokenizer = load(family)
    except Unavailable as reason:
        pytest.skip(str(reason))
    pair = read_pair({"prompt": [ASKED], "chosen": answers[:1], "rejected": answers[1:]}, "messages")
    encoded = PairTokenizer(tokenizer, TokenizeOptions())(pair)
    assert (encoded.answer_changed, encoded.answer_prefixed) == found
